"""One optimizer step: right against optax.adamw, on one device and on four."""

import dataclasses
import functools
import gc

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_study

from edsft_jax import models
from edsft_jax.finetuning import batches
from edsft_jax.finetuning.loss import loss as summed_loss
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.trainer import Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models.responses import Example

LORA = tiny_study.LORA
FULL = dataclasses.replace(LORA, method='full')


MESHES = {
  'one': (1, {}),
  'data': (4, {}),
  'weights': (4, {'data': 1, 'fsdp': 2, 'tensor': 2}),
}


def _mesh(name='one') -> jax.sharding.Mesh:
  num_devices, axes = MESHES[name]
  return make_mesh(devices=jax.devices()[:num_devices], **axes)


@functools.cache
def _trainer(hyperparameters, mesh='one') -> tuple[models.Decoder, Trainer]:
  decoder = models.load_decoder(tiny_study.MODEL, 'float32', _mesh(mesh))
  # As `_expected` has them: Adam makes much of the rounding of small gradients.
  memory = MemoryOptions(packing=False)
  return decoder, Trainer(lambda: decoder, hyperparameters, _mesh(mesh), memory)


def _examples(seed=0) -> list[Example]:
  rng = np.random.default_rng(seed)
  return [
    Example(rng.integers(3, 60, size=n).tolist(), m, False, False)
    for n, m in ((10, 4), (5, 3), (16, 1), (7, 6))
  ]


def _train(trainer, steps, seed=0):
  state, losses = trainer.init_state(seed), []
  for examples in steps:
    state, loss = trainer.step(state, examples, np.float32(0.01))
    losses.append(float(loss))
  return state, losses


def _saved(trainer, state, path) -> models.Decoder:
  """The trained model, through its files."""
  if trainer.hyperparameters.method == 'lora':
    models.save_adapter(trainer.decoder(state), path, 'base')
    decoder = models.load_decoder(tiny_study.MODEL, 'float32', _mesh())
    models.load_adapter(decoder, path)
    return decoder
  models.save_decoder(trainer.decoder(state), path, tiny_study.MODEL)
  return models.load_decoder(path, 'float32', _mesh())


def _leaves(decoder, kind=nnx.Param) -> dict:
  return {
    path: np.asarray(variable[...], np.float32)
    for path, variable in nnx.to_flat_state(nnx.state(decoder, kind))
  }


