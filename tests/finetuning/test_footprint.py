"""Counted memory against real arrays, and against what XLA allocates."""

import dataclasses
import subprocess
import sys

from flax import nnx
import jax
import numpy as np
from places import REPOSITORY, python_output
import pytest
import tiny_study

from edsft_jax import models
from edsft_jax.finetuning import batches, footprint
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.trainer import Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models import layer_loop
from edsft_jax.models.responses import Example

LORA = tiny_study.LORA
FULL = dataclasses.replace(LORA, method='full')
CONFIG = models.DecoderConfig(
  vocab_size=97,
  width=64,
  mlp_width=160,
  num_layers=5,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
)
SHAPE = (8, 64)


def _mesh(number=1, **axes) -> jax.sharding.Mesh:
  return make_mesh(devices=jax.devices()[:number], **axes)


def _setup(hyperparameters=LORA, remat='none', mesh=None, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  return footprint.Setup(
    config,
    'float32',
    hyperparameters,
    MemoryOptions(remat=remat),
    mesh or _mesh(),
  )


def _real(setup: footprint.Setup) -> Trainer:
  def load() -> models.Decoder:
    decoder = models.Decoder(setup.config, rngs=nnx.Rngs(0))
    models.shard_decoder(decoder, setup.mesh)
    return decoder

  return Trainer(load, setup.hyperparameters, setup.mesh, setup.options)


def _on_one_device(tree) -> int:
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('hyperparameters', [LORA, FULL], ids=['lora', 'full'])
@pytest.mark.parametrize(
  'mesh',
  [(1, {}), (4, {'data': 1, 'fsdp': 2, 'tensor': 2})],
  ids=['one', 'four'],
)
def test_weights_and_state_are_those_of_the_arrays(hyperparameters, mesh):
  number, axes = mesh
  setup = _setup(hyperparameters, mesh=_mesh(number, **axes))
  counted = footprint.count(setup, SHAPE)
  trainer = _real(setup)
  assert counted.weights == _on_one_device(trainer.frozen)
  state = trainer.init_state(0)
  assert counted.trained == counted.gradients == _on_one_device(state.params)
  steps = 4
  assert counted.optimizer == _on_one_device(state.opt_state) - steps
  assert counted.total == sum(dataclasses.astuple(counted))


@pytest.mark.parametrize('remat', ['none', 'layer'])
def test_residuals_of_all_layers_follow_from_two(remat):
  setup = _setup(remat=remat)
  batch = batches.fill([], SHAPE, groups=1)
  residuals = _real(setup).residuals(batch)
  expected = sum(x.size * x.dtype.itemsize for x in residuals)
  counted = footprint.count(setup, SHAPE)
  assert counted.residuals == expected
  divided = footprint.count(setup._replace(mesh=_mesh(4)), SHAPE)
  assert divided.residuals == pytest.approx(expected / 4, rel=0.05)


def test_with_remat_a_layer_keeps_its_input_alone():
  rows, length = SHAPE
  input_bytes = rows * length * CONFIG.width * 4
  kept, kept_by_more = (
    footprint.count(_setup(remat='layer', num_layers=n), SHAPE).residuals
    for n in (5, 8)
  )
  assert kept_by_more - kept == 3 * input_bytes
  whole = footprint.count(_setup(), SHAPE)
  with_remat = footprint.count(_setup(remat='layer'), SHAPE)
  assert whole.recomputed == 0
  assert whole.residuals > 4 * with_remat.residuals
  assert 5 * with_remat.recomputed == pytest.approx(whole.residuals, rel=0.2)


def test_residuals_hold_no_logits():
  """Residuals and a chunk's logits do not grow with the vocabulary."""
  small, large = (
    footprint.count(_setup(vocab_size=size), SHAPE, most_logits=2**12)
    for size in (97, 9700)
  )
  assert large.residuals == small.residuals
  # At least one target of each row is computed at once.
  assert small.logits <= 2 * 4 * 2**12
  assert large.logits == 2 * 4 * 9700


@pytest.mark.parametrize('num_layers', [5, 12])
@pytest.mark.parametrize('remat', ['none', 'layer'])
@pytest.mark.parametrize('unrolled_on', [('cpu',), ()])
def test_the_compiled_step_needs_what_was_counted(
  remat, num_layers, unrolled_on, monkeypatch
):
  monkeypatch.setattr(layer_loop, 'UNROLLED_ON', unrolled_on)
  setup = _setup(remat=remat, num_layers=num_layers)
  program = _real(setup).lower(batches.fill([], SHAPE, groups=1)).compile()
  counted = footprint.count(setup, SHAPE)
  found = program.memory_analysis().temp_size_in_bytes
  assert (counted.stacked > 0) == (num_layers == 12 and not unrolled_on)
  expected = sum(dataclasses.astuple(counted)) - counted.fixed
  assert found == pytest.approx(expected, rel=0.35)


def test_shapes_are_those_of_the_largest_micro_batches():
  layout = batches.Layout(packing=False, max_rows=0, max_slots=1024, groups=1)
  assert footprint.shapes([100, 40], 16, layout) == [(8, 128)]
  assert footprint.shapes([100, 40], 4, layout) == [(4, 128)]
  assert footprint.shapes([2000, 300], 16, layout) == [(2, 384), (1, 2048)]
  divided = layout._replace(groups=4)
  assert footprint.shapes([100], 5, divided) == [(8, 128)]
  packed = layout._replace(packing=True)
  assert footprint.shapes([30, 10], 16, packed) == [(16, 64)]
  assert footprint.shapes([30, 10], 2, packed) == [(2, 64)]
  assert footprint.shapes([100], 16, packed._replace(max_rows=3)) == [(3, 128)]


@pytest.mark.parametrize('packing', [False, True])
def test_no_micro_batch_is_larger_than_these(packing):
  layout = batches.Layout(packing, max_rows=0, max_slots=1024, groups=1)
  rng = np.random.default_rng(0)
  lengths = rng.integers(5, 300, size=16)
  examples = [Example([3] * n, 2, False, False) for n in lengths]
  counted = footprint.shapes(lengths, 16, layout)
  for batch in batches.micro_batches(examples, layout):
    assert batch.tokens.size <= max(rows * n for rows, n in counted)


def test_the_available_memory_is_the_machine_s():
  whole = footprint.available(_mesh())
  assert 2**28 < whole < 2**46
  assert footprint.available(_mesh(4)) == whole // 4


@pytest.mark.parametrize('remat', ['none', 'layer'])
def test_what_may_not_fit_names_the_options(remat):
  setup = _setup(remat=remat)
  needed = footprint.count(setup, SHAPE)
  (line,) = footprint.describe(needed, 2 * needed.total, setup, SHAPE)
  assert 'micro-batches of 8 x 64 tokens' in line
  _, warning = footprint.describe(needed, needed.total, setup, SHAPE)
  assert 'finetuning.micro_batch_size' in warning
  assert ('finetuning.remat' in warning) == (remat == 'none')
  assert 'mesh.fsdp' in warning
  _, warning = footprint.describe(needed, needed.total, setup, (1, 64))
  assert 'micro_batch_size' not in warning


def _printed(*arguments: str) -> list[str]:
  return subprocess.run(
    [sys.executable, 'scripts/count_memory.py', *arguments],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout.splitlines()


@pytest.mark.slow
def test_the_documented_tables_are_the_counted_ones():
  """One size of one method: each takes seconds."""
  documented = (REPOSITORY / 'docs' / 'accelerators.md').read_text()
  size = ('--sizes', '7B (Llama 2)', '--methods', 'lora')
  for line in _printed('finetuning', *size) + _printed('residuals'):
    assert line in documented


def test_limits_of_the_host_memory_count(tmp_path):
  whole = footprint.host_memory([])
  assert whole > 2**30
  limit = tmp_path / 'memory.max'
  for text, expected in (
    ('max\n', whole),
    (f'{whole * 2}\n', whole),
    ('1000000\n', 1_000_000),
  ):
    limit.write_text(text)
    missing = tmp_path / 'memory.limit_in_bytes'
    assert footprint.host_memory([missing, limit]) == expected
  command = (
    'from edsft_jax.finetuning import footprint; '
    'import resource; '
    'resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34)); '
    'print(footprint.host_memory([]))'
  )
  assert int(python_output('-c', command)) <= min(whole, 2**34)
