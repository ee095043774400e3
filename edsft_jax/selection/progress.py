"""Reports the progress of a selection to its caller."""

from collections.abc import Callable
from typing import TypeAlias

import jax

from edsft_jax.selection.errors import SelectionError

# Called with (picks made, budget).
Callback: TypeAlias = Callable[[int, int], None]


class Progress:
  """Calls a function with the number of picks so far and the budget.

  The number of picks never decreases, and the last call is (budget, budget). A
  pass over the pool makes no picks: it calls after each of its parts with the
  same number, to show that work continues. An exception from the callback ends
  the selection.
  """

  def __init__(self, callback: Callback | None, budget: int = 0) -> None:
    """Starts with no picks.

    Args:
      callback: None: nothing is reported, at no cost.
      budget: number of picks in the end.
    """
    if callback is not None and not callable(callback):
      raise SelectionError(f'progress {callback!r} cannot be called')
    self._callback = callback
    self._budget = budget
    self._picks = 0

  @property
  def active(self) -> bool:
    """Whether there is a callback."""
    return self._callback is not None

  def start(self, budget: int) -> None:
    """Sets the budget, if it was not known before."""
    self._budget = budget
    self.working()

  def picked(self, picks: int) -> None:
    """Reports the number of picks so far."""
    if self._callback is not None:
      self._picks = max(self._picks, picks)
      self._callback(self._picks, self._budget)

  def working(self) -> None:
    """Reports that work continues, without another pick."""
    if self._callback is not None:
      self._callback(self._picks, self._budget)

  def wait(self, array: jax.Array) -> None:
    """Waits for a device to compute the array, then calls `working`.

    JAX dispatches work asynchronously: without waiting, all of it would be
    reported when it is dispatched. Without a callback, it does not wait.
    """
    if self._callback is not None:
      jax.block_until_ready(array)
      self._callback(self._picks, self._budget)

  def after(self, before: int) -> Callback | None:
    """Returns a callback for one of several runs, after `before` picks."""
    if self._callback is None:
      return None
    return lambda picks, budget: self.picked(before + picks)

  def provisional(self) -> 'Progress':
    """Returns a Progress for picks that may be discarded: it counts none."""
    if self._callback is None:
      return self
    return Progress(lambda picks, budget: self.working())
