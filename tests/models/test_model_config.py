"""config.json in both forms, and each way in which it can be wrong."""

import dataclasses
import json
import math

import pytest
import transformers

from edsft_jax import errors, models
from edsft_jax.models import families, json_fields
from edsft_jax.models.config_json import to_json

BASE = {
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 50,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'max_position_embeddings': 99,
  'rms_norm_eps': 3e-6,
  'hidden_act': 'silu',
  'initializer_range': 0.03,
  'bos_token_id': 5,
  'eos_token_id': [7, 8],
}
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.5,
  'high_freq_factor': 4.5,
  'original_max_position_embeddings': 64,
}


def write(tmp_path, **changes):
  """BASE with changes; a field set to ... is left out."""
  fields = {**BASE, **changes}
  fields = {k: v for k, v in fields.items() if v is not ...}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  return tmp_path


def test_every_field_arrives(tmp_path):
  assert models.read_config(
    write(
      tmp_path,
      head_dim=10,
      rope_theta=777.0,
      tie_word_embeddings=True,
      attention_bias=True,
      mlp_bias=True,
    )
  ) == models.DecoderConfig(
    vocab_size=50,
    width=24,
    mlp_width=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    norm_eps=3e-6,
    rope=models.Rope(theta=777.0),
    tied=True,
    context=99,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    initializer_range=0.03,
    bos_id=5,
    eos_ids=(7, 8),
  )


def test_what_may_be_absent_has_transformers_defaults(tmp_path):
  absent = ('num_key_value_heads', 'hidden_act', 'initializer_range')
  absent += ('bos_token_id', 'eos_token_id')
  config = models.read_config(write(tmp_path, **dict.fromkeys(absent, ...)))
  assert config.num_kv_heads == 6
  assert config.head_dim == 4
  assert config.rope == models.Rope(theta=10000.0, kind='default')
  biases = [config.qkv_bias, config.output_bias, config.mlp_bias]
  assert not any([config.tied, *biases])
  assert (config.bos_id, config.eos_ids) == (None, ())
  assert config.initializer_range == 0.02
  # null is absent.
  nulls = {'head_dim': None, 'num_key_value_heads': None, 'rope_scaling': None}
  assert models.read_config(write(tmp_path, **nulls)).head_dim == 4


@pytest.mark.parametrize('scaling', [None, LLAMA3])
def test_both_forms_say_the_same(tmp_path, scaling):
  older = models.read_config(
    write(tmp_path, rope_theta=123.0, rope_scaling=scaling, torch_dtype='x')
  )
  parameters = {'rope_theta': 123.0, 'rope_type': 'default', **(scaling or {})}
  newer = models.read_config(
    write(tmp_path, rope_parameters=parameters, dtype='x')
  )
  assert older == newer
  assert older.rope.theta == 123.0
  if scaling:
    assert older.rope == models.Rope(123.0, 'llama3', 8.0, 1.5, 4.5, 64)


def test_rope_of_old_and_sparse_files(tmp_path):
  def rope(**changes):
    return models.read_config(write(tmp_path, **changes)).rope

  # 'type' is the oldest name of rope_type.
  scaling = {'type': 'linear', 'factor': 2.5}
  assert rope(rope_scaling=scaling) == models.Rope(10000.0, 'linear', 2.5)
  # Without an original context llama3 stretches from the model's own.
  scaling = {**LLAMA3}
  del scaling['original_max_position_embeddings']
  assert rope(rope_scaling=scaling).original_context == 99
  # rope_scaling wins over rope_parameters, an inner theta over the outer.
  both = rope(
    rope_scaling={'rope_type': 'linear', 'factor': 2, 'rope_theta': 5.0},
    rope_parameters={'rope_type': 'default'},
    rope_theta=6.0,
  )
  assert both == models.Rope(5.0, 'linear', 2.0)


