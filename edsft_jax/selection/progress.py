"""Tells a caller how far a selection is."""

from collections.abc import Callable
from typing import TypeAlias

import jax

from edsft_jax.selection.errors import SelectionError

# Called with (picks made, budget).
Callback: TypeAlias = Callable[[int, int], None]


class Progress:
  """Calls back with the picks made so far, and with the budget.

  The picks never fall, and the last call has (budget, budget). A pass over the
  pool makes no picks: it calls with the same number again for each part of it,
  which says that work goes on. What the callback raises ends the selection.
  """

  def __init__(self, callback: Callback | None, budget: int = 0) -> None:
    """Starts with no picks.

    Args:
      callback: None: nothing is reported, which costs nothing.
      budget: picks in all.
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
    """Sets the budget, where it was not known before."""
    self._budget = budget
    self.working()

  def picked(self, picks: int) -> None:
    """Says how many picks are made."""
    if self._callback is not None:
      self._picks = max(self._picks, picks)
      self._callback(self._picks, self._budget)

  def working(self) -> None:
    """Says that work goes on, without another pick."""
    if self._callback is not None:
      self._callback(self._picks, self._budget)

  def wait(self, array: jax.Array) -> None:
    """Says so once a device has computed the array.

    Devices are handed work ahead of time: without waiting, all of it would be
    reported when it is handed over. Without a callback nothing waits.
    """
    if self._callback is not None:
      jax.block_until_ready(array)
      self._callback(self._picks, self._budget)

  def after(self, before: int) -> Callback | None:
    """Returns a callback for one of several runs, given the picks before it."""
    if self._callback is None:
      return None
    return lambda picks, budget: self.picked(before + picks)

  def provisional(self) -> 'Progress':
    """Returns one for work whose picks may not stand: they do not count."""
    if self._callback is None:
      return self
    return Progress(lambda picks, budget: self.working())
