"""A scan over layers gives the same results as unrolled layers."""

import dataclasses
import functools

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.mesh import make_mesh
from edsft_jax.models import layer_loop

CONFIG = models.DecoderConfig(
  vocab_size=64,
  width=32,
  mlp_width=48,
  num_layers=5,
  num_heads=2,
  num_kv_heads=1,
  head_dim=16,
)
# The first and the last layer have full attention, the three between them a
# window of three tokens.
WINDOWED = dataclasses.replace(CONFIG, window=3, full_layers=(0, 4))
TOKENS = np.random.default_rng(0).integers(3, 64, (4, 24)).astype(np.int32)
SEGMENTS = np.repeat([1, 2, 0], [10, 12, 2])[None].repeat(4, axis=0)


def _decoder(config, mesh=None):
  decoder = models.Decoder(config, rngs=nnx.Rngs(0))
  if mesh is not None:
    models.shard_decoder(decoder, mesh)
  models.add_lora(decoder, 4, 8.0, ('q_proj', 'down_proj'), rngs=nnx.Rngs(1))
  # With B at its initial zeros, A would get no gradient.
  for number, (_, linear) in enumerate(models.lora.projections(decoder)):
    if linear.lora_b is not None:
      key = jax.random.key(number)
      linear.lora_b[...] = jax.random.normal(key, linear.lora_b.shape)
  return decoder


def _program(decoder, remat, trained, dropout=False):
  """The weights, and a function of them: loss and gradients."""
  graph, params, others = nnx.split(decoder, trained, ...)

  @jax.jit
  def program(params, others):
    def loss(params):
      merged = nnx.merge(graph, params, others)
      if dropout:
        numbers = np.arange(TOKENS.size, dtype=np.int32).reshape(TOKENS.shape)
        models.set_dropout(merged, 0.5, jax.random.key(3), numbers)
      hidden = merged.hidden_of_packed(TOKENS, SEGMENTS, remat)
      return (hidden[SEGMENTS > 0] ** 2 * hidden[SEGMENTS > 0]).sum()

    return jax.value_and_grad(loss)(params)

  return functools.partial(program, params, others), program, (params, others)


def _num_scans(program, weights) -> int:
  return str(jax.make_jaxpr(program)(*weights)).count(' scan[')


def _assert_same(found, expected):
  leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for a, b in leaves:
    scale = float(np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


@pytest.fixture(autouse=True)
def scans_on_a_cpu(monkeypatch):
  monkeypatch.setattr(layer_loop, 'UNROLLED_ON', ())
  # Few layers, which compile faster.
  monkeypatch.setattr(layer_loop, 'FEWEST_LAYERS', 3)


@pytest.fixture
def unrolled(monkeypatch):
  def of(*args, **options):
    with monkeypatch.context() as patch:
      patch.setattr(layer_loop, 'FEWEST_LAYERS', 100)
      run, program, weights = _program(*args, **options)
      assert _num_scans(program, weights) == 0
      return run()

  return of


@pytest.mark.parametrize(
  ('config', 'trained', 'remat'),
  [
    (CONFIG, models.LoRAParam, True),
    (CONFIG, nnx.Param, False),
    (WINDOWED, models.LoRAParam, False),
    (WINDOWED, nnx.Param, True),
  ],
)
def test_same_loss_and_gradients(config, trained, remat, unrolled):
  decoder = _decoder(config)
  run, program, weights = _program(decoder, remat, trained)
  # One forward and one backward.
  assert _num_scans(program, weights) == 2
  _assert_same(run(), unrolled(decoder, remat, trained))


def test_same_dropout(unrolled):
  decoder = _decoder(CONFIG)
  args = decoder, True, models.LoRAParam
  run, program, weights = _program(*args, dropout=True)
  assert _num_scans(program, weights) == 2
  found = run()
  _assert_same(found, unrolled(*args, dropout=True))
  assert not np.allclose(found[0], unrolled(*args)[0])


def test_same_on_a_mesh(unrolled):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  found = _program(_decoder(CONFIG, mesh), True, models.LoRAParam)[0]()
  _assert_same(found, unrolled(_decoder(CONFIG), True, models.LoRAParam))


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('FEWEST_LAYERS', 6),
    ('MOST_BYTES', 100_000),
    ('UNROLLED_ON', ('cpu',)),
  ],
)
def test_few_or_large_layers_are_unrolled(name, value, monkeypatch):
  monkeypatch.setattr(layer_loop, name, value)
  _, program, weights = _program(_decoder(CONFIG), False, models.LoRAParam)
  assert _num_scans(program, weights) == 0


def test_layers_with_adapters_in_some_are_unrolled():
  decoder = _decoder(CONFIG)
  decoder.layers[2].mlp.down_proj.lora_a = None
  decoder.layers[2].mlp.down_proj.lora_b = None
  _, program, weights = _program(decoder, False, models.LoRAParam)
  assert _num_scans(program, weights) == 0
