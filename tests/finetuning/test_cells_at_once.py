"""Cells of a small model are finetuned two at a time, with the same results."""

import functools
import os
import signal
import threading
import time

import pytest
import tiny_study

from edsft_jax import errors, finetuning, store
from edsft_jax.finetuning import runner, train_loop
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.finetuning.progress import SharedClock

pytestmark = [
  pytest.mark.usefixtures('on_one_device'),
  pytest.mark.skipif(os.cpu_count() == 1, reason='one core, one cell'),
]


def _config():
  """Four cells, of 3 and 5 steps."""
  config = tiny_study.config()
  config.study.seeds = (0, 1)
  return config


@pytest.fixture(scope='module')
def one_at_a_time(tmp_path_factory) -> store.Workdir:
  workdir = tiny_study.make(tmp_path_factory.mktemp('one_at_a_time'))
  with pytest.MonkeyPatch.context() as patch:
    alone = functools.partial(runner.Runner, small_bytes=0)
    patch.setattr(runner, 'Runner', alone)
    finetuning.run(_config(), workdir)
  return workdir


@pytest.fixture
def together(monkeypatch) -> list[train_loop.Watchers]:
  """The two longest cells begin together; returns what watches each cell."""
  both = threading.Barrier(2, timeout=60)
  train, seen = train_loop.train, []

  def waiting_train(model, run, *args, watchers, **kwargs):
    seen.append(watchers)
    if run.root.name in _LONGEST:
      both.wait()
    return train(model, run, *args, watchers=watchers, **kwargs)

  monkeypatch.setattr(train_loop, 'train', waiting_train)
  return seen


_LONGEST = ('random-k9-seed0', 'random-k9-seed1')


def _results(workdir: store.Workdir) -> dict[str, bytes]:
  """The files of every cell, except those that depend on the machine."""
  patterns = ('metrics.jsonl', 'cell.json', 'model/*.safetensors')
  return {
    str(path.relative_to(workdir.runs)): path.read_bytes()
    for pattern in patterns
    for path in workdir.runs.glob(f'*/{pattern}')
  }


def _wait_until_stopping(watchers: list[train_loop.Watchers]) -> None:
  """Waits until all cells under way are to save a checkpoint and stop."""
  deadline = time.monotonic() + 60
  while not all(w.stopping() for w in watchers):
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_two_cells_at_once_are_those_of_one_at_a_time(
  workdir, one_at_a_time, together
):
  finetuning.run(_config(), workdir)
  assert _results(workdir) == _results(one_at_a_time)
  assert len(_results(workdir)) == 4 * 3


def test_the_seconds_of_all_cells_add_up():
  now = [10.0]
  clock = SharedClock(lambda: now[0])
  start = clock()

  def pass_by(seconds: float) -> float:
    now[0] += seconds
    return clock() - start

  assert pass_by(1.0) == 1.0
  with clock.cell():
    assert pass_by(2.0) == 3.0
    with clock.cell():
      assert pass_by(4.0) == 5.0
    assert pass_by(3.0) == 8.0


def test_a_signal_stops_both(workdir, one_at_a_time, together, monkeypatch):
  step, steps = trainer_lib.Trainer.step, []

  def interrupted_step(*args):
    steps.append(1)
    if len(steps) == 3:
      os.kill(os.getpid(), signal.SIGINT)
      _wait_until_stopping(together)
    return step(*args)

  with monkeypatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', interrupted_step)
    with pytest.raises(KeyboardInterrupt):
      finetuning.run(_config(), workdir)
  assert len(list(workdir.runs.iterdir())) == 2
  for name in _LONGEST:
    assert any(workdir.run(name).checkpoints.iterdir())
  finetuning.run(_config(), workdir)
  assert _results(workdir) == _results(one_at_a_time)


def test_an_error_in_one_stops_the_other(
  workdir, one_at_a_time, together, monkeypatch
):
  """The other one saves a checkpoint, and no further cell begins."""
  step, failing = trainer_lib.Trainer.step, threading.Lock()
  thread, third = threading.local(), threading.Event()

  def broken_step(*args):
    thread.steps = getattr(thread, 'steps', 0) + 1
    if thread.steps == 1:
      thread.fails = failing.acquire(blocking=False)
    if thread.steps == 3:
      if thread.fails:
        assert third.wait(60)
        raise errors.InputError('this one fails')
      third.set()
      _wait_until_stopping(together)
    return step(*args)

  with monkeypatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', broken_step)
    with pytest.raises(errors.InputError, match='this one fails'):
      finetuning.run(_config(), workdir)
  steps = {
    max(int(path.name) for path in workdir.run(name).checkpoints.iterdir())
    for name in _LONGEST
  }
  # The one that failed had saved its second step, the other its third.
  assert steps == {2, 3}
  assert len(list(workdir.runs.iterdir())) == 2
  finetuning.run(_config(), workdir)
  assert _results(workdir) == _results(one_at_a_time)
