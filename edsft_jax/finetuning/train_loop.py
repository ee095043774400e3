"""The training loop of a cell, which survives kills and restarts."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from edsft_jax import errors, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import batches, trainer
from edsft_jax.finetuning.checkpoints import Checkpoints
from edsft_jax.finetuning.metrics_log import MetricsLog
from edsft_jax.models.responses import Example


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When to log and to save a checkpoint.

  Attributes:
    checkpoint_steps: steps between checkpoints.
    log_steps: steps between lines of metrics.jsonl; there is also a line for
      every checkpoint and for the last step.
  """

  checkpoint_steps: int
  log_steps: int

  def saves(self, step: int, num_steps: int) -> bool:
    """Whether to save a checkpoint; the last step saves the model instead."""
    return step % self.checkpoint_steps == 0 and step < num_steps

  def logs(self, step: int, num_steps: int) -> bool:
    """Whether to write a line of metrics.jsonl."""
    last = step == num_steps
    return last or step % self.log_steps == 0 or self.saves(step, num_steps)


def train(
  model: trainer.Trainer,
  run: store.Run,
  examples: Sequence[Example],
  seed: int,
  *,
  schedule: Schedule,
  progress: Callable[[int], Any] = lambda n: None,
) -> trainer.State:
  """Finetunes on the examples; resumes from the last checkpoint, if any.

  After a resume, metrics.jsonl, the TensorBoard events and the returned state
  are those of an uninterrupted run, except for the seconds.

  Args:
    model: the compiled step, with its hyperparameters.
    run: the folder of metrics and checkpoints.
    examples: the cell's answered prompts.
    seed: seed of the initialisation and the data order.
    schedule: when to log and save.
    progress: called with the number of steps done since its last call, first
      with those of the checkpoint.

  Raises:
    InputError: the loss is not finite, naming cell and step.
  """
  h = model.hyperparameters
  num_steps = batches.num_steps(len(examples), h.epochs, h.batch_size)
  order = batches.order(len(examples), h.epochs, seed)
  rates = trainer.learning_rates(h.learning_rate, num_steps, h.warmup_fraction)
  state = model.init_state(seed)
  with Checkpoints(run.checkpoints) as checkpoints:
    first, state = checkpoints.restore(state)
    progress(first)
    with MetricsLog(run, first) as log:
      losses = _Losses(run, h.learning_rate)
      in_flight = mesh_lib.InFlight()
      for step in range(first + 1, num_steps + 1):
        rows = order[(step - 1) * h.batch_size : step * h.batch_size]
        chosen = [examples[i] for i in rows]
        state, loss = model.step(state, chosen, rates[step - 1])
        losses.add(loss, sum(e.num_response for e in chosen))
        in_flight.add(loss)
        progress(1)
        if schedule.logs(step, num_steps):
          mean, num_tokens = losses.take(step)
          if step == num_steps and not trainer.all_finite(state):
            raise losses.not_finite(step)
          log.write(step, mean, float(rates[step - 1]), num_tokens)
        if schedule.saves(step, num_steps):
          checkpoints.save(step, state)
  return state


class _Losses:
  """Losses since the last line, kept on the device until they are written."""

  def __init__(self, run: store.Run, learning_rate: float):
    self._run = run
    self._learning_rate = learning_rate
    self._losses: list[jax.Array] = []
    self._num_tokens: list[int] = []

  def add(self, loss: jax.Array, num_tokens: int) -> None:
    self._losses.append(loss)
    self._num_tokens.append(num_tokens)

  def take(self, step: int) -> tuple[float, int]:
    """The mean loss per response token since the last call, and their number.

    Raises:
      InputError: one of them is not finite.
    """
    # The loop waits for the latest step only here: steps run back to back.
    values = np.asarray(jax.device_get(self._losses), np.float64)
    if not np.all(np.isfinite(values)):
      raise self.not_finite(
        step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
      )
    weights = np.maximum(self._num_tokens, 1)
    result = float(np.average(values, weights=weights)), sum(self._num_tokens)
    self._losses, self._num_tokens = [], []
    return result

  def not_finite(self, step: int) -> errors.InputError:
    return errors.InputError(
      f'finetuning {self._run.root.name}: the loss is not finite at step '
      f'{step}: lower finetuning.learning_rate (now {self._learning_rate:g}) '
      f'and remove {self._run.root.parent}, whose other cells used it too'
    )
