"""Files in other storages: read through fsspec, refused as a workdir."""

import json
import os
import sys

import fsspec
import numpy as np
import pytest
import safetensors.numpy

from configs import default
from edsft_jax import annotation, errors, pool, store
from edsft_jax.store import remote

ROWS = [{'id': f'p{i}', 'prompt': f'What is {i}?'} for i in range(5)]


def _put(path: str, rows: list[dict]) -> str:
  with fsspec.open(path, 'w') as f:
    f.write(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_pool_heldout_and_answers_come_from_anywhere(tmp_path):
  config = default.get_config()
  config.pool.path = _put('memory://study/pool.jsonl', ROWS)
  held = [{'prompt': 'And 7?', 'response': 'Seven.'}]
  config.pool.heldout_path = _put('memory://study/held.jsonl', held)
  workdir = store.Workdir(tmp_path / 'w')
  pool.check(config, workdir, frozenset())
  pool.run(config, workdir)
  assert store.read_prompts(workdir.pool).ids == [row['id'] for row in ROWS]
  assert store.read_prompts(workdir.heldout).responses == ['Seven.']

  # The same file elsewhere is the same pool.
  config.pool.path = str(tmp_path / 'pool.jsonl')
  (tmp_path / 'pool.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in ROWS)
  )
  pool.run(config, workdir)

  config.selection.strategies = ('random',)
  config.study.budgets, config.study.seeds = (5,), (0,)
  store.write_jsonl(workdir.selection('random', 0), ROWS)
  answers = [{'id': row['id'], 'response': 'x'} for row in ROWS]
  config.annotation.answers_path = _put('memory://study/answers.jsonl', answers)
  annotation.run(config, workdir)
  assert annotation.missing(workdir) == 0


@pytest.mark.parametrize(
  'path', ['memory://study/none.jsonl', 'nosuch://bucket/pool.jsonl']
)
def test_what_cannot_be_fetched_is_one_line(path):
  with pytest.raises(errors.InputError, match=r'pool\.path=\w+://.*cannot be'):
    remote.local(path, 'pool.path')


def test_without_fsspec_the_remedy_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'fsspec', None)
  with pytest.raises(errors.InputError, match='pip install fsspec'):
    remote.local('memory://study/other.jsonl', 'pool.path')


def test_wildcards_with_a_scheme_are_refused():
  with pytest.raises(errors.InputError, match='has wildcards'):
    remote.local('memory://study/*.jsonl', 'pool.path')


def test_a_path_without_a_scheme_stays_as_it_is(tmp_path):
  for path in (str(tmp_path / 'x.jsonl'), 'a:b/c.jsonl', 'C:/x.csv'):
    assert str(remote.local(path, 'pool.path')) == path


@pytest.mark.parametrize('path', ['gs://bucket/w', 's3://bucket/w', 'gs:/b/w'])
def test_a_workdir_is_in_a_file_system(path):
  with pytest.raises(errors.InputError, match=f'--workdir={path} is not in a'):
    store.open_workdir(path)
  assert store.open_workdir('runs/w').root.name == 'w'


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_others_may_read_what_the_umask_lets_them(tmp_path, mask):
  """Whatever library writes: safetensors makes files private."""
  before = os.umask(mask)
  try:
    with store.replacing(tmp_path / 'model') as partial:
      partial.mkdir()
      tensors = {'a': np.zeros(3)}
      safetensors.numpy.save_file(tensors, partial / 'x.safetensors')
      (partial / 'sub').mkdir()
    store.write_json(tmp_path / 'a.json', {})
  finally:
    os.umask(before)
  model = tmp_path / 'model'
  for path in (model / 'x.safetensors', tmp_path / 'a.json'):
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
  for path in (model, model / 'sub'):
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask
