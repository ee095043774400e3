"""The training loop of a cell, which survives kills and restarts."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from edsft_jax import errors, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import batches, schedules, trainer
from edsft_jax.finetuning.checkpoints import Checkpoints, Restored
from edsft_jax.finetuning.meter import Meter
from edsft_jax.finetuning.metrics_log import Log, Tracker, open_log
from edsft_jax.finetuning.progress import CellProgress
from edsft_jax.finetuning.validation import Validation
from edsft_jax.models.responses import Example


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When to log, to save a checkpoint and to compute the held-out loss.

  Attributes:
    checkpoint_steps: steps between checkpoints.
    log_steps: steps between lines of metrics.jsonl; the first and the last
      step, and those with a held-out loss, have a line, too.
    eval_steps: steps between held-out losses; 0: none are computed.
  """

  checkpoint_steps: int
  log_steps: int
  eval_steps: int = 0

  def saves(self, step: int, num_steps: int) -> bool:
    """Whether to save a checkpoint; the last step saves the model instead."""
    return step % self.checkpoint_steps == 0 and step < num_steps

  def evaluates(self, step: int, num_steps: int) -> bool:
    """Whether to compute the held-out loss."""
    if not self.eval_steps:
      return False
    return step == num_steps or step % self.eval_steps == 0

  def logs(self, step: int, num_steps: int) -> bool:
    """Whether to write a line of metrics.jsonl."""
    return (
      step in (1, num_steps)
      or step % self.log_steps == 0
      or self.evaluates(step, num_steps)
    )


class Watchers(NamedTuple):
  """Shows a run while it trains.

  Attributes:
    progress: the bar.
    meter: measures speed and memory.
    tracker: a service that shows metrics, or None.
    stopping: whether the user has asked to stop.
  """

  progress: CellProgress
  meter: Meter
  tracker: Tracker | None = None
  stopping: Callable[[], bool] = lambda: False


class Result(NamedTuple):
  """A finished run.

  Attributes:
    state: the last state, or that of the lowest held-out loss.
    facts: for cell.json: steps, first and last loss, best step.
  """

  state: trainer.State
  facts: dict[str, Any]


def train(
  model: trainer.Trainer,
  run: store.Run,
  examples: Mapping[str, Example],
  seed: int,
  *,
  schedule: Schedule,
  watchers: Watchers,
  validation: Validation | None = None,
) -> Result | None:
  """Finetunes on the examples; resumes from the last checkpoint, if any.

  After a resume, metrics.jsonl and the returned state are those of an
  uninterrupted run.

  Args:
    model: the compiled step, with its hyperparameters.
    run: the folder of metrics and checkpoints.
    examples: the cell's answered prompts by id, in greedy order.
    seed: seed of the initialisation and the data order.
    schedule: when to log, save and evaluate.
    watchers: what shows the run, and may stop it.
    validation: computes held-out losses, if the schedule has any.

  Returns:
    None if it was stopped: the state after the last step is in a checkpoint.

  Raises:
    InputError: the loss is not finite, a checkpoint is damaged, or the disk is
      full.
  """
  with (
    Checkpoints(run.checkpoints) as checkpoints,
    validation or contextlib.nullcontext(),
  ):
    restored = checkpoints.restore(model.state_shapes)
    first, state, saved = restored or Restored(0, model.init_state(seed), {})
    watchers.progress.advance(first)
    losses = _Losses(
      run, model.hyperparameters.learning_rate, lambda: checkpoints.last_step
    )
    losses.restore(saved.get('losses', []))
    if validation is not None:
      validation.restore(saved.get('validation', {}))
    loop = _Loop(model, examples, seed, schedule, watchers, validation, losses)
    with open_log(run, first, watchers.tracker) as log:
      return loop.run(first, state, checkpoints, log)


