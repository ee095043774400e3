"""Logs a cell's training: metrics.jsonl, timing.jsonl, TensorBoard, wandb."""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import pathlib
import shutil
import time
from typing import Any, Protocol

from edsft_jax import console, errors, processes, store


class Tracker(Protocol):
  """A service that shows metrics, such as Weights & Biases."""

  def log(self, values: Mapping[str, float], step: int) -> None:
    """Takes the values of a step."""


class Log(Protocol):
  """Where the lines of a cell go."""

  def write(
    self,
    step: int,
    metrics: Mapping[str, float],
    num_tokens: int,
    timing: Mapping[str, float],
  ) -> None:
    """Writes the lines of a step; see `MetricsLog.write`."""

  def sync(self) -> None:
    """Makes the lines outlast a power loss, as a checkpoint does."""


def open_log(
  run: store.Run,
  step: int,
  num_lines: int,
  clock: Callable[[], float],
  tracker: Tracker | None,
) -> contextlib.AbstractContextManager[Log]:
  """The log of the first process, or one of the others, which drops lines."""
  if processes.is_first():
    return MetricsLog(run, step, num_lines, clock, tracker)
  return contextlib.nullcontext(_NoLog())


class _NoLog:
  """Drops all lines."""

  def write(self, *line: Any) -> None:
    """Drops a line."""

  def sync(self) -> None:
    """Does nothing."""


class MetricsLog:
  """Appends the lines of a cell, from a given step on.

  metrics.jsonl only depends on the cell: the lines of an interrupted and
  resumed run are those of an uninterrupted one. What depends on the machine
  goes to timing.jsonl, whose lines have the same steps.
  """

  def __init__(
    self,
    run: store.Run,
    step: int,
    num_lines: int,
    clock: Callable[[], float],
    tracker: Tracker | None,
  ):
    """Drops what an interrupted run wrote after `step`.

    Args:
      run: the cell's folder.
      step: the last step whose lines stay.
      num_lines: how many these were.
      clock: see `train_loop.Watchers`.
      tracker: see `train_loop.Watchers`.

    Raises:
      InputError: lines are damaged or missing, or the disk is full.
    """
    self._run = run
    self._tracker = tracker
    kept = _lines_until(run.metrics, step, 'tokens')
    if len(kept) != num_lines:
      raise errors.InputError(
        f'{run.metrics} has {console.count(len(kept), "line")} up to step '
        f'{step}, and had {num_lines:,} when the checkpoint of that step was '
        f'saved: {_remedy(run.metrics)}'
      )
    timing = _lines_until(run.timing, step, 'seconds')
    self._tokens = kept[-1]['tokens'] if kept else 0
    before = timing[-1]['seconds'] if timing else 0.0
    self._clock = clock
    self._start = clock() - before
    store.write_jsonl(run.metrics, kept)
    store.write_jsonl(run.timing, timing)
    if run.tensorboard.exists():
      shutil.rmtree(run.tensorboard)
    with store.reporting_full_disk(run.tensorboard):
      self._events = _Events(run.tensorboard)
      for line in (*kept, *timing):
        self._events.write(_plotted(line), line['step'])
    self._files = [
      path.open('a', encoding='utf-8') for path in (run.metrics, run.timing)
    ]

  def __enter__(self) -> 'MetricsLog':
    return self

  def __exit__(self, *_: Any) -> None:
    with store.reporting_full_disk(self._run.root):
      for file in self._files:
        file.close()
      self._events.close()

  def write(
    self,
    step: int,
    metrics: Mapping[str, float],
    num_tokens: int,
    timing: Mapping[str, float],
  ) -> None:
    """Writes the lines of a step.

    Args:
      step: optimizer steps done.
      metrics: loss and learning rate, and others, by name.
      num_tokens: response tokens since the last line.
      timing: speed and memory, by name.

    Raises:
      InputError: the disk is full.
    """
    self._tokens += num_tokens
    seconds = round(self._clock() - self._start, 3)
    lines = (
      {'step': step, **metrics, 'tokens': self._tokens},
      {'step': step, 'seconds': seconds, **timing},
    )
    with store.reporting_full_disk(self._run.root):
      for file, line in zip(self._files, lines, strict=True):
        file.write(json.dumps(line, allow_nan=False) + '\n')
        file.flush()
        self._events.write(_plotted(line), step)
      self._events.flush()
    if self._tracker is not None:
      self._tracker.log(_plotted(lines[0]) | _plotted(lines[1]), step)

  def sync(self) -> None:
    """Makes the lines outlast a power loss, as a checkpoint does.

    Raises:
      InputError: the disk is full.
    """
    with store.reporting_full_disk(self._run.root):
      for file in self._files:
        os.fsync(file.fileno())


class _Events:
  """A file of TensorBoard events.

  tensorboardX's SummaryWriter writes in a thread, whose error is lost: on a
  full disk the thread dies, and adding the next event hangs.
  """

  def __init__(self, directory: pathlib.Path):
    # Imported here, since it imports torch if that is installed.
    import tensorboardX
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    directory.mkdir(parents=True)
    self._scalar = tensorboardX.summary.scalar
    self._event = event_pb2.Event
    self._writer = event_file_writer.EventsWriter(str(directory / 'events'))

  def write(self, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
      self._writer.write_event(
        self._event(
          wall_time=time.time(), step=step, summary=self._scalar(name, value)
        )
      )

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _plotted(line: Mapping[str, float]) -> dict[str, float]:
  """The values of a line that have a curve of their own."""
  return {k: v for k, v in line.items() if k not in ('step', 'seconds')}


def _lines_until(
  path: pathlib.Path, step: int, field: str
) -> list[dict[str, Any]]:
  """Lines up to `step`; the last one may be incomplete after a kill.

  Args:
    path: the file, which need not exist.
    step: the last step.
    field: a number that all lines have.

  Raises:
    InputError: an earlier one is damaged.
  """
  kept: list[dict[str, Any]] = []
  texts = path.read_bytes().splitlines() if step and path.exists() else []
  for number, text in enumerate(texts, 1):
    try:
      line = json.loads(text)
      if not all(
        isinstance(line[name], int | float) for name in ('step', field)
      ):
        raise ValueError(line)
    except (ValueError, TypeError, KeyError):
      if kept and number == len(texts):
        break
      raise errors.InputError(
        f'line {number} of {path} is damaged: {_remedy(path)}'
      ) from None
    if line['step'] > step:
      break
    kept.append(line)
  return kept


def _remedy(path: pathlib.Path) -> str:
  return (
    f'restore it from a copy, or remove {path.parent} to train the cell again'
  )
