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
    # A panel holds the lists of some candidates one after the other: rows,
    # similarities, and where each list ends.
    self._panels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    # For each candidate its panel, and where its list starts and ends there.
    self._places: list[tuple[int, int, int]] = []
    self.num_entries = 0

  def append(self, s_CxU: np.ndarray) -> None:
    """Adds candidates, given their similarities to all rows."""
    size = s_CxU.shape[1]
    position = np.flatnonzero(s_CxU > self.current_U)
    ends = np.searchsorted(position, np.arange(1, len(s_CxU) + 1) * size)
    value = s_CxU.reshape(-1)[position]
    position -= np.repeat(
      np.arange(len(s_CxU)) * size, np.diff(ends, prepend=0)
    )
    self._add_panel(position.astype(np.int32), value, ends)

  def _add_panel(
    self, row: np.ndarray, value: np.ndarray, end_C: np.ndarray
  ) -> None:
    ends = end_C.tolist()
    panel = len(self._panels)
    self._places += zip([panel] * len(ends), [0, *ends], ends, strict=False)
    self._panels.append((row, value, end_C))
    self.num_entries += len(row)

  def _list(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and similarities of a candidate."""
    panel, start, end = self._places[candidate]
    row, value, _ = self._panels[panel]
    return row[start:end], value[start:end]

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""
    row, extra = self._list(candidate)
    extra = extra - self.current_U[row]
    np.maximum(extra, 0.0, out=extra)
    if self._weight_U is None:
      return float(np.add.reduce(extra, dtype=np.float64))
    return float(np.dot(extra.astype(np.float64), self._weight_U[row]))

  def gains(self) -> np.ndarray:
    """Returns the marginal gains of all candidates."""
    parts = [np.zeros(0)]
    for row, value, end_C in self._panels:
      extra = np.maximum(value - self.current_U[row], 0.0).astype(np.float64)
      if self._weight_U is not None:
        extra *= self._weight_U[row]
      sums = np.concatenate([[0.0], extra.cumsum()])[end_C]
      parts.append(np.diff(sums, prepend=0.0))
    return np.concatenate(parts)

  def cover(self, candidate: int) -> None:
    """Counts a candidate as chosen."""
    row, value = self._list(candidate)
    self.current_U[row] = np.maximum(self.current_U[row], value)

  def compact(self) -> None:
    """Drops the entries that can no longer count."""
    # Taken from the end, so that no panel outlives its turn.
    panels, self._panels, self._places = self._panels[::-1], [], []
    self.num_entries = 0
    while panels:
      row, value, end_C = panels.pop()
      alive = np.flatnonzero(value > self.current_U[row])
      self._add_panel(row[alive], value[alive], np.searchsorted(alive, end_C))


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