def _expected(decoder, kind, steps) -> tuple[dict, list[float]]:
  """The same steps by optax's own AdamW, from the plain mean over tokens."""
  graph, params, rest = nnx.split(decoder, kind, ...)
  optimizer = optax.chain(
    optax.clip_by_global_norm(LORA.clip_norm),
    optax.adamw(
      0.01,
      weight_decay=LORA.weight_decay,
      mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    ),
  )
  moments = optimizer.init(params)

  def loss(params, batch):
    merged = nnx.merge(graph, params, rest)
    return summed_loss(merged, batch) / batch.num_targets.sum()

  @jax.jit
  def step(params, moments, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments, value

  losses = []
  for examples in steps:
    (batch,) = batches.micro_batches(
      examples, batches.Layout(False, 4, 0, groups=1)
    )
    params, moments, value = step(params, moments, batch)
    losses.append(float(value))
  return _leaves(nnx.merge(graph, params, rest), kind), losses


STEPS = [_examples(seed) for seed in range(3)]


def test_lora_is_adamw_on_the_adapters(tmp_path):
  decoder, trainer = _trainer(LORA)
  base = _leaves(decoder)
  state, losses = _train(trainer, STEPS, seed=3)
  trained = _saved(trainer, state, tmp_path)
  fresh = models.load_decoder(tiny_study.MODEL, 'float32', _mesh())
  models.add_lora(fresh, 4, 8.0, LORA.lora_targets, nnx.Rngs(3))
  expected, expected_losses = _expected(fresh, models.LoRAParam, STEPS)
  found = _leaves(trained, models.LoRAParam)
  assert found.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_allclose(found[path], array, rtol=1e-4, atol=1e-6)
  # The base is as it was, in the decoder that was given and in the result.
  for path, array in base.items():
    assert np.array_equal(_leaves(decoder)[path], array)
    assert np.array_equal(_leaves(trained)[path], array)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


def test_full_is_adamw_on_everything(tmp_path):
  decoder, trainer = _trainer(FULL)
  base = _leaves(decoder)
  state, losses = _train(trainer, STEPS)
  found = _leaves(_saved(trainer, state, tmp_path))
  expected, expected_losses = _expected(decoder, nnx.Param, STEPS)
  assert found.keys() == base.keys() == expected.keys()
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for path, array in expected.items():
    np.testing.assert_allclose(found[path], array, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(found[path], base[path]), path
    assert np.array_equal(_leaves(decoder)[path], base[path]), path


@pytest.mark.parametrize(
  ('hyperparameters', 'mesh'), [(LORA, 'data'), (FULL, 'weights')]
)
def test_same_on_several_devices(hyperparameters, mesh):
  state, losses = _train(_trainer(hyperparameters)[1], STEPS)
  several = _trainer(hyperparameters, mesh)[1]
  state_4, losses_4 = _train(several, STEPS)
  np.testing.assert_allclose(losses_4, losses, rtol=1e-5)
  for a, b in zip(state.params, state_4.params, strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5)
  assert several.gradients._cache_size() == 1


def test_seed_sets_the_initialisation():
  _, trainer = _trainer(LORA)
  first, again, other = (trainer.init_state(seed).params for seed in (0, 0, 1))
  assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not all(
    np.array_equal(a, b) for a, b in zip(first, other, strict=True)
  )


def test_bfloat16_is_trained_in_float32(tmp_path):
  """An update below bfloat16's resolution is not lost."""
  decoder = models.load_decoder(tiny_study.MODEL, 'bfloat16', _mesh())
  trainer = Trainer(lambda: decoder, FULL, _mesh())
  start = [np.asarray(leaf) for leaf in trainer.init_state(0).params]
  state, loss = trainer.step(trainer.init_state(0), STEPS[0], np.float32(1e-6))
  assert np.isfinite(loss)
  assert all(leaf.dtype == jnp.float32 for leaf in state.params)
  assert not any(
    np.array_equal(a, b) for a, b in zip(start, state.params, strict=True)
  )
  models.save_decoder(trainer.decoder(state), tmp_path, tiny_study.MODEL)
  assert '"bfloat16"' in (tmp_path / 'config.json').read_text()
  models.load_decoder(tmp_path, 'bfloat16', _mesh())


def _live_bytes() -> int:
  gc.collect()
  return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize(
  'dtype', ['bfloat16', pytest.param('float32', marks=pytest.mark.slow)]
)
def test_full_finetuning_has_one_copy_of_the_weights(dtype):
  """In float32, with two moments; the next cell starts from the base again."""
  before = _live_bytes()
  load = functools.partial(
    models.load_decoder, tiny_study.MODEL, dtype, _mesh()
  )
  trainer = Trainer(load, FULL, _mesh())
  starts = []
  for _ in range(2):
    state = trainer.init_state(0)
    starts.append([np.array(leaf) for leaf in state.params])
    size = sum(leaf.nbytes for leaf in starts[-1])
    assert 0 <= _live_bytes() - before - 3 * size < 100
    state, _ = trainer.step(state, STEPS[0], np.float32(0.01))
    assert 0 <= _live_bytes() - before - 3 * size < 100
    del state
  for first, again in zip(*starts, strict=True):
    assert np.array_equal(first, again)


def test_compiled_once_for_a_shape():
  """Cells differ in seed, learning rate and state, which are arguments."""
  _, trainer = _trainer(LORA)
  before = trainer.gradients._cache_size()
  _train(trainer, STEPS, seed=0)
  _train(trainer, STEPS, seed=1)
  assert trainer.gradients._cache_size() - before <= 1
