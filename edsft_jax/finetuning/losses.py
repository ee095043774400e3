"""The losses of a cell's steps, and their means."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from edsft_jax import errors, store
from edsft_jax.finetuning import trainer

# A last loss below this share of the first one has clearly fallen, although
# their examples differ.
_FALLEN = 0.8


class _Loss(NamedTuple):
  """The loss of a step, on the device until it is needed."""

  value: jax.Array | float
  num_tokens: int
  ids: Sequence[str]


class Losses:
  """Losses since the last line of the log.

  Attributes:
    first: the loss of the first line, which is that of the first step.
    last: the mean loss of the last line.
    num_lines: lines so far.
  """

  def __init__(
    self,
    run: store.Run,
    hyperparameters: trainer.Hyperparameters,
    last_checkpoint: Callable[[], int | None],
  ):
    self.first = self.last = math.nan
    self.num_lines = 0
    self._run = run
    self._learning_rate = hyperparameters.learning_rate
    self._last_checkpoint = last_checkpoint
    self._losses: list[_Loss] = []
    self._ids: Sequence[str] = ()

  @property
  def progress(self) -> dict[str, Any]:
    """What a resumed run needs, for JSON."""
    pending = [(float(loss.value), loss.num_tokens) for loss in self._losses]
    return {
      'first': self.first,
      'losses': pending,
      'lines': self.num_lines,
    }

  def restore(self, saved: Mapping[str, Any]) -> None:
    """Restores what `progress` returned."""
    self.first = saved.get('first', self.first)
    self.num_lines = saved.get('lines', 0)
    self._losses = [_Loss(value, n, ()) for value, n in saved.get('losses', [])]

  def add(self, loss: jax.Array, num_tokens: int, ids: Sequence[str]) -> None:
    """Adds the mean loss of a step, its response tokens and its prompts."""
    self._losses.append(_Loss(loss, num_tokens, ids))
    self._ids = ids

  def check(self, step: int, state: trainer.State) -> None:
    """Waits for the last step, and looks for values that are not finite.

    Raises:
      InputError: a loss or a parameter is not finite.
    """
    self._values(step)
    if not trainer.all_finite(state):
      raise self.not_finite('the weights are', step, self._ids)

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
    self._losses = []
    self.num_lines += 1
    return self.last, sum(counts)

  @property
  def may_have_risen(self) -> bool:
    """Whether the last line's loss is not clearly lower than the first's.

    Always after a single step, since both are from before it.
    """
    return self.last > _FALLEN * self.first

  def _values(self, step: int) -> np.ndarray:
    # The loop waits for the latest step only here: steps run back to back.
    values = np.asarray(
      jax.device_get([loss.value for loss in self._losses]), np.float64
    )
    if not np.all(np.isfinite(values)):
      first = int(np.argmin(np.isfinite(values)))
      ids = self._losses[first].ids
      raise self.not_finite('the loss is', step - len(values) + 1 + first, ids)
    return values

  def not_finite(
    self, what: str, step: int, ids: Sequence[str] = ()
  ) -> errors.InputError:
    """The error for a step that did not end well.

    Args:
      what: what is not finite, with its verb.
      step: the step.
      ids: the prompts that it was seen on.
    """
    more = f' and {len(ids) - _IDS_SHOWN} more' if len(ids) > _IDS_SHOWN else ''
    saved = self._last_checkpoint()
    before = (
      'no checkpoint is older'
      if saved is None
      else f'the last checkpoint is {self._run.checkpoints / str(saved)}'
    )
    shown = ', '.join(map(repr, ids[:_IDS_SHOWN]))
    prompts = f', on the prompts {shown}{more}' if ids else ''
    return errors.InputError(
      f'finetuning {self._run.root.name}: {what} not finite at step {step}'
      f'{prompts} ({before}): lower finetuning.learning_rate (now '
      f'{self._learning_rate:g}) and remove {self._run.root.parent}, whose '
      'other cells used it too'
    )


_IDS_SHOWN = 4
