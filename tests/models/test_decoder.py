"""The decoder against transformers' numbers, and against itself.

The goldens under tests/models/goldens were made by scripts/make_goldens.py.
"""

import dataclasses
import itertools
import json
import re

from flax import nnx
import formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh, shard_batch
from edsft_jax.models import attention, layer_loop
from edsft_jax.models import rope as rope_lib


def test_numbers_match_transformers(golden):
  values = golden.values
  config = golden.decoder.config
  num_layers = config.num_layers
  graphdef, state = nnx.split(golden.decoder)
  # One pass over prompt and greedy tokens has both; but dynamic rope would
  # turn the prompt by the length of the whole.
  text = values['tokens']
  length = text.shape[1]
  if config.rope.kind != 'dynamic':
    text = np.concatenate([text, values['greedy'][:, :-1]], axis=1)
  mask = jnp.ones(text.shape)

  @jax.jit
  def run(state, tokens):
    decoder = nnx.merge(graphdef, state)
    outputs = [
      decoder(tokens, mask, layer=layer) for layer in range(num_layers + 1)
    ]
    features = [output.features_BxLxD for output in outputs]
    return decoder.logits(outputs[0].hidden_BxLxD), features

  logits, features = run(state, text)
  num_greedy = text.shape[1] - length + 1
  np.testing.assert_array_equal(
    np.argmax(logits[:, length - 1 :], axis=-1),
    values['greedy'][:, :num_greedy],
  )
  logits = logits[:, :length]
  np.testing.assert_allclose(
    logits, values['logits'], rtol=0, atol=golden.tolerance
  )
  log_probs = scipy.special.log_softmax(logits, axis=-1)
  probs = np.exp(log_probs)
  np.testing.assert_allclose(
    np.sort(probs, -1)[..., :-3:-1], values['top2'], rtol=0, atol=1e-4
  )
  np.testing.assert_allclose(
    -np.sum(probs * log_probs, -1), values['entropy'], rtol=0, atol=1e-4
  )
  for feature, expected in zip(features, values['pooled'], strict=True):
    np.testing.assert_allclose(
      feature[:, :length].mean(1), expected, rtol=0, atol=2e-4
    )


def test_layers_are_counted_from_either_end(goldens):
  num = goldens['tied_v4'].decoder.config.num_layers
  graphdef, state = nnx.split(goldens['tied_v4'].decoder)

  @jax.jit
  def run(state):
    decoder = nnx.merge(graphdef, state)
    tokens = jnp.array([[3, 4, 5]])
    return [
      decoder(tokens, jnp.ones(tokens.shape), layer=layer).features_BxLxD
      for layer in (0, num, -num - 1, -1)
    ]

  embedded, final, *same = run(state)
  np.testing.assert_array_equal(same, [embedded, final])
  assert not np.array_equal(embedded, final)


def test_unknown_layers_are_refused(goldens):
  decoder = goldens['tied_v4'].decoder
  for layer in (3, -4):
    with pytest.raises(ValueError, match=f'layer is {layer}'):
      decoder(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)), layer=layer)


@pytest.mark.parametrize('case', ['llama3_v5', 'qwen2_v4'])
def test_padding_and_batch_size_change_nothing(goldens, forward, case):
  golden = goldens[case]
  tokens = golden.values['tokens']
  length = tokens.shape[1]
  short = length - 5
  # Row 0 whole, the others row 1 cut short: padded left, right and within.
  padded = np.full((4, length + 3), 7, np.int32)
  mask = np.zeros(padded.shape, bool)
  places = [
    np.arange(3, length + 3),
    np.arange(short) + length + 3 - short,
    np.arange(short),
    np.concatenate([np.arange(2), np.arange(6, short + 4)]),
  ]
  for row, place in enumerate(places):
    padded[row, place] = tokens[min(row, 1), : len(place)]
    mask[row, place] = True
  logits, features = forward(golden.decoder, padded, mask)
  assert np.isfinite(features).all()
  for row, place in enumerate(places):
    np.testing.assert_allclose(
      logits[row, place],
      golden.values['logits'][min(row, 1), : len(place)],
      rtol=0,
      atol=golden.tolerance,
    )


