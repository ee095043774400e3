"""Files appear whole or not at all, and the manifest refuses what changed."""

import json
import os

import pyarrow as pa
import pytest

from edsft_jax import artifacts, errors


def test_a_workdir_serves_one_command_at_a_time(tmp_path):
  workdir = artifacts.Workdir(tmp_path / 'w')
  with artifacts.claimed(workdir):
    (workdir.root / 'kept').touch()
    with (
      pytest.raises(errors.InputError, match='another command is at work'),
      artifacts.claimed(workdir),
    ):
      pass
  with artifacts.claimed(workdir):
    pass
  assert (workdir.root / 'kept').exists()


def test_a_claim_leaves_no_empty_folder(tmp_path):
  workdir = artifacts.Workdir(tmp_path / 'w')
  with pytest.raises(RuntimeError), artifacts.claimed(workdir):
    raise RuntimeError
  assert not workdir.root.exists()


def test_a_changed_file_has_another_hash(tmp_path):
  path = tmp_path / 'f'
  path.write_text('one')
  first = artifacts.hash_file(path)
  assert artifacts.hash_file(path) == first
  path.write_text('two')
  os.utime(path, ns=(0, 12345))
  assert artifacts.hash_file(path) != first


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
  path = tmp_path / 'rows.jsonl'
  artifacts.write_jsonl(path, [{'a': 1}])

  def rows():
    yield {'a': 2}
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    artifacts.write_jsonl(path, rows())

  assert artifacts.read_jsonl(path) == [{'a': 1}]
  assert [p.name for p in tmp_path.iterdir()] == ['rows.jsonl']


def test_a_folder_appears_only_when_complete(tmp_path):
  path = tmp_path / 'model'
  with pytest.raises(RuntimeError), artifacts.replacing(path) as partial:
    partial.mkdir()
    (partial / 'weights').write_text('half')
    raise RuntimeError
  assert list(tmp_path.iterdir()) == []

  with artifacts.replacing(path) as partial:
    partial.mkdir()
    (partial / 'weights').write_text('whole')
  assert (path / 'weights').read_text() == 'whole'


def test_nan_is_not_written_as_json(tmp_path):
  with pytest.raises(ValueError, match='JSON'):
    artifacts.write_jsonl(tmp_path / 'x.jsonl', [{'gain': float('nan')}])
  assert list(tmp_path.iterdir()) == []


def test_prompts_may_be_text_or_conversations(tmp_path):
  turns = [{'role': 'user', 'content': 'hi'}]
  artifacts.write_parquet(
    tmp_path / 'pool.parquet',
    pa.table(
      {
        'id': ['a', 'b'],
        'prompt': [None, 'text'],
        'messages': [turns, None],
      }
    ),
  )
  pool = artifacts.read_prompts(tmp_path / 'pool.parquet')
  assert pool.prompts == [turns, 'text']
  assert pool.tasks is None
  assert pool.responses is None


def test_manifest_skips_the_same_and_refuses_the_changed(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  fingerprint = {'scoring.stop_token_ids': (1, 2), 'model': 'abc'}

  assert not artifacts.Manifest(workdir).begin('score', fingerprint)
  assert not artifacts.Manifest(workdir).begin('score', fingerprint)
  artifacts.Manifest(workdir).finish('score', {'prompts': 3})
  assert artifacts.Manifest(workdir).begin('score', fingerprint)
  assert artifacts.Manifest(workdir).counts('score') == {'prompts': 3}

  changed = {**fingerprint, 'model': 'xyz'}
  with pytest.raises(errors.InputError, match=r'model .*"abc".*"xyz"'):
    artifacts.Manifest(workdir).begin('score', changed)


def test_manifest_refuses_a_change_to_a_stage_that_was_cut_short(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  artifacts.Manifest(workdir).begin('score', {'model': 'abc'})
  with pytest.raises(errors.InputError, match='model'):
    artifacts.Manifest(workdir).begin('score', {'model': 'xyz'})


def test_seconds_add_up_over_interrupted_runs(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  manifest = artifacts.Manifest(workdir)
  manifest.begin('score', {})
  with pytest.raises(KeyboardInterrupt), manifest.timed('score'):
    raise KeyboardInterrupt
  first = artifacts.Manifest(workdir).contents['stages']['score']['seconds']
  manifest = artifacts.Manifest(workdir)
  manifest.contents['stages']['score']['seconds'] = first + 5.0
  with manifest.timed('score'):
    pass
  entry = json.loads(workdir.manifest.read_text())['stages']['score']
  assert entry['seconds'] >= 5.0
