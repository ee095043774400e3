"""Files appear whole or not at all, and the manifest refuses what changed."""

import json
import os
import re
import resource

import numpy as np
import pyarrow as pa
import pytest

from edsft_jax import errors, store
from edsft_jax.scoring import shards


def test_a_workdir_serves_one_command_at_a_time(tmp_path):
  workdir = store.Workdir(tmp_path / 'w')
  with store.claimed(workdir):
    (workdir.root / 'kept').touch()
    with (
      pytest.raises(errors.InputError, match='another command is using'),
      store.claimed(workdir),
    ):
      pass
  with store.claimed(workdir):
    pass
  assert (workdir.root / 'kept').exists()


def test_a_claim_leaves_no_empty_folder(tmp_path):
  workdir = store.Workdir(tmp_path / 'w')
  with pytest.raises(RuntimeError), store.claimed(workdir):
    raise RuntimeError
  assert not workdir.root.exists()


def test_a_changed_file_has_another_hash(tmp_path):
  path = tmp_path / 'f'
  path.write_text('one')
  first = store.hash_file(path)
  assert store.hash_file(path) == first
  path.write_text('two')
  os.utime(path, ns=(0, 12345))
  assert store.hash_file(path) != first


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
  path = tmp_path / 'rows.jsonl'
  store.write_jsonl(path, [{'a': 1}])

  def rows():
    yield {'a': 2}
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    store.write_jsonl(path, rows())

  assert store.read_jsonl(path) == [{'a': 1}]
  assert [p.name for p in tmp_path.iterdir()] == ['rows.jsonl']