MISTRAL = {'architectures': ['MistralForCausalLM'], 'sliding_window': 9}
QWEN2 = {'architectures': ['Qwen2ForCausalLM']}
QWEN3 = {'architectures': ['Qwen3ForCausalLM'], 'head_dim': 10}
OLMO2 = {'architectures': ['Olmo2ForCausalLM']}
GEMMA = {
  'head_dim': 8,
  'hidden_act': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 200,
  'sliding_window': 9,
}
GEMMA2 = GEMMA | {
  'architectures': ['Gemma2ForCausalLM'],
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
}
GEMMA3 = GEMMA | {'architectures': ['Gemma3ForCausalLM']}
OLMO3 = {'architectures': ['Olmo3ForCausalLM'], 'sliding_window': 9}
SMOLLM3 = {'architectures': ['SmolLM3ForCausalLM']}
EXAONE4 = {'architectures': ['Exaone4ForCausalLM'], 'sliding_window': 9}
PHI3 = {'architectures': ['Phi3ForCausalLM'], 'sliding_window': None}
LONGROPE = {
  'original_max_position_embeddings': 33,
  'rope_scaling': {
    'type': 'longrope',
    'short_factor': [1.0, 1.5],
    'long_factor': [2.0, 4.0],
  },
}
GRANITE = {
  'architectures': ['GraniteForCausalLM'],
  'attention_multiplier': 0.0078125,
  'embedding_multiplier': 12.0,
  'logits_scaling': 16.0,
  'residual_multiplier': 0.22,
}
MINISTRAL = {'architectures': ['MinistralForCausalLM'], 'sliding_window': 9}
SEED_OSS = {
  'architectures': ['SeedOssForCausalLM'],
  'attention_bias': True,
  'head_dim': 10,
}
WINDOW = {
  'use_sliding_window': True,
  'sliding_window': 9,
  'max_window_layers': 1,
}
FULL, SLIDING = 'full_attention', 'sliding_attention'
THETA = {'rope_theta': 99.0}
DYNAMIC = {'rope_type': 'dynamic', 'factor': 2.5}
YARN = {'type': 'yarn', 'factor': 4.0}


@pytest.mark.parametrize(
  ('family', 'biases', 'fields'),
  [
    ({}, (True, True, True), ('attention_bias', 'mlp_bias')),
    (MISTRAL, (False, False, False), ()),
    (QWEN2, (True, False, False), ()),
    (QWEN3, (True, True, False), ('attention_bias',)),
    (OLMO2, (True, True, False), ('attention_bias',)),
    (GEMMA2, (True, True, False), ('attention_bias',)),
  ],
)
def test_families_read_the_biases_that_they_have(
  tmp_path, family, biases, fields
):
  def read(value, names):
    changes = dict.fromkeys(names, value)
    config = models.read_config(write(tmp_path, **changes, **family))
    return config.qkv_bias, config.output_bias, config.mlp_bias

  assert read(True, fields) == biases
  every = ('attention_bias', 'mlp_bias')
  assert read(False, every) == (
    (True, False, False) if family is QWEN2 else (False,) * 3
  )
  # A bias that the row does not know is not overlooked.
  for name in set(every) - set(fields):
    with pytest.raises(errors.InputError, match=name):
      read(True, [name])


def test_families_place_their_norms(tmp_path):
  for family, expected in (
    ({}, ('none', 'before', False)),
    (MISTRAL, ('none', 'before', False)),
    (QWEN2, ('none', 'before', False)),
    (QWEN3, ('head', 'before', False)),
    (OLMO2, ('all', 'after', False)),
    (GEMMA2, ('none', 'both', True)),
    (GEMMA3, ('head', 'both', True)),
  ):
    config = models.read_config(write(tmp_path, **family))
    found = (config.qk_norm, config.norms, config.norm_offset)
    assert found == expected


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'layer_types': [FULL] * 3}, (None, ())),
    (GEMMA2, (9, (1,))),
    (GEMMA2 | {'sliding_window_size': 9}, (9, (1,))),
    (GEMMA2 | {'layer_types': [FULL, FULL, SLIDING]}, (9, (0, 1))),
    (GEMMA3, (9, ())),
    (OLMO3, (9, ())),
    (EXAONE4 | {'sliding_window_pattern': 2}, (9, (1,))),
    (EXAONE4 | {'sliding_window': None}, (None, ())),
    (MINISTRAL, (9, ())),
    (MINISTRAL | {'sliding_window': None}, (None, ())),
    (SMOLLM3 | WINDOW | {'no_rope_layers': [0, 1, 1]}, (9, (1, 2))),
    (GEMMA3 | {'sliding_window_pattern': 3}, (9, (2,))),
    (
      GEMMA3
      | {'layer_types': [FULL] * 3, 'sliding_window_pattern': 3}
      | {'_sliding_window_pattern': 3},
      (9, (0, 1, 2)),
    ),
    (MISTRAL, (9, ())),
    (MISTRAL | {'sliding_window': None}, (None, ())),
    (QWEN2, (None, ())),
    (QWEN2 | WINDOW, (9, (0,))),
    (QWEN3 | WINDOW | {'max_window_layers': 0}, (9, ())),
    (QWEN2 | WINDOW | {'max_window_layers': 2}, (9, (0, 1))),
    (QWEN2 | WINDOW | {'max_window_layers': 3}, (None, ())),
    (QWEN2 | WINDOW | {'max_window_layers': 28}, (None, ())),
    (QWEN2 | WINDOW | {'use_sliding_window': False}, (None, ())),
    (QWEN2 | WINDOW | {'layer_types': [SLIDING, FULL, SLIDING]}, (9, (1,))),
    (QWEN3 | {'layer_types': [FULL] * 3, 'sliding_window': None}, (None, ())),
  ],
)
def test_windows(tmp_path, changes, expected):
  config = models.read_config(write(tmp_path, **changes))
  assert (config.window, config.full_layers) == expected