def test_length_of_other_rows_does_not_turn_a_row(goldens, forward):
  """Dynamic rope stretches each row by its own length."""
  golden = goldens['dynamic_v5']
  original = golden.decoder.config.rope.original_context
  tokens = np.array(golden.values['tokens'])
  length = tokens.shape[1]
  short = original + 3
  mask = np.ones(tokens.shape, bool)
  mask[1, : length - short] = False
  tokens[1, length - short :] = tokens[1, :short]
  together, _ = forward(golden.decoder, tokens, mask)
  np.testing.assert_allclose(
    together[0], golden.values['logits'][0], rtol=0, atol=golden.tolerance
  )
  alone, _ = forward(golden.decoder, tokens[1:, length - short :])
  np.testing.assert_allclose(
    together[1, length - short :], alone[0], rtol=0, atol=golden.tolerance
  )
  # The whole row turned it otherwise.
  difference = np.abs(alone[0] - golden.values['logits'][1, :short]).max()
  assert difference > 10 * golden.tolerance


def test_frequencies_are_those_of_transformers(goldens_path, tmp_path):
  fields = json.loads((goldens_path / 'tied_v4' / 'config.json').read_text())
  fields |= {'head_dim': 16, 'max_position_embeddings': 64}
  rows = json.loads((goldens_path / 'rope.json').read_text())
  assert {row['rope_parameters']['rope_type'] for row in rows} == {
    'yarn',
    'dynamic',
  }
  for row in rows:
    fields['rope_parameters'] = row['rope_parameters']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    rope = models.read_config(tmp_path).rope
    if row['length'] is None:
      found = rope_lib.frequencies(rope, 16)
    else:
      length = jnp.asarray([row['length']])
      found = rope_lib.dynamic_frequencies(rope, 16, length)[0]
    np.testing.assert_allclose(found, row['frequencies'], rtol=2e-6)
    assert rope.attention_factor == pytest.approx(row['attention_factor'])


# A window in one of two layers, too: it counts tokens, not slots. Gemma 2 caps
# its scores.
@pytest.mark.parametrize(
  'case', ['llama3_v5', 'qwen3_v5', 'gemma2_v4', 'exaone4_v4']
)
def test_cache_changes_nothing(goldens, case):
  golden = goldens[case]
  config = golden.decoder.config
  tokens = golden.values['tokens'][:, :29]
  length = tokens.shape[1]
  graphdef, state = nnx.split(golden.decoder)

  @jax.jit
  def step(state, tokens, mask, cache):
    decoder = nnx.merge(graphdef, state)
    output = decoder(tokens, mask, cache=cache)
    return decoder.logits(output.hidden_BxLxD), output.kv_cache

  # Padding on the left and between, two long pieces, then single tokens; two
  # slots stay free.
  end = length + 7
  mask = np.ones((2, end), bool)
  mask[:, :4] = mask[:, 14:17] = False
  padded = np.zeros((2, end), np.int32)
  padded[mask] = tokens.ravel()
  slots = end + 2
  cache = golden.decoder.init_cache(2, slots)
  assert len(cache.keys) == len(cache.values) == config.num_layers
  rows = (2, config.num_kv_heads)
  assert cache.keys[0].shape == (*rows, config.head_dim, slots)
  assert cache.values[0].shape == (*rows, slots, config.head_dim)
  cuts = [0, 16, *range(end - 4, end + 1)]
  pieces = []
  for start, stop in itertools.pairwise(cuts):
    part = slice(start, stop)
    logits, cache = step(state, padded[:, part], mask[:, part], cache)
    pieces.append(logits)
  np.testing.assert_allclose(
    np.concatenate(pieces, axis=1)[mask].reshape(2, length, -1),
    golden.values['logits'][:, :length],
    rtol=0,
    atol=golden.tolerance,
  )
  assert int(cache.cache_index) == end


