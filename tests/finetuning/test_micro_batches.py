"""Packing, micro-batches, chunks and remat change neither loss nor gradient.

On a small pretrained model, with examples of unequal length.
"""

from concurrent import futures
import dataclasses
import functools
import re
import threading

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_study

from edsft_jax import errors, mesh, models
from edsft_jax.finetuning import batches
from edsft_jax.finetuning.loss import loss as summed_loss
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.trainer import Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models import attention
from edsft_jax.models.attention import KEPT_SCORES_LENGTH
from edsft_jax.models.responses import Example

LORA = dataclasses.replace(
  tiny_study.LORA,
  lora_targets=('q_proj', 'v_proj', 'down_proj'),
  batch_size=8,
  weight_decay=0.0,
  clip_norm=1.0,
)
LENGTHS = ((40, 30), (12, 2), (90, 70), (7, 3), (33, 1), (21, 20), (16, 8))


@pytest.fixture(scope='module')
def path(shared):
  return shared / 'models' / 'stories260K'


@pytest.fixture(scope='module')
def decoder(path) -> models.Decoder:
  one_device = make_mesh(devices=jax.devices()[:1])
  return models.load_decoder(path, 'float32', one_device)


@functools.cache
def _examples() -> tuple[Example, ...]:
  rng = np.random.default_rng(0)
  return tuple(
    Example(rng.integers(3, 500, size=n).tolist(), m, False, False)
    for n, m in LENGTHS
  )


@pytest.fixture(scope='module')
def gradients(decoder):
  """Loss and all gradients of the sum over micro-batches."""
  graph, params = nnx.split(decoder)

  @functools.partial(jax.jit, static_argnames=('remat', 'most_logits'))
  def of_batch(params, batch, remat, most_logits):
    loss = lambda p: summed_loss(nnx.merge(graph, p), batch, remat, most_logits)
    return jax.value_and_grad(loss)(params)

  def of_all(micro_batches, remat=False, most_logits=0):
    sums = None
    for batch in micro_batches:
      part = of_batch(params, batch, remat, most_logits)
      sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    return jax.tree.leaves(sums)

  return of_all


@pytest.fixture(scope='module')
def plain(gradients):
  """One row per example, all at once, whole logits."""
  rows = [[example] for example in _examples()]
  batch = batches.fill(rows, (8, 96), groups=1)
  return gradients([batch], most_logits=2**30)