def test_dynamic_rope_reads_beyond_its_context(tmp_path):
  config = models.read_config(write(tmp_path, rope_scaling=DYNAMIC))
  assert config.rope == models.Rope(
    10000.0, 'dynamic', 2.5, original_context=99
  )
  assert config.context == 247


def test_yarn_reads_what_it_has(tmp_path):
  rope = models.read_config(write(tmp_path, rope_scaling=YARN)).rope
  scale = 0.1 * math.log(4) + 1
  assert rope == models.Rope(
    10000.0, 'yarn', 4.0, original_context=99, attention_factor=scale
  )
  whole = YARN | {
    'original_max_position_embeddings': 33,
    'beta_fast': 20,
    'beta_slow': 2,
    'truncate': False,
    'attention_factor': 1.5,
    'mscale': 7.0,
    'mscale_all_dim': 6.0,
  }
  rope = models.read_config(write(tmp_path, rope_scaling=whole)).rope
  assert rope == models.Rope(
    10000.0,
    'yarn',
    4.0,
    original_context=33,
    beta_fast=20.0,
    beta_slow=2.0,
    truncate=False,
    attention_factor=1.5,
  )


@pytest.mark.parametrize('rope', [YARN, LLAMA3])
def test_the_outer_original_context_wins(tmp_path, rope):
  changes = {'rope_scaling': rope, 'original_max_position_embeddings': 44}
  rope = models.read_config(write(tmp_path, **changes)).rope
  assert rope.original_context == 44


