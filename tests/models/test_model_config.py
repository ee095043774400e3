"""config.json in both forms, and each way in which it can be wrong."""

import dataclasses
import json
import math

import pytest

from edsft_jax import errors, models
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
WINDOW = {
  'use_sliding_window': True,
  'sliding_window': 9,
  'max_window_layers': 1,
}
FULL, SLIDING = 'full_attention', 'sliding_attention'
DYNAMIC = {'rope_type': 'dynamic', 'factor': 2.5}
YARN = {'type': 'yarn', 'factor': 4.0}


@pytest.mark.parametrize(
  ('family', 'biases'),
  [
    ({}, (True, True, True)),
    (MISTRAL, (False, False, False)),
    (QWEN2, (True, False, False)),
    (QWEN3, (True, True, False)),
    (OLMO2, (True, True, False)),
  ],
)
def test_families_read_the_biases_that_they_have(tmp_path, family, biases):
  def read(value):
    changes = dict.fromkeys(('attention_bias', 'mlp_bias'), value)
    config = models.read_config(write(tmp_path, **changes, **family))
    return config.qkv_bias, config.output_bias, config.mlp_bias

  assert read(True) == biases
  assert read(False) == (
    (True, False, False) if family is QWEN2 else (False,) * 3
  )


def test_families_place_their_norms(tmp_path):
  for family, expected in (
    ({}, ('none', False)),
    (MISTRAL, ('none', False)),
    (QWEN2, ('none', False)),
    (QWEN3, ('head', False)),
    (OLMO2, ('all', True)),
  ):
    config = models.read_config(write(tmp_path, **family))
    assert (config.qk_norm, config.norm_last) == expected


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'sliding_window': 9}, (None, ())),  # Llama has none.
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
    ('architectures', {'architectures': ['Gemma2ForCausalLM']}),
    ('architectures', {'architectures': ['Qwen2MoeForCausalLM']}),
    ('num_key_value_heads', MISTRAL | {'num_key_value_heads': ...}),
    ('num_key_value_heads', QWEN2 | {'num_key_value_heads': ...}),
    ('head_dim', QWEN3 | {'head_dim': ...}),
    ('sliding_window', MISTRAL | {'sliding_window': ...}),
    ('sliding_window', MISTRAL | {'sliding_window': 0}),
    ('layer_types', MISTRAL | {'layer_types': [SLIDING] * 3}),
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
      for kind in ('su', 'mrope', 'proportional', 'Linear', 7)
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
    ('rope_scaling.rope_type', {'rope_scaling': {'rope_type': 'longrope'}}),
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
  ):
    with pytest.raises(ValueError, match='MistralForCausalLM'):
      to_json(dataclasses.replace(config, **changes), 'float32')