class _Loop:
  """The steps of one cell."""

  def __init__(
    self,
    model: trainer.Trainer,
    examples: Mapping[str, Example],
    seed: int,
    schedule: Schedule,
    watchers: Watchers,
    validation: Validation | None,
    losses: '_Losses',
  ):
    h = model.hyperparameters
    self._model = model
    self._ids = list(examples)
    self._examples = list(examples.values())
    self._seed = seed
    self._schedule = schedule
    self._watchers = watchers
    self._validation = validation
    self._num_steps = batches.num_steps(len(examples), h.epochs, h.batch_size)
    self._order = batches.order(len(examples), h.epochs, seed)
    self._rates = schedules.learning_rates(
      h.schedule, h.learning_rate, self._num_steps, h.warmup_fraction
    )
    self._losses = losses

  def run(
    self,
    first: int,
    state: trainer.State,
    checkpoints: Checkpoints,
    log: Log,
  ) -> Result | None:
    """The steps after `first`; see `train`."""
    in_flight = mesh_lib.InFlight()
    step = first
    self._watchers.meter.restart()
    for step in range(first + 1, self._num_steps + 1):
      state, loss = self._step(step, state)
      in_flight.add(loss)
      self._watchers.progress.advance(1)
      if self._schedule.logs(step, self._num_steps):
        self._log(step, state, log)
      if self._validation is not None and self._validation.is_over:
        break
      stop = self._watchers.stopping() and step < self._num_steps
      if stop or self._schedule.saves(step, self._num_steps):
        self._losses.check(step, state)
        checkpoints.save(step, state, self._progress())
      if stop:
        checkpoints.wait()
        return None
    facts: dict[str, Any] = {
      'steps': step,
      'first_loss': log.first_loss,
      'last_loss': self._losses.last,
    }
    if self._validation is not None:
      state, best = self._validation.choose(state)
      facts |= best
    return Result(state, facts)

  def _step(
    self, step: int, state: trainer.State
  ) -> tuple[trainer.State, jax.Array]:
    h = self._model.hyperparameters
    rows = self._order[(step - 1) * h.batch_size : step * h.batch_size]
    examples = [self._examples[i] for i in rows]
    key = batches.dropout_key(self._seed, step) if h.lora_dropout else None
    state, loss = self._model.step(state, examples, self._rates[step - 1], key)
    num_tokens = sum(example.num_response for example in examples)
    self._losses.add(loss, num_tokens, [self._ids[i] for i in rows])
    self._watchers.meter.add(examples)
    return state, loss

  def _log(self, step: int, state: trainer.State, log: Log) -> None:
    if step == self._num_steps:
      self._losses.check(step, state)
    mean, num_tokens = self._losses.take(step)
    metrics = {'loss': mean, 'learning_rate': float(self._rates[step - 1])}
    timing = self._watchers.meter.take()
    if self._validation is not None and self._schedule.evaluates(
      step, self._num_steps
    ):
      metrics['heldout_loss'] = self._validation(step, state)
      self._watchers.meter.restart()
    log.write(step, metrics, num_tokens, timing)
    self._watchers.progress.show(metrics, timing)

  def _progress(self) -> dict[str, Any]:
    """What a resumed run needs besides the state."""
    result: dict[str, Any] = {'losses': self._losses.pending()}
    if self._validation is not None:
      result['validation'] = self._validation.progress
    return result


class _Loss(NamedTuple):
  """The loss of a step, on the device until it is needed."""

  value: jax.Array | float
  num_tokens: int
  ids: Sequence[str]


class _Losses:
  """Losses since the last line of the log.

  Attributes:
    last: the mean loss of the last line.
  """

  def __init__(
    self,
    run: store.Run,
    learning_rate: float,
    last_checkpoint: Callable[[], int | None],
  ):
    self.last: float | None = None
    self._run = run
    self._learning_rate = learning_rate
    self._last_checkpoint = last_checkpoint
    self._losses: list[_Loss] = []

  def restore(self, saved: Sequence[tuple[float, int]]) -> None:
    """Takes what `pending` gave."""
    self._losses = [_Loss(value, n, ()) for value, n in saved]

  def pending(self) -> list[tuple[float, int]]:
    """The losses and their numbers of tokens, for JSON."""
    return [(float(loss.value), loss.num_tokens) for loss in self._losses]

  def add(self, loss: jax.Array, num_tokens: int, ids: Sequence[str]) -> None:
    self._losses.append(_Loss(loss, num_tokens, ids))

  def check(self, step: int, state: trainer.State) -> None:
    """Waits for the last step, and looks for values that are not finite.

    Raises:
      InputError: a loss or a parameter is not finite.
    """
    values = self._values(step)
    if not trainer.all_finite(state):
      raise self._not_finite(step, len(values) - 1)

  def take(self, step: int) -> tuple[float, int]:
    """The mean loss per response token since the last call, and their number.

    Raises:
      InputError: one of them is not finite.
    """
    values = self._values(step)
    counts = [loss.num_tokens for loss in self._losses]
    self.last = float(np.average(values, weights=np.maximum(counts, 1)))
    self._losses = []
    return self.last, sum(counts)

  def _values(self, step: int) -> np.ndarray:
    # The loop waits for the latest step only here: steps run back to back.
    values = np.asarray(
      jax.device_get([loss.value for loss in self._losses]), np.float64
    )
    if not np.all(np.isfinite(values)):
      first = int(np.argmin(np.isfinite(values)))
      raise self._not_finite(step - len(values) + 1 + first, first)
    return values

  def _not_finite(self, step: int, index: int) -> errors.InputError:
    ids = self._losses[index].ids
    more = f' and {len(ids) - _IDS_SHOWN} more' if len(ids) > _IDS_SHOWN else ''
    saved = self._last_checkpoint()
    before = (
      'no checkpoint is older'
      if saved is None
      else f'the last checkpoint is {self._run.checkpoints / str(saved)}'
    )
    return errors.InputError(
      f'finetuning {self._run.root.name}: the loss is not finite at step '
      f'{step}, on the prompts {", ".join(map(repr, ids[:_IDS_SHOWN]))}{more} '
      f'({before}): lower finetuning.learning_rate (now '
      f'{self._learning_rate:g}) and remove {self._run.root.parent}, whose '
      'other cells used it too'
    )


_IDS_SHOWN = 4
