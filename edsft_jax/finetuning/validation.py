"""The held-out loss during training: best checkpoint and early stopping."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from edsft_jax.finetuning.checkpoints import Checkpoints
from edsft_jax.finetuning.trainer import State, Trainer
from edsft_jax.models.responses import Example

# Examples that are divided into micro-batches together.
_EXAMPLES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Options:
  """What the held-out loss decides.

  Attributes:
    keep_best: whether to export the state with the lowest one.
    early_stopping: how many losses without a new lowest one end a run; 0: none
      does.
  """

  keep_best: bool
  early_stopping: int


class Validation:
  """Computes a cell's held-out losses; a context manager."""

  def __init__(
    self,
    options: Options,
    model: Trainer,
    examples: Sequence[Example],
    directory: pathlib.Path,
  ):
    """Computes nothing yet.

    Args:
      options: what the losses decide.
      model: the trainer.
      examples: held-out prompts with their reference answers.
      directory: where the best state is kept, in the cell's folder.
    """
    self._options = options
    self._model = model
    self._examples = examples
    # If the best state is lost, resuming cannot make it again: the training's
    # checkpoints may all be of later steps.
    self._checkpoints = Checkpoints(
      directory,
      max_to_keep=None,
      remedy=f'remove {directory.parent} and run the same command to train '
      'this cell again',
    )
    self._best: float | None = None
    self._best_step = 0
    self._num_worse = 0

  def __enter__(self) -> 'Validation':
    self._checkpoints.__enter__()
    return self

  def __exit__(self, *exception: Any) -> None:
    self._checkpoints.__exit__(*exception)

  def loss(self, state: State) -> float:
    """The loss per response token."""
    num_tokens = sum(example.num_response for example in self._examples)
    total = sum(
      self._model.nll(state, self._examples[first : first + _EXAMPLES_AT_ONCE])
      for first in range(0, len(self._examples), _EXAMPLES_AT_ONCE)
    )
    return total / max(num_tokens, 1)

  def add(self, step: int, loss: float, state: State) -> None:
    """Takes the loss after a step; keeps the best state."""
    if self._best is not None and loss >= self._best:
      self._num_worse += 1
      return
    self._best, self._best_step, self._num_worse = loss, step, 0
    if not self._options.keep_best:
      return
    # Another one stays until this one is complete: the training's last
    # checkpoint may be from a time when an earlier one was the best, and one of
    # a later step, from before an interruption, will be it again.
    if not self._checkpoints.has(step):
      self._checkpoints.save(step, state, {})
      self._checkpoints.wait()
    self._checkpoints.remove_others(step)

  @property
  def is_over(self) -> bool:
    """Whether the losses end the run."""
    patience = self._options.early_stopping
    return bool(patience) and self._num_worse >= patience

  @property
  def progress(self) -> dict[str, Any]:
    """What a resumed run needs, for JSON."""
    return {
      'best': self._best,
      'best_step': self._best_step,
      'num_worse': self._num_worse,
    }

  def restore(self, progress: Mapping[str, Any]) -> None:
    """Takes what `progress` gave; empty for a new run.

    Raises:
      InputError: the best state was to be kept, and is missing or damaged.
    """
    self._best = progress.get('best')
    self._best_step = progress.get('best_step', 0)
    self._num_worse = progress.get('num_worse', 0)
    # A later one was the best before an interruption, and will be again.
    needed = max(self._best_step, self._last_kept)
    if self._options.keep_best and needed:
      self._checkpoints.check(needed)

  def choose(self, state: State) -> tuple[State, dict[str, Any]]:
    """The state to export, and the facts for cell.json.

    Raises:
      InputError: it is the best state, which is missing or damaged.
    """
    facts = {'best_step': self._best_step, 'best_heldout_loss': self._best}
    if self._options.keep_best:
      state = self._checkpoints.read(self._best_step, state).state
      facts['exported_step'] = self._best_step
    return state, facts

  @property
  def _last_kept(self) -> int:
    """The step of the state on disk; 0: there is none."""
    return self._checkpoints.last_step or 0