@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_eight_devices_are_like_one(goldens, sizes, forward):
  golden = goldens['biases_v5']
  mesh = make_mesh(*sizes)
  decoder = models.load_decoder(golden.path, 'float32', mesh)
  # Some weight is really cut when fsdp or tensor is more than one.
  cut = decoder.layers[0].mlp.up_proj.weight[...].sharding.shard_shape((32, 44))
  assert cut == (32 // sizes[1], 44 // (1 if 44 % sizes[2] else sizes[2]))
  tokens = np.tile(golden.values['tokens'], (4, 1))
  logits, _ = forward(decoder, shard_batch(mesh, tokens))
  np.testing.assert_allclose(
    logits,
    np.tile(golden.values['logits'], (4, 1, 1)),
    rtol=0,
    atol=golden.tolerance,
  )


@pytest.mark.parametrize('case', ['phi3_v4', 'gemma2_v4'])
def test_families_are_sharded_alike(goldens, case, forward):
  """Parts of a fused tensor, too, and norms and caps over parts of heads."""
  golden = goldens[case]
  mesh = make_mesh(2, 2, 2)
  decoder = models.load_decoder(golden.path, 'float32', mesh)
  up_proj = decoder.layers[0].mlp.up_proj.weight[...]
  shape = (up_proj.shape[0] // 2, up_proj.shape[1] // 2)
  assert up_proj.sharding.shard_shape(up_proj.shape) == shape
  tokens = np.tile(golden.values['tokens'], (2, 1))
  logits, _ = forward(decoder, shard_batch(mesh, tokens))
  np.testing.assert_allclose(
    logits,
    np.tile(golden.values['logits'], (2, 1, 1)),
    rtol=0,
    atol=golden.tolerance,
  )


def test_shard_decoder_moves_every_parameter(goldens):
  mesh = make_mesh(2, 2, 2)
  decoder = nnx.clone(goldens['tied_v4'].decoder)
  before = nnx.state(decoder)
  models.shard_decoder(decoder, mesh)
  weight = decoder.layers[0].self_attn.q_proj.weight[...]
  assert weight.sharding.shard_shape(weight.shape) == (16, 16)
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(nnx.state(decoder)), strict=True
  ):
    np.testing.assert_array_equal(old, new)


# A golden, a field of its config.json and another value. Every number that
# enters the maths must change the logits.
NUMBERS = (
  ('llama3_v5', 'rms_norm_eps', 4e-3),
  ('linear_v4', 'num_attention_heads', 8),
  ('llama3_v5', 'rope_parameters.rope_theta', 60.0),
  ('llama3_v5', 'rope_parameters.factor', 6.0),
  ('llama3_v5', 'rope_parameters.low_freq_factor', 1.5),
  ('llama3_v5', 'rope_parameters.high_freq_factor', 5.0),
  ('llama3_v5', 'rope_parameters.original_max_position_embeddings', 50),
  ('linear_v4', 'rope_theta', 12000.0),
  ('linear_v4', 'rope_scaling.factor', 3.5),
  ('linear_v4', 'rope_scaling.rope_type', 'dynamic'),
  ('mistral_v4', 'sliding_window', 8),
  ('mistral_v4', 'sliding_window', None),
  ('qwen2_v4', 'sliding_window', 6),
  ('qwen2_v4', 'max_window_layers', 2),
  ('qwen2_v4', 'use_sliding_window', False),
  ('qwen3_v5', 'sliding_window', 7),
  ('qwen3_v5', 'layer_types', ['full_attention', 'sliding_attention']),
  ('qwen3_v5', 'rms_norm_eps', 6e-3),
  ('olmo2_v5', 'rms_norm_eps', 6e-3),
  ('olmo2_v5', 'num_attention_heads', 2),
  ('gemma2_v4', 'rms_norm_eps', 6e-3),
  ('gemma2_v4', 'rope_theta', 300.0),
  ('gemma2_v4', 'query_pre_attn_scalar', 8),
  ('gemma2_v4', 'attn_logit_softcapping', 3.5),
  ('gemma2_v4', 'attn_logit_softcapping', None),
  ('gemma2_v4', 'final_logit_softcapping', 4.5),
  ('gemma2_v4', 'final_logit_softcapping', None),
  ('gemma2_v4', 'sliding_window', 6),
  ('gemma3_v4', 'rms_norm_eps', 6e-3),
  ('gemma3_v4', 'rope_theta', 300.0),
  ('gemma3_v4', 'rope_local_base_freq', 50.0),
  ('gemma3_v4', 'rope_scaling.factor', 3.5),
  ('gemma3_v4', 'query_pre_attn_scalar', 8),
  ('gemma3_v4', 'final_logit_softcapping', 4.5),
  ('gemma3_v4', 'sliding_window', 6),
  ('gemma3_v4', 'sliding_window_pattern', 3),
  ('olmo3_v5', 'rms_norm_eps', 6e-3),
  ('olmo3_v5', 'sliding_window', 7),
  ('olmo3_v5', 'rope_parameters.full_attention.rope_theta', 40.0),
  ('olmo3_v5', 'rope_parameters.full_attention.factor', 5.0),
  ('olmo3_v5', 'rope_parameters.sliding_attention.rope_theta', 50.0),
  ('smollm3_v5', 'rms_norm_eps', 6e-3),
  ('smollm3_v5', 'sliding_window', 7),
  ('smollm3_v5', 'no_rope_layers', [0, 1, 1]),
  ('smollm3_v5', 'no_rope_layers', None),
  ('smollm3_v5', 'rope_parameters.rope_theta', 300.0),
  ('exaone4_v4', 'rms_norm_eps', 6e-3),
  ('exaone4_v4', 'sliding_window', 6),
  ('exaone4_v4', 'sliding_window', None),
  ('exaone4_v4', 'sliding_window_pattern', 2),
  ('exaone4_v4', 'rope_theta', 60.0),
  ('exaone4_v4', 'rope_scaling.factor', 6.0),
  ('phi3_v4', 'rms_norm_eps', 6e-3),
  ('phi3_v4', 'sliding_window', 8),
  ('phi3_v4', 'rope_theta', 300.0),
  ('phi3_v4', 'rope_scaling.short_factor', [1.1, 1.3, 2.0]),
  ('phi3_v4', 'max_position_embeddings', 300),
  ('phi3_v4', 'original_max_position_embeddings', 14),
  ('phi3_v5', 'rope_parameters.long_factor', [1.2, 3.0, 6.0]),
  ('phi3_v5', 'rope_parameters.attention_factor', 1.5),
  ('phi3_v5', 'original_max_position_embeddings', 30),
  ('granite_v5', 'rms_norm_eps', 6e-3),
  ('granite_v5', 'rope_parameters.rope_theta', 300.0),
  ('granite_v5', 'embedding_multiplier', 4.0),
  ('granite_v5', 'residual_multiplier', 0.7),
  ('granite_v5', 'attention_multiplier', 0.4),
  ('granite_v5', 'logits_scaling', 3.0),
  ('ministral_v5', 'rms_norm_eps', 6e-3),
  ('ministral_v5', 'sliding_window', 6),
  ('ministral_v5', 'layer_types', None),
  ('seed_oss_v5', 'rms_norm_eps', 6e-3),
  ('seed_oss_v5', 'rope_parameters.rope_theta', 300.0),
  ('yarn_v5', 'rope_parameters.rope_theta', 40.0),
  ('yarn_v5', 'rope_parameters.factor', 5.0),
  ('yarn_v5', 'rope_parameters.original_max_position_embeddings', 22),
  ('yarn_v5', 'rope_parameters.beta_fast', 2.2),
  ('yarn_v5', 'rope_parameters.beta_slow', 0.6),
  ('yarn_v5', 'rope_parameters.mscale', 2.5),
  ('yarn_v5', 'rope_parameters.mscale_all_dim', 0.7),
  ('yarn_v5', 'rope_parameters.attention_factor', 1.1),
  ('yarn_v5', 'rope_parameters.truncate', True),
  ('dynamic_v5', 'rope_parameters.factor', 3.3),
  ('dynamic_v5', 'rope_parameters.rope_theta', 60.0),
  ('dynamic_v5', 'max_position_embeddings', 33),
)

# Their numbers reach the decoder in fields of its config that other goldens'
# numbers reach, too.
LIKE_OTHERS = {
  'qwen3_v5',
  'olmo2_v5',
  'olmo3_v5',
  'exaone4_v4',
  'ministral_v5',
  'seed_oss_v5',
}


def _changed_config(golden, field, value, folder) -> models.DecoderConfig:
  fields = json.loads((golden.path / 'config.json').read_text())
  *parents, last = field.split('.')
  inner = fields
  for parent in parents:
    inner = inner[parent]
  inner[last] = value
  if field == 'num_attention_heads':
    # Other heads over the same tensors.
    fields['head_dim'] = golden.decoder.config.width // value
    fields['num_key_value_heads'] = value // 2
  (folder / 'config.json').write_text(json.dumps(fields))
  return models.read_config(folder)


@pytest.mark.parametrize(('case', 'field', 'value'), NUMBERS)
def test_every_number_of_the_config_is_read(
  goldens, tmp_path, case, field, value
):
  golden = goldens[case]
  config = _changed_config(golden, field, value, tmp_path)
  assert config != golden.decoder.config


@pytest.mark.parametrize(
  ('case', 'field', 'value'),
  [
    pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in LIKE_OTHERS))
    for row in NUMBERS
  ],
)
def test_every_number_of_the_config_changes_the_logits(
  goldens, tmp_path, case, field, value
):
  golden = goldens[case]
  config = _changed_config(golden, field, value, tmp_path)
  graphdef = nnx.graphdef(
    nnx.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  )
  changed = nnx.merge(graphdef, nnx.state(golden.decoder))
  # Eagerly, as each config would be a program of its own; of one length, so
  # that the operations are compiled once.
  by_length = config.rope.kind in ('dynamic', 'longrope')
  tokens = golden.values['tokens'][:1, : None if by_length else 18]
  output = changed(tokens, jnp.ones(tokens.shape))
  logits = changed.logits(output.hidden_BxLxD)
  before = golden.values['logits'][:1, : tokens.shape[1]]
  difference = np.abs(logits - before).max()
  assert difference > 10 * golden.tolerance