def _assert_same(found, expected) -> None:
  for a, b in zip(found, expected, strict=True):
    scale = float(np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(
  ('layout', 'options'),
  [
    (batches.Layout(False, 8, 0, 1), {'remat': True}),
    (batches.Layout(False, 8, 0, 1), {'most_logits': 512 * 10}),
    (batches.Layout(False, 2, 0, 1), {}),
    (batches.Layout(True, 8, 0, 1), {}),
    (batches.Layout(True, 1, 0, 1), {'remat': True, 'most_logits': 512 * 7}),
    (batches.Layout(True, 0, 256, 2), {}),
  ],
  ids=['remat', 'chunks', 'accumulated', 'packed', 'all', 'groups'],
)
def test_same_loss_and_gradients(gradients, plain, layout, options):
  micro_batches = batches.micro_batches(_examples(), layout)
  _assert_same(gradients(micro_batches, **options), plain)


def _long_batch() -> batches.MicroBatch:
  """Two rows whose scores are not kept."""
  length = KEPT_SCORES_LENGTH + 100
  rng = np.random.default_rng(2)
  tokens = rng.integers(3, 500, size=(2, length)).tolist()
  rows = [[Example(t, 9, False, False)] for t in tokens]
  return batches.fill(rows, (2, length), groups=1)


def test_remat_of_rows_whose_scores_are_not_kept(gradients):
  """Layers are computed again, and in each of them attention once more."""
  batch = _long_batch()
  _assert_same(gradients([batch], remat=True), gradients([batch]))


@pytest.mark.parametrize(
  'targets', [('q_proj', 'v_proj'), ('k_proj', 'down_proj'), ('v_proj',)]
)
def test_the_first_layer_may_train_less_than_the_others(decoder, targets):
  """Where its inputs are frozen, and with them some of q, k and v."""
  adapted = nnx.merge(*nnx.split(decoder))
  models.add_lora(adapted, 4, 8.0, targets, nnx.Rngs(0))
  graph, params, frozen = nnx.split(adapted, models.LoRAParam, ...)
  batch = _long_batch()

  def gradients(remat, kept_length):
    def loss(params):
      return summed_loss(nnx.merge(graph, params, frozen), batch, remat)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(attention, 'KEPT_SCORES_LENGTH', kept_length)
      jax.clear_caches()
      return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

  plain = gradients(False, 10_000)
  assert all(np.abs(gradient).max() > 0 for gradient in plain[1::2])
  for remat in (False, True):
    _assert_same(gradients(remat, KEPT_SCORES_LENGTH), plain)


def test_neighbours_in_a_row_change_nothing(decoder):
  graph, params = nnx.split(decoder)
  hidden_of = jax.jit(
    lambda params, tokens, segments: nnx.merge(graph, params).hidden_of_packed(
      tokens, segments, remat=False
    )
  )
  rng = np.random.default_rng(1)
  tokens = rng.integers(3, 500, size=(1, 64)).astype(np.int32)
  segments = np.repeat([1, 2, 3, 0], [20, 30, 9, 5])[None].astype(np.int32)
  before = np.asarray(hidden_of(params, tokens, segments))
  others = segments[0] != 2
  changed = np.where(others, rng.integers(3, 500, size=64), tokens)
  after = np.asarray(hidden_of(params, changed.astype(np.int32), segments))
  assert np.array_equal(after[0, ~others], before[0, ~others])
  assert not np.allclose(after[0, others], before[0, others])
  read = jax.jit(models.Decoder.__call__)
  alone = read(decoder, tokens[:, 20:50], np.ones((1, 30), bool)).hidden_BxLxD
  np.testing.assert_allclose(before[0, ~others], alone[0], rtol=1e-5, atol=1e-5)


def test_lengths_of_packed_examples_set_dynamic_rope():
  """Each example rotates by its own length, not by the row's."""
  config = models.DecoderConfig(
    vocab_size=64,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    window=6,
    full_layers=(1,),
    rope=models.Rope(kind='dynamic', factor=4.0, original_context=8),
    window_rope=models.Rope(theta=100.0),
  )
  decoder = models.Decoder(config, rngs=nnx.Rngs(0))
  tokens = np.random.default_rng(0).integers(3, 64, size=(1, 32))
  segments = np.repeat([1, 2, 3], [5, 20, 7])[None]
  parts = (0, 5), (5, 25), (25, 32)
  graph, params = nnx.split(decoder)

  @jax.jit
  def hidden_of(params, tokens, segments):
    merged = nnx.merge(graph, params)
    packed = merged.hidden_of_packed(tokens, segments, remat=False)
    alone = []
    for start, end in parts:
      mask = jnp.ones((1, end - start), bool)
      alone.append(merged(tokens[:, start:end], mask).hidden_BxLxD)
    return packed, alone

  packed, alone = hidden_of(params, tokens, segments)
  for (start, end), expected in zip(parts, alone, strict=True):
    np.testing.assert_allclose(
      packed[:, start:end], expected, rtol=1e-5, atol=1e-5
    )


def _curve(path, mesh, options, steps=4) -> list[float]:
  decoder = models.load_decoder(path, 'float32', mesh)
  trainer = Trainer(lambda: decoder, LORA, mesh, options)
  state, losses = trainer.init_state(0), []
  for step in range(steps):
    examples = _examples()[step % 2 :]
    state, loss = trainer.step(state, examples, np.float32(1e-3))
    losses.append(float(loss))
  return losses


@pytest.fixture(scope='module')
def curve(path) -> list[float]:
  one_device = make_mesh(devices=jax.devices()[:1])
  return _curve(path, one_device, MemoryOptions(packing=False))


@pytest.mark.parametrize(
  'axes',
  [
    pytest.param(
      {'data': 4, 'fsdp': 1, 'tensor': 2},
      marks=pytest.mark.slow,
      id='data-tensor',
    ),
    pytest.param(
      {'data': 1, 'fsdp': 8, 'tensor': 1}, marks=pytest.mark.slow, id='fsdp'
    ),
    pytest.param({'data': 2, 'fsdp': 2, 'tensor': 2}, id='all'),
  ],
)
def test_same_loss_curve_on_eight_devices(path, curve, axes):
  found = _curve(path, make_mesh(**axes), MemoryOptions(1))
  np.testing.assert_allclose(found, curve, rtol=1e-5)


def _products(program: str) -> set[tuple[int, ...]]:
  """Shapes, sorted, of the results of all products."""
  found = re.findall(
    r'stablehlo.dot_general.*-> tensor<(.*)x[a-z]+\d+>', program
  )
  return {tuple(sorted(map(int, shape.split('x')))) for shape in found}


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_frozen_matrices_have_no_gradient_products(decoder, method):
  hyperparameters = dataclasses.replace(LORA, method=method)
  one_device = make_mesh(devices=jax.devices()[:1])
  trainer = Trainer(lambda: decoder, hyperparameters, one_device)
  batch = batches.fill([_examples()[:2]], (1, 96), groups=1)
  shapes = {
    tuple(sorted(weight.shape))
    for path, weight in nnx.to_flat_state(nnx.state(decoder, nnx.Param))
    if weight.ndim == 2
  }
  products = _products(trainer.lower(batch).as_text())
  assert products & shapes == (shapes if method == 'full' else set())


class _Scarce:
  """What a device raises, raised in its place: no CPU runs out so early.

  Computes nothing.

  Attributes:
    most_slots: slots of the largest micro-batch that fits.
    shapes: those of all micro-batches so far.
  """

  def __init__(self, most_slots: int):
    self.most_slots = most_slots
    self.shapes: list[tuple[int, int]] = []

  def gradients(self, sums, params, frozen, batch, *key):
    self.check(batch, jax.errors.JaxRuntimeError)
    return sums

  def check(self, batch, error) -> None:
    self.shapes.append(batch.tokens.shape)
    if batch.tokens.size > self.most_slots:
      raise error('RESOURCE_EXHAUSTED: Out of memory')


def _scarce_trainer(decoder, options, most_slots) -> tuple[Trainer, _Scarce]:
  one_device = make_mesh(devices=jax.devices()[:1])
  trainer = Trainer(lambda: decoder, LORA, one_device, options)
  scarce = _Scarce(most_slots)
  trainer.gradients = scarce.gradients
  return trainer, scarce


def _of_lengths(*lengths) -> list[Example]:
  return [Example([3] * n, 2, False, False) for n in lengths]


@pytest.mark.parametrize(
  ('options', 'lengths', 'shapes'),
  [
    # Fewer examples than rows.
    (MemoryOptions(32), [90] * 16, [(16, 96), (8, 96), (8, 96)]),
    (MemoryOptions(32, packing=False), [90] * 2, [(2, 96)] + [(1, 96)] * 2),
    # Rows that are longer than the examples.
    (MemoryOptions(), [60] * 16, [(8, 128), (4, 128), (4, 128)]),
    (MemoryOptions(), [30] * 3, [(1, 96)] + [(1, 48)] * 3),
  ],
)
def test_half_of_the_micro_batch_that_did_not_fit(
  decoder, capsys, options, lengths, shapes
):
  (rows, length), half = shapes[0], shapes[1]
  trainer, scarce = _scarce_trainer(decoder, options, rows * length // 2)
  trainer.loss(trainer.init_state(0), _of_lengths(*lengths))
  assert scarce.shapes == shapes
  assert (
    f'out of memory with a micro-batch of {rows} x {length} tokens: continuing '
    f'with {half[0]} x {half[1]}\n'
  ) in capsys.readouterr().out


@pytest.mark.parametrize('micro_batch_size', [0, 32])
def test_longer_examples_do_not_enlarge_halved_micro_batches(
  decoder, micro_batch_size
):
  options = MemoryOptions(micro_batch_size, packing=False)
  trainer, scarce = _scarce_trainer(decoder, options, most_slots=512)
  state = trainer.init_state(0)
  trainer.loss(state, _of_lengths(*[90] * 10))
  assert scarce.shapes == [(10, 96), (5, 96), (5, 96)]
  trainer.loss(state, _of_lengths(*[500] * 4))
  assert scarce.shapes[3:] == [(1, 512)] * 4


def test_micro_batches_are_halved_once(decoder):
  """Then an error names the options."""
  trainer, scarce = _scarce_trainer(decoder, MemoryOptions(4), most_slots=200)
  state = trainer.init_state(0)
  state, _ = trainer.step(state, _examples(), np.float32(1e-3))
  assert scarce.shapes[:2] == [(3, 96), (1, 96)]
  scarce.most_slots = 100
  with pytest.raises(
    errors.InputError,
    match=r"1 row of 128 tokens .*use finetuning.remat='layer' or more devices "
    'with mesh.fsdp, or remove all cells and use .*max_length$',
  ):
    trainer.step(state, _of_lengths(100, 100), np.float32(1e-3))


def test_what_is_set_already_is_not_proposed(decoder):
  options = MemoryOptions(4, remat='layer')
  trainer, _ = _scarce_trainer(decoder, options, most_slots=100)
  with pytest.raises(errors.InputError) as raised:
    trainer.loss(trainer.init_state(0), _of_lengths(*[90] * 4))
  assert str(raised.value) == (
    'finetuning runs out of memory with 2 rows of 96 tokens at a time: use '
    'finetuning.micro_batch_size=1 or more devices with mesh.fsdp'
  )


def test_held_out_losses_halve_micro_batches_too(decoder, monkeypatch):
  trainer, scarce = _scarce_trainer(decoder, MemoryOptions(), most_slots=256)
  state, shard_batch = trainer.init_state(0), mesh.shard_batch
  expected = trainer.nll(state, _examples())

  def scarce_transfer(of_mesh, batch):
    scarce.check(batch, ValueError)
    return shard_batch(of_mesh, batch)

  monkeypatch.setattr(mesh, 'shard_batch', scarce_transfer)
  assert trainer.nll(state, _examples()) == expected
  assert scarce.shapes == [(2, 128)]
  scarce.most_slots = 128
  np.testing.assert_allclose(
    trainer.nll(state, _examples()), expected, rtol=1e-5
  )
  assert scarce.shapes[1:] == [(2, 128), (1, 128), (1, 128)]


def test_two_threads_that_run_out_of_memory_halve_once(decoder, monkeypatch):
  trainer, scarce = _scarce_trainer(decoder, MemoryOptions(), most_slots=128)
  state, shard_batch = trainer.init_state(0), mesh.shard_batch
  both = threading.Barrier(2, timeout=60)

  def scarce_transfer(of_mesh, batch):
    if batch.tokens.size > scarce.most_slots:
      both.wait()
    scarce.check(batch, ValueError)
    return shard_batch(of_mesh, batch)

  monkeypatch.setattr(mesh, 'shard_batch', scarce_transfer)
  with futures.ThreadPoolExecutor(2) as pool:
    running = [pool.submit(trainer.nll, state, _examples()) for _ in range(2)]
    first, second = (ended.result() for ended in running)
  assert first == second
  assert sorted(scarce.shapes) == [(1, 128)] * 4 + [(2, 128)] * 2
