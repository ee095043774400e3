"""A killed evaluation continues where it stopped, to the same bytes."""

import os
import signal
import subprocess
import sys

import pytest
import tiny_study

from edsft_jax import evaluation, store
from edsft_jax.evaluation.runner import Runner
from edsft_jax.evaluation.shards import divide
from edsft_jax.evaluation.task import Generate, Item, Likelihood

pytestmark = pytest.mark.usefixtures('on_one_device')

CELL = 'no_finetuning-k0-seed0'


def _config():
  config = tiny_study.config()
  # Shards of a few items.
  config.evaluation.batch_tokens = 2
  return config


@pytest.fixture(scope='module')
def finished(on_one_device, tmp_path_factory) -> store.Workdir:
  """An uninterrupted evaluation, to compare with."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('finished'))
  evaluation.run(_config(), workdir)
  return workdir


@pytest.fixture
def computed(monkeypatch) -> list[int]:
  """The shards that are computed."""
  shards, call = [], Runner.__call__

  def noted(self, weights, progress, shard, *others):
    shards.append(shard)
    return call(self, weights, progress, shard, *others)

  monkeypatch.setattr(Runner, '__call__', noted)
  return shards


def _shards(workdir) -> list[str]:
  folder = workdir.run(CELL).evaluation_shards('heldout')
  return sorted(path.name for path in folder.glob('*.jsonl'))


def _assert_same(workdir, finished) -> None:
  for name in ('items.jsonl', 'eval.json'):
    ours, theirs = (
      (w.run(CELL).evaluations / 'heldout' / name).read_bytes()
      for w in (workdir, finished)
    )
    assert ours == theirs
  assert not workdir.run(CELL).evaluation_shards('heldout').exists()


# Dies like a machine does, while it computes the third shard.
_KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, 'tests')
sys.path.insert(0, 'tests/evaluation')
import tiny_study, test_evaluate_resumed
from edsft_jax import evaluation, store
from edsft_jax.evaluation import runner

call = runner.Runner.__call__

def dying_call(self, weights, progress, shard, *others):
  result = call(self, weights, progress, shard, *others)
  if shard == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return result

runner.Runner.__call__ = dying_call
with tiny_study.on_one_device():
  evaluation.run(
    test_evaluate_resumed._config(), store.Workdir(pathlib.Path(sys.argv[1]))
  )
"""


@pytest.fixture
def killed(tmp_path) -> store.Workdir:
  workdir = tiny_study.make(tmp_path)
  result = subprocess.run(
    [sys.executable, '-c', _KILLED, str(workdir.root)],
    cwd=tiny_study.REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert _shards(workdir) == ['00000.jsonl', '00001.jsonl']
  return workdir


def test_only_what_is_missing_is_computed(killed, finished, computed, capsys):
  torn = killed.run(CELL).evaluation_shards('heldout') / '00001.jsonl'
  os.truncate(torn, torn.stat().st_size - 5)
  evaluation.run(_config(), killed)
  assert computed == [*range(1, len(computed) + 1)]
  assert len(computed) > 3
  _assert_same(killed, finished)
  assert ' 11/11 ' in capsys.readouterr().err
  # All is done.
  evaluation.run(_config(), killed)
  assert computed.count(1) == 1


# Dies in the middle of the only shard, with half a line written.
_KILLED_WITHIN_A_SHARD = """
import os, pathlib, signal, sys
sys.path.insert(0, 'tests')
sys.path.insert(0, 'tests/evaluation')
import tiny_study, test_evaluate_resumed
from edsft_jax import evaluation, store
from edsft_jax.evaluation import journal

add = journal.Journal.add
path = pathlib.Path(sys.argv[2])

def dying_add(self, responses):
  add(self, responses)
  if path.exists() and len(path.read_text().splitlines()) >= 6:
    with path.open('a') as f:
      f.write('{"place": [')
    os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.add = dying_add
journal.WRITE_SECONDS = 0
with tiny_study.on_one_device():
  evaluation.run(
    test_evaluate_resumed._one_shard(), store.Workdir(pathlib.Path(sys.argv[1]))
  )
"""


def _one_shard():
  config = tiny_study.config()
  # Two rows at a time.
  config.evaluation.batch_tokens = 100
  return config


def test_a_shard_continues_with_the_next_item(tmp_path, monkeypatch):
  uninterrupted = tiny_study.make(tmp_path / 'uninterrupted')
  evaluation.run(_one_shard(), uninterrupted)
  workdir = tiny_study.make(tmp_path / 'killed')
  folder = workdir.run(CELL).evaluation_shards('heldout')
  journal = folder / '00000.journal'
  result = subprocess.run(
    [sys.executable, '-c', _KILLED_WITHIN_A_SHARD, str(workdir.root), journal],
    cwd=tiny_study.REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert _shards(workdir) == []
  num_known = len(journal.read_text().splitlines()) - 1
  computed, call = [], Runner.__call__

  def noted(self, weights, progress, shard, known, found):
    if shard:
      return call(self, weights, progress, shard, known, found)
    assert len(known) == num_known

    def count(responses):
      computed.extend(responses)
      found(responses)

    return call(self, weights, progress, shard, known, count)

  monkeypatch.setattr(Runner, '__call__', noted)
  evaluation.run(_one_shard(), workdir)
  # Each item has an answer and the likelihood of its reference.
  assert len(computed) == 2 * tiny_study.NUM_HELDOUT - num_known
  assert len(set(computed)) == len(computed)
  _assert_same(workdir, uninterrupted)


def test_shards_of_other_options_are_not_used(tmp_path, computed):
  workdir = tiny_study.make(tmp_path)
  config = _config()

  def interrupted(*unused):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('edsft_jax.evaluation.results.write', interrupted)
    with pytest.raises(KeyboardInterrupt):
      evaluation.run(config, workdir)
  num_shards = len(computed)
  assert len(_shards(workdir)) == num_shards
  # Another size of batches changes no result.
  config.evaluation.batch_tokens = 3
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('edsft_jax.evaluation.results.write', interrupted)
    with pytest.raises(KeyboardInterrupt):
      evaluation.run(config, workdir)
  assert len(computed) == num_shards
  config.evaluation.max_new_tokens = 3
  evaluation.run(config, workdir)
  assert len(computed) > num_shards
  rows = store.read_jsonl(workdir.run(CELL).items('heldout'))
  assert max(row['num_generated_tokens'] for row in rows) == 3


class _Task:
  max_new_tokens = 10

  def __init__(self, costs):
    self.items = [
      Item(str(i), None, '', (Generate([1] * (cost - 11)), Likelihood([1], 0)))
      for i, cost in enumerate(costs)
    ]


@pytest.mark.parametrize(
  ('costs', 'batch_tokens', 'num_processes', 'expected'),
  [
    ([20] * 6, 1000, 1, [6]),
    ([20] * 6, 1000, 2, [3, 6]),
    ([20] * 6, 1000, 4, [2, 3, 5, 6]),
    # A long item fills a shard.
    ([100, 20, 20, 20, 20, 20], 1000, 2, [1, 6]),
    # 240 tokens, in shards of 4 x 20.
    ([40] * 6, 20, 1, [2, 4, 6]),
    ([40] * 2, 20, 8, [1, 2]),
    ([], 5, 2, []),
  ],
)
def test_shards_have_about_the_same_work(
  costs, batch_tokens, num_processes, expected
):
  assert divide(_Task(costs), batch_tokens, num_processes) == expected
