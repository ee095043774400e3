"""The study's controls, on small pools."""

import csv
import subprocess
import sys

import numpy as np
from places import REPOSITORY, script_module
import pytest

from configs import default
from edsft_jax import store
from edsft_jax.strategies import registry
from edsft_jax.strategies.view import View


@pytest.fixture(scope='module')
def controls():
  """The script, whose strategies do not stay in the registry."""
  before = dict(registry.STRATEGIES)
  yield script_module('controls')
  registry.STRATEGIES.clear()
  registry.STRATEGIES.update(before)


def _view(families) -> View:
  ids = [f'p{i}' for i in range(len(families))]
  pool = store.Prompts(ids, ids, tasks=families)
  return View.of(default.get_config(), pool, families)


def test_the_useful_half_is_chosen_at_random_and_alone(controls):
  useful, useless = controls.USEFUL[0], controls.USELESS[0]
  view = _view([useful, useless] * 20)
  orders = [controls.useful_half(view, 20, seed).indices for seed in (0, 1)]
  for order in orders:
    assert sorted(order) == list(range(0, 40, 2))
  assert not np.array_equal(*orders)
  first = controls.useful_half(view, 5, 0).indices
  np.testing.assert_array_equal(first, orders[0][:5])


def test_random_again_is_another_random(controls):
  view = _view(['a'] * 50)
  again = controls.random_again(view, 50, 0).indices
  assert sorted(again) == list(range(50))
  random = registry.STRATEGIES['random'].choose(view, 50, 0).indices
  assert not np.array_equal(again, random)


@pytest.mark.slow
def test_the_script_finds_its_config(tmp_path):
  command = [sys.executable, REPOSITORY / 'scripts' / 'controls.py', '--help']
  subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['planted', 'null'])
def test_a_control_writes_its_table(name, controls, tmp_path, shared):
  data = shared / 'data'
  controls.main(
    [
      name,
      f'--model={shared / "models" / "stories260K"}',
      f'--pool={data / "sni_pool.jsonl.gz"}',
      f'--heldout={data / "sni_heldout.jsonl.gz"}',
      f'--folder={tmp_path}',
      '--repetitions=1',
      '--num_prompts=3000',
    ]
  )
  with (tmp_path / f'{name}.csv').open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert 'random' in row['verdict']
  assert float(row['low']) < float(row['difference']) < float(row['high'])
  if name == 'planted':
    pool = store.read_prompts(
      store.Workdir(tmp_path / 'planted' / 'workdir').pool
    )
    counts = {task: pool.tasks.count(task) for task in {*pool.tasks}}
    useful = sum(counts[task] for task in controls.USEFUL)
    useless = sum(counts[task] for task in controls.USELESS)
    # Some prompts have the same text and are merged.
    assert abs(useful - useless) < 0.05 * len(pool)
