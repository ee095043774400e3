"""All seven stages on the built-in demo, as the quickstart runs them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from places import REPOSITORY
import pyarrow.parquet as pq
import pytest
from small_study import SMALL, small
import tiny_study

from configs import quickstart
from edsft_jax import errors, pipeline, store, study

NUM_DEVICES = 4


def _command(workdir: pathlib.Path, **options):
  options = {**SMALL, **options}
  flags = [f'--config.{name}={value}' for name, value in options.items()]
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'edsft_jax.main',
      '--config=configs/quickstart.py',
      f'--workdir={workdir}',
      *flags,
    ],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={NUM_DEVICES}',
    },
    capture_output=True,
    text=True,
    check=False,
  )


def _stamps(root: pathlib.Path) -> dict[str, int]:
  """When each result was written; manifest.json keeps a clock of its own."""
  return {
    str(path.relative_to(root)): path.stat().st_mtime_ns
    for path in root.rglob('*')
    if path.is_file() and path.name not in ('manifest.json', 'config.json')
  }


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """The quickstart, cut small, on four devices."""
  root = tmp_path_factory.mktemp('demo')
  return root, _command(root)


def test_demo_on_four_devices_leaves_every_file_of_the_contract(demo):
  root, result = demo
  assert result.returncode == 0, result.stderr
  workdir = store.Workdir(root)
  config = small()
  pool = store.read_prompts(workdir.pool)
  scores = pq.read_table(workdir.scores)
  features = np.load(workdir.features)
  assert scores['id'].to_pylist() == pool.ids
  assert features.shape[0] == len(pool)
  assert np.isfinite(features).all()

  cells = [
    *study.cells(config),
    *study.full_pool_cells(config, len(pool)),
    study.no_finetuning_cell(),
  ]
  assert len(cells) == 4 * 2 * 2 + 2 + 1
  for cell in cells:
    path = workdir.run(cell.name).evaluation('heldout')
    evaluation = store.read_json(path)
    assert (
      evaluation['strategy'],
      evaluation['budget'],
      evaluation['seed'],
    ) == (cell.strategy, cell.budget, cell.seed)
    assert evaluation['metrics']['loss']['n'] == 12
  assert {p.name for p in workdir.runs.iterdir()} == {c.name for c in cells}
  assert workdir.report.exists()
  manifest = store.read_json(workdir.manifest)
  assert set(manifest['stages']) >= set(pipeline.STAGES)
  assert len(manifest['devices']) == NUM_DEVICES
  assert store.read_json(workdir.config)['study']['budgets'] == [8, 16]


def test_demo_prints_the_table_and_the_path_of_the_report(demo):
  root, result = demo
  for word in (
    *quickstart.get_config().selection.strategies,
    '8 answers',
    '16 answers',
    'full pool',
    'no finetuning',
    'Selection took',
    str(root / 'report' / 'index.html'),
  ):
    assert word in result.stdout, word
  assert 'Traceback' not in result.stderr


def test_one_device_chooses_the_same_prompts(demo, tmp_path):
  root, _ = demo
  config = small()
  with tiny_study.on_one_device():
    pipeline.run(config, store.Workdir(tmp_path), ('pool', 'score', 'select'))
  for strategy in config.selection.strategies:
    for seed in config.study.seeds:
      assert study.selected_ids(
        store.Workdir(tmp_path), strategy, seed
      ) == study.selected_ids(store.Workdir(root), strategy, seed)
  ours, theirs = (
    pq.read_table(store.Workdir(r).scores) for r in (tmp_path, root)
  )
  assert ours['generation'].equals(theirs['generation'])
  np.testing.assert_allclose(
    ours['mean_margin'].to_numpy(), theirs['mean_margin'].to_numpy(), atol=1e-5
  )


def test_a_second_run_writes_nothing(demo):
  root, _ = demo
  before = _stamps(root)
  pipeline.run(small(), store.Workdir(root))
  assert _stamps(root) == before


def test_more_cells_redo_nothing(demo):
  root, _ = demo
  before = _stamps(root)
  more = {
    'study.budgets': (8, 16, 20),
    'study.seeds': (0,),
    'selection.strategies': ('random', 'min_margin'),
  }
  # On as many devices, for which everything is compiled.
  result = _command(root, **more)
  assert result.returncode == 0, result.stderr
  after = _stamps(root)
  new = {name.split('/')[1] for name in after.keys() - before.keys()}
  assert {'random-k20-seed0', 'min_margin-k20-seed0'} <= new
  for name, stamp in before.items():
    part = name.split('/')[0]
    if part in ('pool', 'heldout', 'scores', 'runs'):
      assert after[name] == stamp, name


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('pool.limit', 140),
    ('scoring.max_new_tokens', 5),
    ('finetuning.learning_rate', 5e-4),
    ('evaluation.limit', 11),
    ('prompt.separator', ' '),
  ],
)
def test_changed_inputs_are_refused_by_name(demo, option, value):
  root, _ = demo
  before = _stamps(root)
  config = store.Workdir(root).config.read_bytes()
  with pytest.raises(errors.InputError, match=option.replace('.', r'\.')):
    pipeline.run(small(**{option: value}), store.Workdir(root))
  assert _stamps(root) == before
  assert store.Workdir(root).config.read_bytes() == config
