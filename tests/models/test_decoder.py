"""The decoder against transformers' numbers, and against itself.

The goldens under tests/models/goldens were made by scripts/make_goldens.py.
"""

import dataclasses
import itertools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edsft_jax import models
from edsft_jax.mesh import make_mesh, shard_batch


def test_numbers_match_transformers(golden):
  values = golden.values
  num_layers = golden.decoder.config.num_layers
  graphdef, state = nnx.split(golden.decoder)
  mask = jnp.ones(values['tokens'].shape)

  @jax.jit
  def run(state, tokens):
    decoder = nnx.merge(graphdef, state)
    outputs = [
      decoder(tokens, mask, layer=layer)
      for layer in [*range(num_layers + 1), -1, -num_layers - 1]
    ]
    features = [output.features_BxLxD for output in outputs]
    return decoder.logits(outputs[0].hidden_BxLxD), features

  logits, (*features, last, first) = run(state, values['tokens'])
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
    np.testing.assert_allclose(feature.mean(1), expected, rtol=0, atol=2e-4)
  np.testing.assert_array_equal(last, features[-1])
  np.testing.assert_array_equal(first, features[0])


def test_unknown_layers_are_refused(goldens):
  decoder = goldens['tied_v4'].decoder
  for layer in (3, -4):
    with pytest.raises(ValueError, match=f'layer {layer}'):
      decoder(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)), layer=layer)


def test_padding_and_batch_size_change_nothing(goldens, forward):
  golden = goldens['llama3_v5']
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


def test_cache_changes_nothing(goldens):
  golden = goldens['llama3_v5']
  config = golden.decoder.config
  tokens = golden.values['tokens'][:, :29]
  graphdef, state = nnx.split(golden.decoder)

  @jax.jit
  def step(state, tokens, mask, cache):
    decoder = nnx.merge(graphdef, state)
    output = decoder(tokens, mask, cache=cache)
    return decoder.logits(output.hidden_BxLxD), output.cache

  # Padding on the left and between, two long pieces, then single tokens; two
  # slots stay free.
  mask = np.ones((2, 36), bool)
  mask[:, :4] = mask[:, 14:17] = False
  padded = np.zeros((2, 36), np.int32)
  padded[mask] = tokens.ravel()
  cache = golden.decoder.init_cache(2, 38)
  assert len(cache.keys) == len(cache.values) == config.num_layers
  assert cache.keys[0].shape == (2, config.num_kv_heads, 38, config.head_dim)
  cuts = [0, 16, 32, 33, 34, 35, 36]
  pieces = []
  for start, end in itertools.pairwise(cuts):
    logits, cache = step(state, padded[:, start:end], mask[:, start:end], cache)
    pieces.append(logits)
  np.testing.assert_allclose(
    np.concatenate(pieces, axis=1)[mask].reshape(2, 29, -1),
    golden.values['logits'][:, :29],
    rtol=0,
    atol=golden.tolerance,
  )
  assert int(cache.index) == 36


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


# Field of config.json -> a golden that has it and another value. Every numeric
# field that enters the maths must change the logits.
NUMBERS = {
  'rms_norm_eps': ('llama3_v5', 4e-3),
  'num_attention_heads': ('linear_v4', 8),
  'rope_parameters.rope_theta': ('llama3_v5', 60.0),
  'rope_parameters.factor': ('llama3_v5', 6.0),
  'rope_parameters.low_freq_factor': ('llama3_v5', 1.5),
  'rope_parameters.high_freq_factor': ('llama3_v5', 5.0),
  'rope_parameters.original_max_position_embeddings': ('llama3_v5', 50),
  'rope_parameters.rope_type': ('llama3_v5', 'linear'),
  'rope_theta': ('linear_v4', 12000.0),
  'rope_scaling.factor': ('linear_v4', 3.5),
  'rope_scaling.rope_type': ('linear_v4', 'default'),
}


@pytest.mark.parametrize('field', NUMBERS)
def test_every_number_of_the_config_changes_the_logits(
  goldens, tmp_path, field
):
  case, value = NUMBERS[field]
  golden = goldens[case]
  fields = json.loads((golden.path / 'config.json').read_text())
  *parents, last = field.split('.')
  inner = fields
  for parent in parents:
    inner = inner[parent]
  inner[last] = value
  if field == 'num_attention_heads':
    # Other heads over the same tensors.
    fields |= {'head_dim': 4, 'num_key_value_heads': 4}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  config = models.read_config(tmp_path)
  assert config != golden.decoder.config
  graphdef = nnx.graphdef(
    nnx.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  )
  changed = nnx.merge(graphdef, nnx.state(golden.decoder))
  # Eagerly, as each config would be a program of its own.
  tokens = golden.values['tokens'][:1, :24]
  output = changed(tokens, jnp.ones(tokens.shape))
  logits = changed.logits(output.hidden_BxLxD)
  difference = np.abs(logits - golden.values['logits'][:1, :24]).max()
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
  assert len(float32) == 3 * (9 + 2) + 1
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in float32)
  bfloat16 = dots(lowered(jnp.bfloat16))
  assert len(bfloat16) == len(float32)
  assert all('HIGHEST' not in line for line in bfloat16)
  assert all('bf16' in line for line in bfloat16)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_stays_near(goldens, one_device, dtype, forward):
  golden = goldens['tied_v4']
  decoder = models.load_decoder(golden.path, dtype, one_device)
  logits, features = forward(decoder, golden.values['tokens'])
  assert features.dtype == dtype
  assert logits.dtype == jnp.float32
  spread = np.ptp(golden.values['logits'])
  # Measured: 2.5e-2 and 2.4e-3 of the spread.
  bound = {'bfloat16': 4e-2, 'float16': 4e-3}[dtype]
  error = np.abs(logits - golden.values['logits']).max() / spread
  assert bound / 10 < error < bound


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
  """The golden holds prompts, ids and texts; no expected text stands here."""
  path = shared / 'models' / 'stories3M'
  decoder = models.load_decoder(path, 'float32', one_device)
  prompt_format = models.load_prompt_format(path, 'auto', '\n', 'end')
  rows = json.loads((goldens_path / 'stories3M.json').read_text())
  prompts = []
  for row in rows:
    ids, cut = prompt_format.encode_prompt(row['prompt'], 64, False)
    assert (ids, cut) == (row['prompt_ids'], False)
    prompts.append(ids)
  tokens, mask = models.pad_left(prompts, 16)
  graphdef, state = nnx.split(decoder)

  def top2(logits, token):
    probs = jax.lax.top_k(jax.nn.softmax(logits), 2)[0]
    return {'first': probs[:, 0], 'second': probs[:, 1]}

  @jax.jit
  def run(state, tokens, mask):
    return models.generate(
      nnx.merge(graphdef, state),
      tokens,
      mask,
      max_new_tokens=40,
      end_ids=prompt_format.end_ids,
      observe=top2,
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