def test_float32_is_true_float32_in_the_program(goldens):
  def lowered(dtype) -> str:
    config = goldens['biases_v5'].decoder.config

    @nnx.eval_shape
    def decoder():
      decoder = models.Decoder(config, rngs=nnx.Rngs(0), dtype=dtype)
      models.add_lora(decoder, 2, 4.0, ('q_proj',), nnx.Rngs(0))
      return decoder

    graphdef, state = nnx.split(decoder)

    def f(state, tokens):
      decoder = nnx.merge(graphdef, state)
      output = decoder(tokens, jnp.ones(tokens.shape))
      return decoder.logits(output.hidden_BxLxD)

    return jax.jit(f).lower(state, jnp.zeros((1, 4), jnp.int32)).as_text()

  def dots(text: str) -> list[str]:
    return [line for line in text.splitlines() if 'dot_general' in line]

  float32 = dots(lowered(jnp.float32))
  # The three layers call one function.
  assert len(float32) == (9 + 2) + 1
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in float32)
  bfloat16 = dots(lowered(jnp.bfloat16))
  assert len(bfloat16) == len(float32)
  assert all('HIGHEST' not in line for line in bfloat16)
  assert all('bf16' in line for line in bfloat16)


# Root mean square error of a logit as a share of the logits' spread, measured.
HALF = {
  ('tied_v4', 'float16'): 3.6e-4,
  ('tied_v4', 'bfloat16'): 2.7e-3,
  ('mistral_v4', 'bfloat16'): 2.3e-3,
  ('qwen2_v4', 'bfloat16'): 1.8e-3,
  ('qwen3_v5', 'bfloat16'): 1.5e-3,
  ('olmo2_v5', 'bfloat16'): 1.3e-3,
  ('gemma2_v4', 'bfloat16'): 4.7e-3,
  ('gemma3_v4', 'bfloat16'): 6.9e-3,
  ('granite_v5', 'bfloat16'): 1.4e-3,
}


