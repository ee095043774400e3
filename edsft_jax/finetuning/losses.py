"""The losses of a cell's steps: their means, and whether they rose."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from edsft_jax import errors, store
from edsft_jax.finetuning import batches, trainer

# The last loss must exceed the first step's by this factor, because their
# examples differ: the pretrained SmolLM2 has losses from 2.4 to 5.5 on steps of
# eight short answers.
_RISE = 2


class _Loss(NamedTuple):
  """The loss of a step, on the device until it is needed."""

  value: jax.Array | float
  num_tokens: int
  ids: Sequence[str]


class Losses:
  """Losses since the last line of the log, and in the first and last epoch.

  Attributes:
    first: the loss of the first line, which is that of the first step.
    last: the mean loss of the last line.
  """

  def __init__(
    self,
    run: store.Run,
    hyperparameters: trainer.Hyperparameters,
    num_examples: int,
    last_checkpoint: Callable[[], int | None],
  ):
    h = hyperparameters
    self.first = self.last = math.nan
    self._run = run
    self._learning_rate = h.learning_rate
    self._last_checkpoint = last_checkpoint
    self._losses: list[_Loss] = []
    num_steps = batches.num_steps(num_examples, h.epochs, h.batch_size)
    # The steps of the first and of the last epoch; empty if there is only one.
    length = num_steps // h.epochs if h.epochs > 1 else 0
    self._epochs = (
      range(1, length + 1),
      range(num_steps - length + 1, num_steps + 1),
    )
    # For each of them, the sum of the losses and the number of tokens.
    self._sums = [(0.0, 0), (0.0, 0)]

  @property
  def progress(self) -> dict[str, Any]:
    """What a resumed run needs, for JSON."""
    pending = [(float(loss.value), loss.num_tokens) for loss in self._losses]
    return {'first': self.first, 'losses': pending, 'epochs': self._sums}

  def restore(self, saved: Mapping[str, Any]) -> None:
    """Restores what `progress` returned."""
    self.first = saved.get('first', self.first)
    self._losses = [_Loss(value, n, ()) for value, n in saved.get('losses', [])]
    self._sums = [(total, n) for total, n in saved.get('epochs', self._sums)]

  def add(self, loss: jax.Array, num_tokens: int, ids: Sequence[str]) -> None:
    """Adds the mean loss of a step, its response tokens and its prompts."""
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
    if math.isnan(self.first):
      self.first = self.last
    for number, epoch in enumerate(self._epochs):
      total, num_tokens = self._sums[number]
      for i, count in enumerate(counts, step - len(counts) + 1):
        if i in epoch:
          total += float(values[i - step - 1]) * count
          num_tokens += count
      self._sums[number] = total, num_tokens
    self._losses = []
    return self.last, sum(counts)

  def rise(self) -> tuple[float, float] | None:
    """The mean losses at the start and at the end if the loss rose, else None.

    The last epoch is compared with the first, which has the same examples, and
    the last line of the log with the first step. Their examples differ, so that
    rise must be large.
    """
    if self.last > _RISE * self.first:
      return self.first, self.last
    if not all(num_tokens for _, num_tokens in self._sums):
      return None
    start, end = (total / num_tokens for total, num_tokens in self._sums)
    return (start, end) if end > start else None

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
