"""Greedy facility location over what can still count, on the host.

A similarity that does not exceed how well its row is covered already can never
count again, because coverage only rises. So the entries above it are all that
exact greedy needs: on average about N / t a row after t picks.
"""

import heapq

import numpy as np


class ShortLists:
  """For each candidate the rows that it could still cover better."""

  def __init__(self, current_U: np.ndarray, weight_U: np.ndarray):
    """Starts empty; `append` adds the candidates in order.

    Args:
      current_U: float32, each row's largest similarity to a chosen one.
      weight_U: float64, what covering each row is worth.
    """
    self.current_U = current_U.copy()
    self._weight_U = None if (weight_U == 1).all() else weight_U
    # A panel holds the lists of some candidates one after the other.
    self._panels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    self._rows: list[np.ndarray] = []
    self._values: list[np.ndarray] = []
    self.num_entries = 0

  def append(self, s_CxU: np.ndarray) -> None:
    """Adds candidates, given their similarities to all rows."""
    alive_CxU = s_CxU > self.current_U
    count_C = np.count_nonzero(alive_CxU, axis=1)
    position = np.flatnonzero(alive_CxU)
    value = s_CxU.reshape(-1)[position]
    position -= np.repeat(np.arange(len(s_CxU)) * s_CxU.shape[1], count_C)
    self._panels.append((position.astype(np.int32), value, count_C))
    self.num_entries += len(value)
    self._slice(*self._panels[-1])

  def _slice(
    self, row: np.ndarray, value: np.ndarray, count_C: np.ndarray
  ) -> None:
    """Gives each candidate of a panel its own views."""
    start = 0
    for end in np.cumsum(count_C).tolist():
      self._rows.append(row[start:end])
      self._values.append(value[start:end])
      start = end

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""
    row = self._rows[candidate]
    extra = self._values[candidate] - self.current_U[row]
    np.maximum(extra, 0.0, out=extra)
    if self._weight_U is None:
      return float(np.add.reduce(extra, dtype=np.float64))
    return float(np.dot(extra.astype(np.float64), self._weight_U[row]))

  def gains(self) -> np.ndarray:
    """Returns the marginal gains of all candidates."""
    parts = [np.zeros(0)]
    for row, value, count_C in self._panels:
      extra = np.maximum(value - self.current_U[row], 0.0).astype(np.float64)
      if self._weight_U is not None:
        extra *= self._weight_U[row]
      sums = np.concatenate([[0.0], np.cumsum(extra)])[np.cumsum(count_C)]
      parts.append(np.diff(sums, prepend=0.0))
    return np.concatenate(parts)

  def cover(self, candidate: int) -> None:
    """Counts a candidate as chosen."""
    row = self._rows[candidate]
    self.current_U[row] = np.maximum(
      self.current_U[row], self._values[candidate]
    )

  def compact(self) -> None:
    """Drops the entries that can no longer count."""
    self._rows, self._values = [], []
    self.num_entries = 0
    for p, (row, value, count_C) in enumerate(self._panels):
      alive = value > self.current_U[row]
      ends = np.concatenate([[0], np.cumsum(alive)])[np.cumsum(count_C)]
      panel = (row[alive], value[alive], np.diff(ends, prepend=0))
      self._panels[p] = panel
      self.num_entries += len(panel[0])
      self._slice(*panel)


def finish(
  lists: ShortLists, bound_C: np.ndarray, num_picked: int, budget: int
) -> tuple[list[int], list[float]]:
  """Goes on with lazy greedy until the budget, or until nothing gains.

  Args:
    lists: what each candidate could still cover.
    bound_C: marginal gains, perhaps stale: fresh ones are not larger; -inf for
      candidates that may not be picked. Overwritten.
    num_picked: picks made before.
    budget: of picks in all.

  Returns:
    New picks and their gains.
  """
  heap = [(-g, c) for c, g in enumerate(bound_C.tolist()) if g > -np.inf]
  heapq.heapify(heap)
  picks: list[int] = []
  gains: list[float] = []
  next_compaction = max(16, 4 * num_picked)
  while heap and num_picked + len(picks) < budget:
    candidate = heap[0][1]
    gain = lists.gain(candidate)
    bound_C[candidate] = gain
    heapq.heapreplace(heap, (-gain, candidate))
    if heap[0][1] != candidate:
      continue
    if gain == 0.0:
      break
    heapq.heappop(heap)
    bound_C[candidate] = -np.inf
    lists.cover(candidate)
    picks.append(candidate)
    gains.append(gain)
    if num_picked + len(picks) >= next_compaction:
      lists.compact()
      next_compaction *= 4
  return picks, gains
