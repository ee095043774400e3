"""The end of greedy facility location: lazy picks over short lists.

Once some picks are made, a similarity that does not exceed how well its row
is covered already can never count again, because coverage only rises. What is
left is about N / t entries a row after t picks.
"""

from collections.abc import Iterable
import heapq

import numpy as np


class ShortLists:
  """For each candidate the rows it could still cover better, on the host."""

  def __init__(
    self,
    blocks: Iterable[np.ndarray],
    current_U: np.ndarray,
    weight_U: np.ndarray,
  ):
    """Keeps the entries of [candidates, rows] blocks that exceed current_U."""
    self.current_U = current_U.copy()
    self._weight_U = weight_U
    self._row_lists: list[np.ndarray] = []
    self._value_lists: list[np.ndarray] = []
    for block in blocks:
      for s_U in block:
        row = np.flatnonzero(s_U > self.current_U).astype(np.int32)
        self._row_lists.append(row)
        self._value_lists.append(s_U[row])

  @property
  def num_entries(self) -> int:
    return sum(map(len, self._row_lists))

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""
    row = self._row_lists[candidate]
    extra = self._value_lists[candidate] - self.current_U[row]
    np.maximum(extra, 0.0, out=extra)
    return float(np.dot(extra, self._weight_U[row]))

  def gains(self) -> np.ndarray:
    """Returns the marginal gains of all candidates."""
    return np.asarray(
      [self.gain(c) for c in range(len(self._row_lists))], np.float64
    )

  def cover(self, candidate: int) -> None:
    """Counts a candidate as chosen."""
    row = self._row_lists[candidate]
    self.current_U[row] = np.maximum(
      self.current_U[row], self._value_lists[candidate]
    )

  def compact(self) -> None:
    """Drops the entries that can no longer count."""
    for c, (row, value) in enumerate(
      zip(self._row_lists, self._value_lists, strict=True)
    ):
      keep = value > self.current_U[row]
      self._row_lists[c], self._value_lists[c] = row[keep], value[keep]


def finish(
  lists: ShortLists, bound_C: np.ndarray, picked: list[int], budget: int
) -> tuple[list[int], list[float]]:
  """Goes on with lazy greedy until the budget or until nothing gains.

  Args:
    lists: what each candidate could still cover.
    bound_C: stale marginal gains; fresh ones are not larger. Overwritten.
    picked: candidates picked before.
    budget: of picks in all.

  Returns:
    New picks and their gains.
  """
  done = set(picked)
  heap = [(-g, c) for c, g in enumerate(bound_C.tolist()) if c not in done]
  heapq.heapify(heap)
  picks: list[int] = []
  gains: list[float] = []
  next_compaction = 2 * max(len(picked), 16)
  while len(picked) + len(picks) < budget:
    _, candidate = heap[0]
    fresh = (-lists.gain(candidate), candidate)
    heapq.heapreplace(heap, fresh)
    bound_C[candidate] = -fresh[0]
    if heap[0] != fresh:
      continue
    if fresh[0] == 0.0:
      break
    heapq.heappop(heap)
    lists.cover(candidate)
    picks.append(candidate)
    gains.append(-fresh[0])
    if len(picked) + len(picks) >= next_compaction:
      lists.compact()
      next_compaction *= 2
  return picks, gains