@pytest.mark.parametrize(
  ('field', 'changes'),
  [
    ('architectures', {'architectures': ['GemmaForCausalLM']}),
    (
      'lm_head of the whole, and call save_pretrained',
      {
        'architectures': ['Gemma3ForConditionalGeneration'],
        'text_config': {'hidden_size': 8},
      },
    ),
    ('model_type', {'model_type': 'granite'}),
    ('sliding_window', {'sliding_window': 9}),
    ('use_sliding_window', {'use_sliding_window': True}),
    ('use_sliding_window', MISTRAL | {'use_sliding_window': True}),
    ('layer_types', {'layer_types': [FULL, FULL, SLIDING]}),
    ('sliding_window', GEMMA2 | {'sliding_window': ...}),
    ('sliding_window', GEMMA2 | {'sliding_window': None}),
    ('sliding_window_size', GEMMA2 | {'sliding_window_size': 8}),
    ('sliding_window_pattern', GEMMA2 | {'sliding_window_pattern': 3}),
    ('sliding_window_pattern', GEMMA3 | {'sliding_window_pattern': 'LG'}),
    ('_sliding_window_pattern', GEMMA3 | {'_sliding_window_pattern': 3}),
    ('query_pre_attn', GEMMA2 | {'query_pre_attn_scalar': ...}),
    ('attn_logit_softcapping', GEMMA2 | {'attn_logit_softcapping': 0}),
    ('attn_logit_softcapping', GEMMA2 | {'attn_logit_softcapping': ...}),
    ('final_logit_softcapping', GEMMA2 | {'final_logit_softcapping': ...}),
    ('attn_logit_softcapping', GEMMA3 | {'attn_logit_softcapping': 50.0}),
    ('hidden_activation', GEMMA2 | {'hidden_activation': 'silu'}),
    ('hidden_activation', GEMMA2 | {'hidden_activation': 'gelu'}),
    ('hidden_act', GEMMA2 | {'hidden_act': 'silu'}),
    ('rope_local_base_freq', GEMMA2 | {'rope_local_base_freq': 99.0}),
    ('rope_parameters.rope_theta', GEMMA3 | {'rope_parameters': THETA}),
    (
      'rope_parameters.sliding_attention.factor',
      GEMMA3 | {'rope_parameters': {SLIDING: {'rope_type': 'linear'}}},
    ),
    ('architectures', {'architectures': ['Qwen2MoeForCausalLM']}),
    ('num_key_value_heads', MISTRAL | {'num_key_value_heads': ...}),
    ('num_key_value_heads', QWEN2 | {'num_key_value_heads': ...}),
    ('head_dim', QWEN3 | {'head_dim': ...}),
    ('sliding_window', MISTRAL | {'sliding_window': ...}),
    ('sliding_window', MISTRAL | {'sliding_window': 0}),
    ('layer_types', MISTRAL | {'layer_types': [SLIDING, FULL, SLIDING]}),
    ('sliding_window', QWEN2 | WINDOW | {'sliding_window': None}),
    ('max_window_layers', QWEN2 | WINDOW | {'max_window_layers': ...}),
    ('max_window_layers', QWEN2 | WINDOW | {'max_window_layers': -1}),
    ('use_sliding_window', QWEN2 | {'use_sliding_window': 'yes'}),
    ('layer_types', QWEN2 | WINDOW | {'layer_types': [SLIDING] * 2}),
    ('layer_types', QWEN2 | WINDOW | {'layer_types': [SLIDING, FULL, 'x']}),
    ('layer_types', QWEN2 | WINDOW | {'layer_types': [SLIDING, FULL, []]}),
    ('layer_types', QWEN2 | {'layer_types': [SLIDING, FULL, FULL]}),
    ('rope_scaling.factor', {'rope_scaling': {'rope_type': 'dynamic'}}),
    ('rope_scaling.factor', {'rope_scaling': {'rope_type': 'yarn'}}),
    ('rope_scaling.truncate', {'rope_scaling': YARN | {'truncate': 1}}),
    ('rope_scaling.mscale', {'rope_scaling': DYNAMIC | {'mscale': 1.0}}),
    ('beta_fast', {'rope_scaling': YARN | {'beta_fast': 0.5}}),
    ('attention_factor', {'rope_scaling': YARN | {'attention_factor': -1}}),
    ('low_freq', {'rope_scaling': DYNAMIC | {'low_freq_factor': 1.0}}),
    *(
      ('rope_scaling.rope_type', {'rope_scaling': {'type': kind}})
      for kind in ('mrope', 'proportional', 'Linear', 7)
    ),
    ('architectures', {'architectures': ...}),
    ('architectures', {'architectures': ['GPT2LMHeadModel']}),
    ('architectures', {'architectures': ['LlamaForSequenceClassification']}),
    ('architectures', {'architectures': 'LlamaForCausalLM'}),
    *(
      (name, {name: ...})
      for name in (
        'vocab_size',
        'hidden_size',
        'intermediate_size',
        'num_hidden_layers',
        'num_attention_heads',
        'max_position_embeddings',
        'rms_norm_eps',
      )
    ),
    ('vocab_size', {'vocab_size': '50'}),
    ('vocab_size', {'vocab_size': True}),
    ('num_hidden_layers', {'num_hidden_layers': 0}),
    ('intermediate_size', {'intermediate_size': 40.0}),
    ('rms_norm_eps', {'rms_norm_eps': -1e-5}),
    ('rms_norm_eps', {'rms_norm_eps': float('nan')}),
    ('rms_norm_eps', {'rms_norm_eps': float('inf')}),
    ('num_attention_heads', {'num_key_value_heads': 4}),
    ('hidden_size', {'num_attention_heads': 10}),
    ('head_dim', {'head_dim': 5}),
    ('hidden_act', {'hidden_act': 'gelu'}),
    ('tie_word_embeddings', {'tie_word_embeddings': 'no'}),
    ('attention_bias', {'attention_bias': 1}),
    ('quantization_config', {'quantization_config': {'bits': 4}}),
    ('bos_token_id', {'bos_token_id': '1'}),
    ('eos_token_id', {'eos_token_id': [1, None]}),
    ('eos_token_id', {'eos_token_id': 10**12}),
    ('rope_theta', {'rope_theta': 0}),
    ('rope_scaling', {'rope_scaling': 'linear'}),
    *(
      ('rope_scaling.short_factor', {'rope_scaling': {'rope_type': kind}})
      for kind in ('longrope', 'su')
    ),
    ('rope_parameters.rope_type', {'rope_parameters': {'rope_type': 'new'}}),
    ('rope_scaling.factor', {'rope_scaling': {'rope_type': 'linear'}}),
    (
      'rope_scaling.low_freq',
      {'rope_scaling': LLAMA3 | {'low_freq_factor': 0}},
    ),
    ('low_freq_factor', {'rope_scaling': LLAMA3 | {'high_freq_factor': 1}}),
    ('rope_scaling.mscale', {'rope_scaling': LLAMA3 | {'mscale': 1.0}}),
    ('partial_rotary_factor', {'partial_rotary_factor': 0.5}),
    (
      'rope_parameters.partial_rotary_factor',
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
    ),
  ],
)
def test_refusals_name_file_and_field(tmp_path, field, changes):
  with pytest.raises(errors.InputError) as caught:
    models.read_config(write(tmp_path, **changes))
  message = str(caught.value)
  assert str(tmp_path / 'config.json') in message
  assert field in message
  assert '\n' not in message