@pytest.fixture
def small_files():
  """No file may grow beyond 10 kB, as if there were no more space."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('kind', ['npy', 'parquet', 'jsonl', 'folder'])
def test_no_space_is_one_clear_line_and_no_short_file(
  tmp_path, small_files, kind
):
  path = tmp_path / 'out'
  big = np.random.default_rng(0).random((1000, 8))
  table = pa.table({'x': big.ravel()})
  with pytest.raises(errors.InputError, match=r'cannot be .*: free some space'):
    if kind == 'npy':
      store.write_npy(path, big)
    elif kind == 'parquet':
      store.write_parquet(path, table)
    elif kind == 'jsonl':
      store.write_jsonl(path, ({'x': x} for x in big.ravel().tolist()))
    else:
      shards.write(path, table.slice(0, 1), big)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('shape', [(7, 3), (0, 3), (5,)])
def test_arrays_come_back_from_parts(tmp_path, shape):
  path = tmp_path / 'array.npy'
  array = np.random.default_rng(1).random(shape).astype(np.float32)
  # Neither contiguous nor of the type that is written.
  parts = [np.asfortranarray(array[:2], np.float64), array[2:]]
  store.write_rows(path, array.shape, np.float32, parts)
  back = np.load(path)
  assert back.dtype == np.float32
  np.testing.assert_array_equal(back, array)
  assert np.load(path, mmap_mode='r').shape == shape


def test_a_folder_appears_only_when_complete(tmp_path):
  path = tmp_path / 'model'
  with pytest.raises(RuntimeError), store.replacing(path) as partial:
    partial.mkdir()
    (partial / 'weights').write_text('half')
    raise RuntimeError
  assert list(tmp_path.iterdir()) == []

  with store.replacing(path) as partial:
    partial.mkdir()
    (partial / 'weights').write_text('whole')
  assert (path / 'weights').read_text() == 'whole'


def test_nan_is_not_written_as_json(tmp_path):
  with pytest.raises(ValueError, match='JSON'):
    store.write_jsonl(tmp_path / 'x.jsonl', [{'gain': float('nan')}])
  assert list(tmp_path.iterdir()) == []


def test_appended_lines_survive_a_torn_one(tmp_path):
  path = tmp_path / 'new' / 'lines.jsonl'
  assert store.read_appended(path) == []
  store.append_jsonl(path, [{'a': 'é\n\u2028'}, {'b': 0.1}])
  with path.open('ab') as f:
    f.write(b'5\n{"c": \xff}\n{"d": 1')
  for _ in range(2):
    assert store.read_appended(path) == [{'a': 'é\n\u2028'}, {'b': 0.1}]
  store.append_jsonl(path, [{'e': 2}])
  assert store.read_appended(path)[2:] == [{'e': 2}]


def test_prompts_may_be_text_or_conversations(tmp_path):
  turns = [{'role': 'user', 'content': 'hi'}]
  store.write_parquet(
    tmp_path / 'pool.parquet',
    pa.table(
      {
        'id': ['a', 'b'],
        'prompt': [None, 'text'],
        'messages': [turns, None],
      }
    ),
  )
  pool = store.read_prompts(tmp_path / 'pool.parquet')
  assert pool.prompts == [turns, 'text']
  assert pool.tasks is None
  assert pool.responses is None


def test_manifest_skips_the_same_and_refuses_the_changed(tmp_path):
  workdir = store.Workdir(tmp_path)
  fingerprint = {'scoring.stop_token_ids': (1, 2), 'model': 'abc'}

  assert not store.Manifest(workdir).begin('score', fingerprint)
  assert not store.Manifest(workdir).begin('score', fingerprint)
  store.Manifest(workdir).finish('score', {'prompts': 3})
  assert store.Manifest(workdir).begin('score', fingerprint)
  assert store.Manifest(workdir).counts('score') == {'prompts': 3}

  changed = {**fingerprint, 'model': 'xyz'}
  with pytest.raises(errors.InputError, match=r'model .*"abc".*"xyz"'):
    store.Manifest(workdir).begin('score', changed)
  newer = {**fingerprint, 'prompt.date': '2024-07-26'}
  with pytest.raises(
    errors.InputError, match=r'date \(was not recorded, is "2024-07-26"\)'
  ):
    store.Manifest(workdir).begin('score', newer)


def test_manifest_refuses_a_change_to_a_stage_that_was_cut_short(tmp_path):
  workdir = store.Workdir(tmp_path)
  store.Manifest(workdir).begin('score', {'model': 'abc'})
  with pytest.raises(errors.InputError, match='model'):
    store.Manifest(workdir).begin('score', {'model': 'xyz'})


def test_seconds_add_up_over_interrupted_runs(tmp_path):
  workdir = store.Workdir(tmp_path)
  manifest = store.Manifest(workdir)
  manifest.begin('score', {})
  with pytest.raises(KeyboardInterrupt), manifest.timed('score'):
    raise KeyboardInterrupt
  manifest = store.Manifest(workdir)
  manifest.finish('score', {}, seconds=5.0)
  with manifest.timed('score'):
    pass
  entry = json.loads(workdir.manifest.read_text())['stages']['score']
  assert 5.0 <= entry['seconds'] < 6.0


def test_a_stage_has_made_results_on_two_machines(tmp_path, monkeypatch):
  workdir = store.Workdir(tmp_path)
  here = {'jax': '1', 'devices': '2 x cpu'}
  there = {'jax': '2', 'devices': '8 x TPU v5e'}
  # It was read before the other machine wrote, as happens with --cells.
  manifest = store.Manifest(workdir)
  for machine in (here, there, here):
    monkeypatch.setattr(store.manifest, 'made_with', lambda m=machine: m)
    store.Manifest(workdir).record_versions('finetune')
  manifest.record_versions('finetune')
  with manifest.timed('evaluate'):
    pass
  stages = store.Manifest(workdir).stages
  assert stages['finetune'].made_with == [here, there]
  assert stages['evaluate'].made_with == []


def _save_parts(workdir, names):
  for i, name in enumerate(names):
    path = workdir.features.with_name(name)
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.full((2, 3), i, np.float32))


def test_features_in_one_file_or_one_per_process(tmp_path):
  one, two = (store.Workdir(tmp_path / name) for name in ('one', 'two'))
  for workdir in (one, two):
    workdir.root.mkdir()
    assert store.feature_files(workdir) == []
  _save_parts(one, ['features.npy'])
  parts = [f'features-{i:05d}-of-00012.npy' for i in range(12)]
  _save_parts(two, parts)
  assert store.feature_files(one) == [one.features]
  assert [p.name for p in store.feature_files(two)] == parts
  assert store.read_features(one).shape == (2, 3)
  np.testing.assert_array_equal(
    store.read_features(two)[:, 0], np.repeat(np.arange(12), 2)
  )
  assert store.hash_features(one) == store.hash_file(one.features)
  before = store.hash_features(two)
  np.save(two.features_part(5, 12), np.zeros((2, 3), np.float32))
  assert store.hash_features(two) != before


@pytest.mark.parametrize(
  ('names', 'odd'),
  [
    (['features-00000-of-00002.npy'], 'features-00001-of-00002.npy is missing'),
    (
      ['features.npy', 'features-00000-of-00001.npy'],
      'features-00000-of-00001.npy does not belong',
    ),
    (
      [
        'features-00000-of-00002.npy',
        'features-00000-of-00003.npy',
        'features-00001-of-00002.npy',
        'features-00001-of-00003.npy',
        'features-00002-of-00003.npy',
      ],
      'features-00000-of-00002.npy does not belong',
    ),
    (['features-old.npy'], 'features-old.npy does not belong'),
  ],
)
def test_odd_sets_of_features_are_refused(tmp_path, names, odd):
  workdir = store.Workdir(tmp_path)
  _save_parts(workdir, names)
  with pytest.raises(errors.InputError, match=re.escape(odd)):
    store.feature_files(workdir)


@pytest.fixture
def workdir(tmp_path):
  """Tables, features and a manifest, all of them whole."""
  w = store.Workdir(tmp_path)
  rows = {'id': ['a', 'b'], 'prompt': ['x', 'y'], 'response': ['1', '2']}
  for path in (w.pool, w.heldout, w.pool_responses, w.responses, w.scores):
    store.write_parquet(path, pa.table(rows))
  store.write_npy(w.features, np.ones((2, 3), np.float32))
  store.Manifest(w).begin('pool', {})
  return w


_POOL_AGAIN = 'remove {0.pool} and run the pool stage again'


@pytest.mark.parametrize(
  'damage', [b'', b'no such thing', slice(0, -20), slice(20, None)], ids=str
)
@pytest.mark.parametrize(
  ('file', 'read', 'remedy'),
  [
    ('pool', lambda w: store.read_prompts(w.pool), _POOL_AGAIN),
    ('heldout', lambda w: store.read_prompts(w.heldout), _POOL_AGAIN),
    (
      'pool_responses',
      lambda w: store.read_responses(w.pool_responses),
      _POOL_AGAIN,
    ),
    (
      'responses',
      lambda w: store.read_responses(w.responses),
      'remove it and run the annotate stage again, once with each file',
    ),
    (
      'scores',
      lambda w: store.read_parquet(w.scores),
      'remove it and run the score stage again',
    ),
    (
      'features',
      store.read_features,
      'remove all features*.npy in {0.features.parent} and run the score',
    ),
    ('manifest', store.Manifest, 'remove it and run every stage again'),
  ],
)
def test_a_damaged_file_is_one_line_and_a_remedy(
  workdir, file, read, remedy, damage
):
  read(workdir)
  path = getattr(workdir, file)
  whole = path.read_bytes()
  path.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
  with pytest.raises(errors.InputError) as raised:
    read(workdir)
  assert str(raised.value).startswith(f'{path} is damaged (')
  assert remedy.format(workdir) in str(raised.value)


def test_temporary_files_are_not_recorded(tmp_path):
  # A name of a temporary folder above the workdir means nothing.
  w = store.Workdir(tmp_path / 'checkpoints')
  run = w.run('random-k8-seed0')
  lasting = [w.pool, run.cell, run.model / 'weights', run.evaluation('mmlu')]
  temporary = [
    run.checkpoints / '2' / 'default',
    run.best_checkpoint / '2' / 'default',
    run.evaluation_shards('mmlu') / '0' / 'items',
    w.score_shards / '0' / 'features.npy',
    w.locks / 'manifest',
    run.root / '.model.partial' / 'weights',
    run.root / '.cell.json.partial',
    w.todo,
  ]
  for path in (*lasting, *temporary):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  store.Manifest(w).begin('pool', {})
  store.record_checksums(w)
  assert {*store.Manifest(w).facts['files']} == {
    path.relative_to(w.root).as_posix() for path in lasting
  }
  assert store.unknown_files(w) == []


def test_files_that_another_command_removes_are_not_recorded(
  workdir, monkeypatch
):
  hash_file = store.hashes.hash_file

  def hash_too_late(path):
    if path == workdir.scores:
      path.unlink()
    return hash_file(path)

  monkeypatch.setattr(store.hashes, 'hash_file', hash_too_late)
  store.record_checksums(workdir)
  assert 'pool/pool.parquet' in store.Manifest(workdir).facts['files']
  assert 'scores/scores.parquet' not in store.Manifest(workdir).facts['files']


def test_an_absent_file_is_not_called_damaged(tmp_path):
  with pytest.raises(FileNotFoundError):
    store.read_parquet(tmp_path / 'scores.parquet')
