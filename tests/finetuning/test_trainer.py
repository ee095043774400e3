"""One optimizer step: right against optax.adamw, on one device and on four."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_study

from edsft_jax import models
from edsft_jax.finetuning.trainer import Recipe, Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models import responses

RECIPE = Recipe(
  method='lora',
  lora_rank=4,
  lora_alpha=8.0,
  lora_targets=('q_proj', 'down_proj'),
  epochs=1,
  batch_size=4,
  max_length=0,
  learning_rate=0.01,
  warmup_fraction=0.1,
  weight_decay=0.1,
  clip_norm=0.5,
)
FULL = dataclasses.replace(RECIPE, method='full')


def _mesh(num_devices=1, **axes) -> jax.sharding.Mesh:
  return make_mesh(devices=jax.devices()[:num_devices], **axes)


def _trainer(recipe, mesh, dtype='float32') -> tuple[models.Decoder, Trainer]:
  decoder = models.load_decoder(tiny_study.MODEL, dtype, mesh)
  return decoder, Trainer(decoder, recipe, mesh)


def _batch(length=16, num_rows=4, seed=0) -> responses.Batch:
  rng = np.random.default_rng(seed)
  examples = [
    responses.Example(rng.integers(3, 60, size=n).tolist(), m, False, False)
    for n, m in ((10, 4), (5, 3), (16, 1), (7, 6))
  ]
  return responses.batch(examples, length, num_rows)


def _train(trainer, batches, seed=0):
  state, losses = trainer.start(seed), []
  for batch in batches:
    state, loss = trainer.step(state, batch, 8, np.float32(0.01))
    losses.append(float(loss))
  return state, losses


def _saved(trainer, state, path) -> models.Decoder:
  """The trained model, through its files."""
  trainer.save(state, path, tiny_study.MODEL, 'base')
  if (path / 'adapter_config.json').exists():
    decoder = models.load_decoder(tiny_study.MODEL, 'float32', _mesh())
    models.load_adapter(decoder, path)
    return decoder
  return models.load_decoder(path, 'float32', _mesh())


def _leaves(decoder, kind=nnx.Param) -> dict:
  return {
    path: np.asarray(variable[...], np.float32)
    for path, variable in nnx.to_flat_state(nnx.state(decoder, kind))
  }


def _expected(decoder, kind, batches) -> dict:
  """The same steps by optax's own AdamW, from the plain mean over tokens."""
  graph, params, rest = nnx.split(decoder, kind, ...)
  optimizer = optax.chain(
    optax.clip_by_global_norm(RECIPE.clip_norm),
    optax.adamw(
      0.01,
      weight_decay=RECIPE.weight_decay,
      mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    ),
  )
  moments = optimizer.init(params)

  def loss(params, batch):
    loss_B = responses.loss(nnx.merge(graph, params, rest), batch, 8)
    return loss_B.sum() / batch.num_response.sum()

  for batch in batches:
    gradients = jax.jit(jax.grad(loss))(params, batch)
    updates, moments = optimizer.update(gradients, moments, params)
    params = optax.apply_updates(params, updates)
  return _leaves(nnx.merge(graph, params, rest), kind)


BATCHES = [_batch(seed=seed) for seed in range(3)]


def test_lora_is_adamw_on_the_adapters(tmp_path):
  decoder, trainer = _trainer(RECIPE, _mesh())
  base = _leaves(decoder)
  state, losses = _train(trainer, BATCHES, seed=3)
  trained = _saved(trainer, state, tmp_path)
  fresh = models.load_decoder(tiny_study.MODEL, 'float32', _mesh())
  models.add_lora(fresh, 4, 8.0, RECIPE.lora_targets, nnx.Rngs(3))
  expected = _expected(fresh, models.LoRAParam, BATCHES)
  found = _leaves(trained, models.LoRAParam)
  assert found.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_allclose(found[path], array, rtol=1e-4, atol=1e-6)
  # The base is as it was, in the decoder that was given and in the result.
  for path, array in base.items():
    assert np.array_equal(_leaves(decoder)[path], array)
    assert np.array_equal(_leaves(trained)[path], array)
  first = responses.loss(decoder, BATCHES[0], 8).sum() / 14
  np.testing.assert_allclose(losses[0], first, rtol=1e-5)


def test_full_is_adamw_on_everything(tmp_path):
  decoder, trainer = _trainer(FULL, _mesh())
  base = _leaves(decoder)
  state, _ = _train(trainer, BATCHES)
  found = _leaves(_saved(trainer, state, tmp_path))
  expected = _expected(decoder, nnx.Param, BATCHES)
  assert found.keys() == base.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_allclose(found[path], array, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(found[path], base[path]), path
    assert np.array_equal(_leaves(decoder)[path], base[path]), path


@pytest.mark.parametrize('recipe', [RECIPE, FULL], ids=['lora', 'full'])
@pytest.mark.parametrize(
  ('num_devices', 'axes'), [(4, {}), (4, {'fsdp': 2, 'tensor': 2})]
)
def test_same_on_several_devices(recipe, num_devices, axes):
  _, one = _trainer(recipe, _mesh())
  _, several = _trainer(recipe, _mesh(num_devices, **axes))
  state, losses = _train(one, BATCHES)
  state_4, losses_4 = _train(several, BATCHES)
  np.testing.assert_allclose(losses_4, losses, rtol=1e-5)
  for a, b in zip(state.params, state_4.params, strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5)
  assert several._step._cache_size() == 1


def test_padding_changes_nothing():
  _, trainer = _trainer(RECIPE, _mesh())
  state, losses = _train(trainer, [_batch()] * 2)
  wide_state, wide_losses = _train(trainer, [_batch(48, 9)] * 2)
  np.testing.assert_allclose(wide_losses, losses, rtol=1e-5)
  for a, b in zip(state.params, wide_state.params, strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5)


def test_seed_sets_the_initialisation():
  _, trainer = _trainer(RECIPE, _mesh())
  first, again, other = (trainer.start(seed).params for seed in (0, 0, 1))
  assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not all(
    np.array_equal(a, b) for a, b in zip(first, other, strict=True)
  )


def test_bfloat16_is_trained_in_float32(tmp_path):
  _, trainer = _trainer(FULL, _mesh(), 'bfloat16')
  state, losses = _train(trainer, BATCHES)
  assert all(leaf.dtype == jnp.float32 for leaf in state.params)
  assert np.all(np.isfinite(losses))
  trainer.save(state, tmp_path, tiny_study.MODEL, 'base')
  saved = models.load_decoder(tmp_path, 'bfloat16', _mesh())
  assert '"bfloat16"' in (tmp_path / 'config.json').read_text()
  assert not np.array_equal(
    saved.embed_tokens.weight[...],
    models.load_decoder(
      tiny_study.MODEL, 'bfloat16', _mesh()
    ).embed_tokens.weight[...],
  )


def test_compiled_once_for_a_shape():
  """Cells differ in seed, learning rate and state, which are arguments."""
  _, trainer = _trainer(RECIPE, _mesh())
  _train(trainer, BATCHES, seed=0)
  _train(trainer, BATCHES, seed=1)
  assert trainer._step._cache_size() == 1