@pytest.mark.parametrize('text', ['{"a": ', '[1, 2]', '\xff', '', '[' * 10**5])
def test_unreadable_files_are_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text, encoding='latin-1')
  with pytest.raises(errors.InputError, match=r'config\.json'):
    models.read_config(tmp_path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(errors.InputError, match=r'config\.json does not exist'):
    models.read_config(tmp_path)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'rope_scaling': LLAMA3, 'tie_word_embeddings': True, 'head_dim': 6},
    {'rope_scaling': {'type': 'linear', 'factor': 3.0}, 'mlp_bias': True},
    {'eos_token_id': 4, 'bos_token_id': None, 'attention_bias': True},
    {'eos_token_id': None, 'rope_theta': 99.0},
    {'rope_scaling': DYNAMIC},
    {'rope_scaling': YARN | {'mscale': 3.0, 'mscale_all_dim': 2.0}},
    MISTRAL | {'head_dim': 8},
    MISTRAL | {'sliding_window': None},
    QWEN2,
    QWEN2 | WINDOW,
    QWEN3 | WINDOW | {'layer_types': [SLIDING, FULL, SLIDING]},
    QWEN3 | {'attention_bias': True, 'rope_scaling': YARN},
    OLMO2 | {'attention_bias': True},
    GEMMA2
    | {'attn_logit_softcapping': 5.0, 'final_logit_softcapping': 3.0}
    | {'rope_theta': 77.0},
    GEMMA3 | {'rope_local_base_freq': 77.0, 'rope_scaling': YARN},
    OLMO3 | {'rope_scaling': YARN, 'attention_bias': True},
    SMOLLM3 | {'no_rope_layers': [0, 1, 1], 'mlp_bias': True},
    EXAONE4 | {'sliding_window': None},
    EXAONE4 | {'sliding_window_pattern': 2},
    PHI3,
    PHI3 | LONGROPE,
    GRANITE,
    MINISTRAL,
    MINISTRAL | {'sliding_window': None},
    SEED_OSS | {'attention_out_bias': True},
  ],
)
def test_to_json_is_read_back_the_same(tmp_path, changes):
  config = models.read_config(write(tmp_path, **changes))
  (tmp_path / 'config.json').write_text(json.dumps(to_json(config, 'float32')))
  assert models.read_config(tmp_path) == config