@pytest.mark.parametrize(('case', 'dtype'), HALF)
def test_half_precision_stays_near(goldens, one_device, case, dtype, forward):
  golden = goldens[case]
  decoder = models.load_decoder(golden.path, dtype, one_device)
  logits, features = forward(decoder, golden.values['tokens'])
  assert features.dtype == dtype
  assert logits.dtype == jnp.float32
  spread = np.ptp(golden.values['logits'])
  error = np.sqrt(np.mean((logits - golden.values['logits']) ** 2)) / spread
  assert HALF[case, dtype] / 2 < error < HALF[case, dtype] * 1.3


@pytest.mark.parametrize('case', ['qwen2_v4', 'gemma2_v4', 'granite_v5'])
def test_bfloat16_weights_leave_activations_float32(
  goldens, one_device, case, forward
):
  path, tokens = goldens[case].path, goldens[case].values['tokens']
  decoder = models.load_decoder(path, 'bfloat16_weights', one_device)
  weights = jax.tree.leaves(nnx.state(decoder, nnx.Param))
  assert {weight.dtype.name for weight in weights} == {'bfloat16'}
  assert decoder.init_cache(1, 2).keys[0].dtype == jnp.float32
  # float32 throughout, with the same rounded weights.
  rounded = models.load_decoder(path, 'float32', one_device)
  state = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    nnx.state(rounded, nnx.Param),
  )
  nnx.update(rounded, state)
  expected, expected_features = forward(rounded, tokens)
  logits, features = forward(decoder, tokens)
  assert features.dtype == logits.dtype == jnp.float32
  spread = np.ptp(expected)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5 * spread)
  spread = np.ptp(expected_features)
  np.testing.assert_allclose(
    features, expected_features, rtol=0, atol=5e-5 * spread
  )


