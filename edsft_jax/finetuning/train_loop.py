"""The training loop of a cell, which survives kills and restarts."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax

from edsft_jax import mesh as mesh_lib
from edsft_jax import store
from edsft_jax.finetuning import batches, schedules, trainer
from edsft_jax.finetuning.checkpoints import Checkpoints, Restored
from edsft_jax.finetuning.losses import Losses
from edsft_jax.finetuning.meter import Meter
from edsft_jax.finetuning.metrics_log import Log, Tracker, open_log
from edsft_jax.finetuning.progress import CellProgress
from edsft_jax.finetuning.validation import Validation
from edsft_jax.models.responses import Example

# A loss that is higher by a smaller share has not risen.
_ROUNDING = 1e-4
_FEW_STEPS = 2
# Of the default learning rate.
_UNUSUAL_RATE = 10.0


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
  """What shows, times and may stop a run.

  Attributes:
    progress: the bar.
    meter: measures speed and memory.
    stopping: whether the run should save a checkpoint and stop.
    clock: returns seconds, of which only differences matter.
    tracker: a service that shows metrics, or None.
  """

  progress: CellProgress
  meter: Meter
  stopping: Callable[[], bool] = lambda: False
  clock: Callable[[], float] = time.monotonic
  tracker: Tracker | None = None


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
    InputError: the loss is not finite, a checkpoint is damaged, the best state
      is missing, or the disk is full.
  """
  with (
    Checkpoints(run.checkpoints) as checkpoints,
    validation or contextlib.nullcontext(),
  ):
    restored = checkpoints.restore(model.state_shapes)
    first, state, saved = restored or Restored(0, model.init_state(seed), {})
    watchers.progress.advance(first)
    losses = Losses(run, model.hyperparameters, lambda: checkpoints.last_step)
    losses.restore(saved)
    if validation is not None:
      validation.restore(saved.get('validation', {}))
    loop = _Loop(model, examples, seed, schedule, watchers, validation, losses)
    with open_log(
      run, first, losses.num_lines, watchers.clock, watchers.tracker
    ) as log:
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
    losses: Losses,
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
        log.sync()
        checkpoints.save(step, state, self._progress())
      if stop:
        checkpoints.wait()
        return None
    facts: dict[str, Any] = {
      'steps': step,
      'first_loss': self._losses.first,
      'last_loss': self._losses.last,
    }
    if self._validation is not None:
      state, best = self._validation.choose(state)
      facts |= best
    exported = facts.get('exported_step', step)
    # The logged losses say little about the state of an earlier step.
    may_have_risen = self._losses.may_have_risen or exported < step
    if may_have_risen and self._is_worth_measuring(step):
      # Of the same examples, since those of other steps may be easier.
      start, end = self._losses.first, self._first_loss(exported, state)
      if end > start * (1 + _ROUNDING):
        facts['loss_rise'] = start, end
    return Result(state, facts)

  def _step(
    self, step: int, state: trainer.State
  ) -> tuple[trainer.State, jax.Array]:
    rows, examples, key = self._batch(step)
    rate = self._rates[step - 1]
    state, loss = self._model.step(state, examples, rate, key)
    num_tokens = sum(example.num_response for example in examples)
    self._losses.add(loss, num_tokens, [self._ids[i] for i in rows])
    self._watchers.meter.add(examples)
    return state, loss

  def _is_worth_measuring(self, step: int) -> bool:
    """Whether looking for a rise, which takes about a step, is worth that.

    AdamW moves each parameter by about the learning rate: one or two steps at a
    usual rate cannot do harm that the logged losses do not show.
    """
    h = self._model.hyperparameters
    return (
      step > _FEW_STEPS
      or self._losses.last > self._losses.first
      or h.learning_rate > _UNUSUAL_RATE * schedules.METHOD_RATES[h.method]
    )

  def _first_loss(self, step: int, state: trainer.State) -> float:
    """The loss of the first step's examples with the state to export."""
    rows, examples, key = self._batch(1)
    loss = self._model.loss(state, examples, key)
    self._losses.add(loss, 1, [self._ids[i] for i in rows])
    self._losses.check(step, state)
    return float(loss)

  def _batch(
    self, step: int
  ) -> tuple[list[int], list[Example], jax.Array | None]:
    """A step's examples, by number and encoded, and its key for dropout."""
    h = self._model.hyperparameters
    first = (step - 1) * h.batch_size
    rows = self._order[first : first + h.batch_size].tolist()
    key = batches.dropout_key(self._seed, step) if h.lora_dropout else None
    return rows, [self._examples[i] for i in rows], key

  def _log(self, step: int, state: trainer.State, log: Log) -> None:
    if step == self._num_steps:
      self._losses.check(step, state)
    mean, num_tokens = self._losses.take(step)
    metrics = {'loss': mean, 'learning_rate': float(self._rates[step - 1])}
    timing = self._watchers.meter.take()
    if self._validation is not None and self._schedule.evaluates(
      step, self._num_steps
    ):
      loss = self._validation.loss(state)
      if not math.isfinite(loss):
        raise self._losses.not_finite('the held-out loss is', step)
      self._validation.add(step, loss, state)
      metrics['heldout_loss'] = loss
      self._watchers.meter.restart()
    log.write(step, metrics, num_tokens, timing)
    self._watchers.progress.show(metrics, timing)

  def _progress(self) -> dict[str, Any]:
    """What a resumed run needs besides the state."""
    result = self._losses.progress
    if self._validation is not None:
      result['validation'] = self._validation.progress
    return result