def test_to_json_refuses_what_no_file_of_the_family_says(tmp_path):
  config = models.read_config(write(tmp_path, **MISTRAL))
  for changes in (
    {'qkv_bias': True},
    {'qk_norm': 'head'},
    {'full_layers': (1,)},
    {'no_rope_layers': (1,)},
    {'norm_offset': True},
    {'residual_scale': 0.5},
    {'score_cap': 9.0},
  ):
    with pytest.raises(ValueError, match='MistralForCausalLM'):
      to_json(dataclasses.replace(config, **changes), 'float32')


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('attn_logit_softcapping', 50.0),
    ('final_logit_softcapping', 30.0),
    ('logits_scaling', 8.0),
    ('residual_multiplier', 0.22),
    ('embedding_multiplier', 12.0),
    ('attention_multiplier', 0.5),
    ('query_pre_attn_scalar', 144),
    ('no_rope_layers', [1, 1, 0]),
    ('no_rope_layer_interval', 4),
    ('layer_types', ['chunked_attention'] * 3),
    ('dual_chunk_attention_config', {'chunk_size': 10}),
    ('use_bidirectional_attention', True),
    ('use_qk_norm', True),
    ('clip_qkv', 8.0),
    ('num_local_experts', 8),
    ('num_nextn_predict_layers', 1),
    ('auto_map', {'AutoModelForCausalLM': 'modeling_x.XForCausalLM'}),
    ('auto_map', {'AutoConfig': 'owner/other--configuration_x.XConfig'}),
    ('auto_map', 'modeling_x.py'),
    ('text_config', {'hidden_size': 8}),
    ('a_field_of_tomorrow', 1),
    ('a_field_of_tomorrow', False),
  ],
)
@pytest.mark.parametrize('family', [{}, MISTRAL, QWEN2, QWEN3, OLMO2])
def test_a_field_that_the_row_does_not_know_is_refused(
  tmp_path, family, field, value
):
  models.read_config(write(tmp_path, **family))
  with pytest.raises(errors.InputError, match=f'{field}: '):
    models.read_config(write(tmp_path, **family, **{field: value}))


def test_a_new_row_refuses_what_it_does_not_name(tmp_path, monkeypatch):
  """As a maintainer adds one, from an architecture with four more factors."""
  monkeypatch.setitem(
    families.FAMILIES, 'NewForCausalLM', families.Family('new')
  )
  new = {'architectures': ['NewForCausalLM'], 'model_type': 'new'}
  models.read_config(write(tmp_path, **new))
  with pytest.raises(errors.InputError, match='logits_scaling: 8'):
    models.read_config(write(tmp_path, **new, logits_scaling=8))


def test_neutral_and_harmless_fields_pass(tmp_path):
  before = models.read_config(write(tmp_path))
  changes = json_fields.NEUTRAL | dict.fromkeys(json_fields.HARMLESS, 'x')
  changes |= {
    'attn_logit_softcapping': None,
    'a_field_of_tomorrow': None,
    'auto_map': {'AutoTokenizer': 'owner/tokenizer'},
    'rope_scaling': {'rope_type': 'default', 'factor': None},
    'layer_types': [FULL] * 3,
  }
  assert models.read_config(write(tmp_path, **changes)) == before


