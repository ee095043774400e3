"""Which candidate gains most, on the host: from stale gains or from fresh ones.

Gains only fall, so that one computed earlier is an upper bound now.
"""

import heapq
from typing import Protocol

import numpy as np

from edsft_jax.selection.residuals import SparseResiduals


class Coverage(Protocol):
  """Computes marginal gains, given the candidates chosen so far."""

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""

  def cover(self, candidate: int) -> object:
    """Marks a candidate as chosen."""


class StaleGains:
  """A heap of stale gains, refreshed when they come to the top."""

  def __init__(self, coverage: Coverage, bound_C: np.ndarray) -> None:
    """Takes gains that may be stale; -inf: may not be picked."""
    self._coverage = coverage
    self._heap = [
      (-bound, c) for c, bound in enumerate(bound_C.tolist()) if bound > -np.inf
    ]
    heapq.heapify(self._heap)

  def best(self) -> tuple[int, float]:
    """Returns the best candidate and its gain; -inf if there is none."""
    heap = self._heap
    if not heap:
      return -1, -np.inf
    while True:
      candidate = heap[0][1]
      gain = self._coverage.gain(candidate)
      heapq.heapreplace(heap, (-gain, candidate))
      if heap[0][1] == candidate:
        return candidate, gain

  def pick(self, candidate: int) -> None:
    """Picks the best candidate."""
    heapq.heappop(self._heap)
    self._coverage.cover(candidate)


class FreshGains:
  """The gains of all candidates, updated after every pick."""

  def __init__(self, residuals: SparseResiduals, gain_C: np.ndarray) -> None:
    """Takes fresh gains, and overwrites them; -inf: may not be picked."""
    self._residuals = residuals
    self._by_row = residuals.by_row()
    self._gain_C = gain_C

  def best(self) -> tuple[int, float]:
    """Returns the best candidate and its gain; -inf if there is none."""
    while True:
      candidate = int(self._gain_C.argmax())
      noted = float(self._gain_C[candidate])
      if noted == -np.inf:
        return -1, noted
      if self._residuals.unweighted:
        return candidate, noted
      # With fractional weights, updates have left rounding errors.
      gain = self._residuals.gain(candidate)
      if gain == noted:
        return candidate, gain
      self._gain_C[candidate] = gain

  def pick(self, candidate: int) -> None:
    """Picks the best candidate."""
    row, before = self._residuals.cover(candidate)
    others, losses = self._by_row.losses(
      row, before, self._residuals.current_U[row]
    )
    np.subtract.at(self._gain_C, others, losses)
    self._gain_C[candidate] = -np.inf