def test_bfloat16_weights_are_never_converted(goldens, one_device):
  decoder = models.load_decoder(
    goldens['tied_v4'].path, 'bfloat16_weights', one_device
  )
  graphdef, state = nnx.split(decoder)

  def f(state, tokens):
    decoder = nnx.merge(graphdef, state)
    output = decoder(tokens, jnp.ones(tokens.shape))
    return decoder.logits(output.hidden_BxLxD)

  text = jax.jit(f).lower(state, jnp.zeros((1, 7), jnp.int32)).as_text()
  upcast = re.findall(
    r'convert .*: \(tensor<(.*)bf16>\) -> tensor<.*f32>', text
  )
  # The norms' scales and the looked up embeddings.
  assert all(shape.count('x') == 1 or '7x' in shape for shape in upcast)


def test_a_fresh_decoder_follows_the_config(goldens):
  config = dataclasses.replace(
    goldens['biases_v5'].decoder.config, num_layers=1, initializer_range=0.07
  )
  decoder = models.Decoder(config, rngs=nnx.Rngs(0))
  attention = decoder.layers[0].self_attn
  weights = [
    decoder.embed_tokens.weight,
    decoder.lm_head.weight,
    attention.q_proj.weight,
    decoder.layers[0].mlp.down_proj.weight,
  ]
  for weight in weights:
    assert np.std(weight[...]) == pytest.approx(0.07, rel=0.1)
  assert attention.q_proj.weight.shape == (32, 40)
  assert attention.q_proj.bias.shape == (40,)
  assert attention.k_proj.weight.shape == (32, 10)
  np.testing.assert_array_equal(decoder.norm.weight[...], np.ones(32))
  tied = dataclasses.replace(config, tied=True, qkv_bias=False)
  decoder = models.Decoder(tied, rngs=nnx.Rngs(0))
  assert decoder.lm_head is None
  assert decoder.layers[0].self_attn.q_proj.bias is None
  assert decoder.layers[0].mlp.up_proj.bias is not None
  again = models.Decoder(tied, rngs=nnx.Rngs(0))
  other = models.Decoder(tied, rngs=nnx.Rngs(1))
  first, second, third = (
    d.embed_tokens.weight[...] for d in (decoder, again, other)
  )
  np.testing.assert_array_equal(first, second)
  assert not np.array_equal(first, third)


def test_pretrained_model_writes_what_transformers_writes(
  shared, one_device, goldens_path
):
  """The golden holds prompts, ids and texts; no expected text is here."""
  path = shared / 'models' / 'stories3M'
  decoder = models.load_decoder(path, 'float32', one_device)
  prompt_format = formats.load(path)
  rows = json.loads((goldens_path / 'stories3M.json').read_text())
  prompts = []
  for row in rows:
    ids, cut = prompt_format.encode_prompt(row['prompt'], 64, False)
    assert (ids, cut) == (row['prompt_ids'], False)
    prompts.append(ids)
  tokens, mask = inference.pad_left(prompts, 16)
  graphdef, state = nnx.split(decoder)

  def top2(logits, token):
    probs = jax.lax.top_k(jax.nn.softmax(logits), 2)[0]
    return {'first': probs[:, 0], 'second': probs[:, 1]}

  @jax.jit
  def run(state, tokens, mask):
    return inference.generate(
      nnx.merge(graphdef, state),
      tokens,
      mask,
      max_new_tokens=40,
      end_ids=prompt_format.end_ids,
      step_hook=top2,
    )

  result = run(state, tokens, mask)
  for number, row in enumerate(rows):
    new = result.tokens_BxT[number, : result.num_tokens_B[number]].tolist()
    assert new == row['new_ids']
    assert prompt_format.decode(new) == row['text']
    observed = [
      result.observed[name][number, 0] for name in ('first', 'second')
    ]
    np.testing.assert_allclose(observed, row['first_top2'], rtol=1e-4)
    features = result.prompt.features_BxLxD[number][mask[number]].mean(0)
    np.testing.assert_allclose(
      np.linalg.norm(features), row['pooled_norm'], rtol=1e-5
    )