PHI3_CODE = {
  'AutoConfig': 'configuration_phi3.Phi3Config',
  'AutoModelForCausalLM': 'modeling_phi3.Phi3ForCausalLM',
}
# What config.json files of well-known checkpoints have besides sizes.
REAL = {
  'Llama-2-7b': {
    '_name_or_path': 'meta-llama/Llama-2-7b-hf',
    'max_length': 4096,
    'pad_token_id': 0,
    'pretraining_tp': 1,
    'rope_scaling': None,
    'torch_dtype': 'float16',
    'transformers_version': '4.31.0.dev0',
    'use_cache': True,
  },
  'Llama-3.2-1B-Instruct': {
    'attention_bias': False,
    'attention_dropout': 0.0,
    'mlp_bias': False,
    'pretraining_tp': 1,
    'rope_scaling': LLAMA3,
    'rope_theta': 500000.0,
    'unsloth_fixed': True,
  },
  'SmolLM2-135M-Instruct': {
    'is_llama_config': True,
    'pad_token_id': 2,
    'pretraining_tp': 1,
    'rope_interleaved': False,
    'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
  },
  'Mistral-7B-Instruct-v0.3': MISTRAL
  | {'attention_dropout': 0.0, 'model_type': 'mistral'},
  'Qwen2.5-7B-Instruct': QWEN2
  | {
    'attention_dropout': 0.0,
    'max_window_layers': 28,
    'model_type': 'qwen2',
    'sliding_window': 131072,
    'use_sliding_window': False,
  },
  'DeepSeek-R1-Distill-Qwen-1.5B': QWEN2
  | {
    'max_window_layers': 21,
    'sliding_window': 4096,
    'use_mrope': False,
    'use_sliding_window': False,
  },
  'Qwen3-0.6B': QWEN3
  | {
    'attention_bias': False,
    'max_window_layers': 28,
    'rope_scaling': None,
    'sliding_window': None,
    'use_sliding_window': False,
  },
  'OLMo-2-1124-7B': OLMO2
  | {'attention_bias': False, 'attention_dropout': 0.0, 'use_cache': False},
  'Olmo-3-7B-Instruct': OLMO3
  | {
    'attention_bias': False,
    'dtype': 'bfloat16',
    'layer_types': [SLIDING, SLIDING, FULL],
    'rope_scaling': YARN | {'attention_factor': 1.2, 'beta_fast': 32.0},
    'rope_theta': 500000,
  },
  'SmolLM3-3B': SMOLLM3
  | {
    'layer_types': [FULL] * 3,
    'max_window_layers': 28,
    'no_rope_layer_interval': 4,
    'no_rope_layers': [1, 1, 0],
    'pretraining_tp': 2,
    'rope_scaling': None,
    'sliding_window': None,
    'use_sliding_window': False,
  },
  'EXAONE-4.0-32B': EXAONE4
  | {
    'layer_types': [SLIDING, SLIDING, FULL],
    'rope_scaling': LLAMA3,
    'sliding_window_pattern': 'LLLG',
  },
  'EXAONE-4.0-1.2B': EXAONE4
  | {
    'layer_types': [FULL] * 3,
    'sliding_window': None,
    'sliding_window_pattern': None,
    'tie_word_embeddings': True,
  },
  'Phi-3-mini-4k-instruct': PHI3
  | {
    'attention_bias': False,
    'auto_map': PHI3_CODE,
    'embd_pdrop': 0.0,
    'original_max_position_embeddings': 4096,
    'resid_pdrop': 0.0,
    'rope_scaling': None,
    'sliding_window': 2047,
  },
  'a finetuned Phi-3-mini': PHI3
  | {
    'auto_map': {
      name: f'microsoft/Phi-3-mini-4k-instruct--{code}'
      for name, code in PHI3_CODE.items()
    }
  },
  'Phi-4-mini-instruct': PHI3
  | LONGROPE
  | {
    'auto_map': PHI3_CODE | {'AutoTokenizer': 'Xenova/gpt-4o'},
    'full_attn_mod': 1,
    'hidden_size': 36,
    'interpolate_factor': 1,
    'lm_head_bias': False,
    'mlp_bias': False,
    'partial_rotary_factor': 0.75,
    'sliding_window': 262144,
  },
  'granite-3.3-8b-instruct': GRANITE
  | {'attention_bias': False, 'mlp_bias': False, 'model_type': 'granite'},
  'Seed-OSS-36B-Instruct': SEED_OSS
  | {
    'attention_out_bias': False,
    'mlp_bias': False,
    'pretraining_tp': 1,
    'residual_dropout': 0.1,
    'rope_scaling': {'rope_type': 'default'},
  },
  'gemma-2-9b-it': GEMMA2
  | {
    '_name_or_path': '/data/gemma2_hf',
    'attention_bias': False,
    'attn_logit_softcapping': 50.0,
    'cache_implementation': 'hybrid',
    'final_logit_softcapping': 30.0,
    'hidden_activation': 'gelu_pytorch_tanh',
    'model_type': 'gemma2',
    'sliding_window_size': 9,
  },
  'gemma-3-1b-it': GEMMA3
  | {
    'attn_logit_softcapping': None,
    'cache_implementation': 'hybrid',
    'final_logit_softcapping': None,
    'hidden_act': ...,
    'hidden_activation': 'gelu_pytorch_tanh',
    'model_type': 'gemma3_text',
    'rope_local_base_freq': 10000,
    'rope_scaling': None,
    'rope_theta': 1000000,
    'sliding_window_pattern': 6,
  },
  'gemma-3-270m': GEMMA3
  | {
    '_sliding_window_pattern': 6,
    'layer_types': [SLIDING, SLIDING, FULL],
    'use_bidirectional_attention': False,
  },
}


@pytest.mark.parametrize('name', REAL)
def test_files_of_well_known_models_are_read(tmp_path, name):
  models.read_config(write(tmp_path, **REAL[name]))


@pytest.mark.parametrize('architecture', families.FAMILIES)
def test_fields_that_transformers_writes_are_known(tmp_path, architecture):
  family = families.FAMILIES[architecture]
  config = transformers.AutoConfig.for_model(family.model_type)
  fields = config.to_dict() | {'architectures': [architecture]}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  read = models.read_config(tmp_path)
  assert read.tied == config.tie_word_embeddings
  layers = range(read.num_layers)
  if family.window in ('switched', 'typed'):
    windowed = read.window is not None
    assert config.layer_types == [
      SLIDING if windowed and n not in read.full_layers else FULL
      for n in layers
    ]


def test_an_adapter_alone_is_named(tmp_path):
  (tmp_path / 'adapter_config.json').write_text('{}')
  with pytest.raises(errors.InputError, match=r'PEFT adapter.*merge_and_'):
    models.read_config(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    (SMOLLM3, ()),
    (SMOLLM3 | {'no_rope_layer_interval': 2}, (1,)),
    (SMOLLM3 | {'no_rope_layers': [0, 1, 0]}, (0, 2)),
    (EXAONE4 | {'sliding_window_pattern': 2}, (1,)),
    (EXAONE4 | {'sliding_window': None}, ()),
  ],
)
def test_layers_without_rope(tmp_path, changes, expected):
  config = models.read_config(write(tmp_path, **changes))
  assert config.no_rope_layers == expected


def test_rope_of_windows_in_both_formats(tmp_path):
  older = GEMMA3 | {'rope_theta': 77.0, 'rope_local_base_freq': 55.0}
  linear = {'rope_type': 'linear', 'factor': 3.0}
  older |= {'rope_scaling': linear}
  newer = GEMMA3 | {
    'rope_parameters': {
      FULL: linear | {'rope_theta': 77.0},
      SLIDING: {'rope_type': 'default', 'rope_theta': 55.0},
    }
  }
  config = models.read_config(write(tmp_path, **older))
  assert config.rope == models.Rope(77.0, 'linear', 3.0)
  assert config.window_rope == models.Rope(55.0)
  assert models.read_config(write(tmp_path, **newer)) == config
  # What the class of transformers takes if a file says nothing.
  config = models.read_config(write(tmp_path, **GEMMA3))
  assert (config.rope.theta, config.window_rope.theta) == (1e6, 1e4)
  config = models.read_config(write(tmp_path, **OLMO3, rope_scaling=YARN))
  assert (config.rope.kind, config.window_rope.kind) == ('yarn', 'default')
  assert (config.rope.theta, config.window_rope.theta) == (5e5, 5e5)


def test_the_activation_has_either_name(tmp_path):
  for names, expected in (
    ({'hidden_act': ..., 'hidden_activation': 'silu'}, 'silu'),
    ({'hidden_act': ...}, 'gelu_pytorch_tanh'),
    ({}, 'gelu_pytorch_tanh'),
  ):
    config = models.read_config(write(tmp_path, **GEMMA3 | names))
    assert config.activation == expected


def test_longrope_of_phi3_has_a_context_of_its_own(tmp_path):
  scaling = LONGROPE['rope_scaling']
  for changes in (
    {'rope_scaling': scaling},
    {'rope_scaling': scaling | {'original_max_position_embeddings': 33}},
  ):
    config = models.read_config(write(tmp_path, **PHI3, **changes))
    assert config.rope.original_context == 4096


def test_longrope_ends_at_its_original_context(tmp_path):
  config = models.read_config(write(tmp_path, **PHI3, **LONGROPE))
  assert config.context == config.rope.original_context == 33
  assert config.rope.short_factors == (1.0, 1.5)
  assert config.rope.long_factors == (2.0, 4.0)
  assert config.rope.attention_factor == pytest.approx(
    math.sqrt(1 + math.log(99 / 33) / math.log(33))
  )