def _with_most_scores(decoder, max_scores):
  """A copy whose attention holds no more scores than that."""
  copy = nnx.clone(decoder)
  for layer in copy.layers:
    layer.self_attn.max_scores = max_scores
  return nnx.split(copy)


def test_queries_in_blocks_change_nothing(goldens):
  """Values and gradients; with a window, padding, a cache and few divisors."""
  decoder = goldens['mistral_v4'].decoder
  tokens, mask = inference.pad_left([range(3, 45), range(5, 20)], 44)

  def passes(graphdef, state):
    def run(state):
      decoder = nnx.merge(graphdef, state)
      output = decoder(tokens, mask, cache=decoder.init_cache(2, 60))
      return jnp.where(mask[..., None], output.hidden_BxLxD, 0.0)

    def loss(state):
      hidden = run(state)
      return jnp.sum(hidden**3), hidden

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    return str(jax.make_jaxpr(run)(state)), gradient(state)

  whole, expected = passes(*nnx.split(decoder))
  # Room for 13 of 44 queries: blocks of 11.
  heads = decoder.config.num_heads
  blocks, found = passes(*_with_most_scores(decoder, 2 * heads * 60 * 13))
  assert ('44,60]' in whole, '11,60]' in whole) == (True, False)
  assert ',11,60]' in blocks
  # The mask of all is made, but no scores.
  assert 'f32[2,2,88,60]' in whole
  assert 'f32[2,2,88,60]' not in blocks
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    atol = 2e-5 * np.max(np.abs(b))
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize('num_before', [0, 30])
@pytest.mark.parametrize('num_free', [0, 7])
def test_long_prompts_attend_in_blocks_on_a_cpu(
  goldens, monkeypatch, num_before, num_free
):
  """After other tokens of a cache, and before entries that are still free."""
  decoder = goldens['mistral_v4'].decoder
  rng = np.random.default_rng(0)
  rows = [rng.integers(3, 45, size) for size in (300 + num_before, 45)]
  tokens, mask = inference.pad_left(rows, 300 + num_before)

  num_entries = 300 + num_before + num_free

  def run(decoder):
    parts = [slice(0, num_before), slice(num_before, None)]
    cache = decoder.init_cache(2, num_entries)
    for part in parts:
      if tokens[:, part].shape[1]:
        output = decoder(tokens[:, part], mask[:, part], cache=cache)
        cache = output.kv_cache
    hidden = output.hidden_BxLxD
    return np.where(mask[:, parts[1], None], hidden, 0.0)

  blocks = []
  attend = attention._attend_block

  def watched(q, *args, **kwargs):
    blocks.append(q.shape[3])
    return attend(q, *args, **kwargs)

  monkeypatch.setattr(attention, '_attend_block', watched)
  layer_loop.run_layer.clear_cache()  # What was traced before is not watched.
  found = run(decoder)
  assert set(blocks) == {num_before, 128, 44} - {0}
  blocks.clear()
  # Blocks that save memory read the keys of all entries.
  most_scores = 2 * decoder.config.num_heads * num_entries * 150
  expected = run(nnx.merge(*_with_most_scores(decoder, most_scores)))
  assert set(blocks) == {num_before, 150} - {0}
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_memory_grows_with_a_prompt_not_with_its_square(goldens):
  graphdef, state = _with_most_scores(goldens['mistral_v4'].decoder, 2**18)

  def temporaries(length):
    @jax.jit
    def run(state, tokens, mask):
      return nnx.merge(graphdef, state)(tokens, mask).hidden_BxLxD

    tokens, mask = inference.pad_left([[5] * length], length)
    analysis = run.lower(state, tokens, mask).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  assert temporaries(4096) < 2.5 * temporaries(2048)
