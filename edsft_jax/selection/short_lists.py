"""Greedy facility location over what can still count, on the host.

A similarity that does not exceed how well its row is covered already can never
count again, because coverage only rises. So the entries above it are all that
exact greedy needs: on average about N / t a row after t picks.
"""

import heapq

import numpy as np
from scipy import sparse

from edsft_jax.selection import kernel

# Entries a candidate, on average, from which on all gains are kept fresh: a
# pick then changes about the square of it.
_SHORT = 256


class ShortLists:
  """For each candidate the rows that it could still cover better."""

  def __init__(
    self, current_U: np.ndarray, weight_U: np.ndarray, num_candidates: int
  ):
    """Starts empty; candidates are added in any order.

    Args:
      current_U: float32, each row's largest similarity to a chosen one.
      weight_U: float64, what covering each row is worth.
      num_candidates: how many there are.
    """
    self.current_U = current_U.copy()
    self._weight_U = None if (weight_U == 1).all() else weight_U
    # A panel holds the lists of some candidates one after the other:
    # candidates, rows, similarities, and where each list ends.
    self._panels: list[tuple[np.ndarray, ...]] = []
    # For each candidate its panel, and where its list starts and ends there.
    self._places: list[tuple[int, int, int]] = [(0, 0, 0)] * num_candidates
    self.num_entries = 0

  @property
  def unweighted(self) -> bool:
    """Whether every row is worth 1."""
    return self._weight_U is None

  def append(self, candidates: np.ndarray, s_CxU: np.ndarray) -> None:
    """Adds candidates, given their similarities to all rows."""
    size = s_CxU.shape[1]
    position = np.flatnonzero(s_CxU > self.current_U)
    ends = np.searchsorted(position, np.arange(1, len(s_CxU) + 1) * size)
    value = s_CxU.reshape(-1)[position]
    position -= np.repeat(
      np.arange(len(s_CxU)) * size, np.diff(ends, prepend=0)
    )
    self.add_panel(candidates, position.astype(np.int32), value, ends)

  def add_panel(
    self,
    candidates: np.ndarray,
    row: np.ndarray,
    value: np.ndarray,
    end_C: np.ndarray,
  ) -> None:
    """Adds candidates, given their lists one after the other."""
    panel, ends = len(self._panels), end_C.tolist()
    for candidate, start, end in zip(
      candidates.tolist(), [0, *ends], ends, strict=False
    ):
      self._places[candidate] = panel, start, end
    self._panels.append((candidates, row, value, end_C))
    self.num_entries += len(row)

  def _list(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and similarities of a candidate."""
    panel, start, end = self._places[candidate]
    _, row, value, _ = self._panels[panel]
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
    gain_C = np.zeros(len(self._places))
    for candidates, row, value, end_C in self._panels:
      extra = np.maximum(value - self.current_U[row], 0.0).astype(np.float64)
      if self._weight_U is not None:
        extra *= self._weight_U[row]
      sums = np.concatenate([[0.0], extra.cumsum()])[end_C]
      gain_C[candidates] = np.diff(sums, prepend=0.0)
    return gain_C

  def cover(self, candidate: int) -> tuple[np.ndarray, ...]:
    """Counts a candidate as chosen.

    Returns:
      The rows that it covers better, and how well they were covered before.
    """
    row, value = self._list(candidate)
    better = value > self.current_U[row]
    row = row[better]
    before = self.current_U[row]
    self.current_U[row] = value[better]
    return row, before

  def compact(self) -> None:
    """Drops the entries that can no longer count."""
    # Taken from the end, so that no panel outlives its turn.
    panels, self._panels = self._panels[::-1], []
    self.num_entries = 0
    while panels:
      candidates, row, value, end_C = panels.pop()
      alive = np.flatnonzero(value > self.current_U[row])
      ends = np.searchsorted(alive, end_C)
      self.add_panel(candidates, row[alive], value[alive], ends)

  def by_row(self) -> 'RowLists':
    """Returns the same entries, listed for each row."""
    # Counting sort.
    candidates, rows, values, end_C = zip(*self._panels, strict=True)
    lengths = np.concatenate([np.diff(ends, prepend=0) for ends in end_C])
    shape = len(lengths), len(self.current_U)
    by_candidate = sparse.csr_array(
      (
        np.concatenate(values),
        np.concatenate(rows),
        np.concatenate([[0], lengths.cumsum()]),
      ),
      shape,
    )
    columns = by_candidate.tocsc()
    candidate = np.concatenate(candidates)[columns.indices]
    return RowLists(columns.indptr, candidate, columns.data, self._weight_U)


class RowLists:
  """For each row the candidates that could still cover it better."""

  def __init__(
    self,
    start_U: np.ndarray,
    candidate: np.ndarray,
    value: np.ndarray,
    weight_U: np.ndarray | None,
  ):
    """Takes the lists one after the other, and where each starts."""
    self._start_U = start_U
    self._count_U = np.diff(start_U)
    self._numbers = np.arange(len(value), dtype=start_U.dtype)
    self._candidate = candidate
    self._value = value
    self._weight_U = weight_U

  def losses(
    self, row: np.ndarray, before: np.ndarray, after: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns candidates, with repetition, and what their gains lose.

    Args:
      row: the rows that are covered better than before.
      before: how well each was covered.
      after: and how well now.
    """
    # Methods, and not the functions of numpy: there are few entries.
    count = self._count_U[row]
    first = self._start_U[row] - (count.cumsum() - count)
    entry = first.repeat(count)
    entry += self._numbers[: len(entry)]
    value = self._value[entry]
    # Differences are rounded as those that were added up.
    loss = value - before.repeat(count)
    np.maximum(loss, 0.0, out=loss)
    value -= after.repeat(count)
    np.maximum(value, 0.0, out=value)
    loss = loss.astype(np.float64)
    loss -= value
    if self._weight_U is not None:
      loss *= self._weight_U[row].repeat(count)
    return self._candidate[entry], loss


class TileCutter:
  """Makes short lists of tiles that each serve both of their sides."""

  def __init__(
    self,
    lists: ShortLists,
    row_C: np.ndarray,
    tile_rows: int,
    most_entries: float,
  ):
    """Cuts at the coverage of `lists`, for candidates that are these rows."""
    self._lists = lists
    self._current_TxR = lists.current_U.reshape(-1, tile_rows)
    self._candidate_TxR = np.full(self._current_TxR.shape, -1)
    self._candidate_TxR.reshape(-1)[row_C] = np.arange(len(row_C))
    # Of each tile's candidates: which one, rows and similarities.
    self._pieces: list[list] = [[] for _ in self._current_TxR]
    self._room = most_entries

  @property
  def fits(self) -> bool:
    """Whether there was room for all."""
    return self._room >= 0

  def cut(self, a: int, b: int, s_AxB: np.ndarray) -> bool:
    """Takes the next pair, ordered by a, then b >= a; False: no more room."""
    candidate, row, value = _entries(s_AxB, self._current_TxR[b])
    self._keep(a, candidate, row + np.int32(b * len(s_AxB)), value)
    if a != b:
      row, candidate, value = _entries(s_AxB, self._current_TxR[a][:, None])
      self._keep(b, candidate, row + np.int32(a * len(s_AxB)), value)
    if b == len(self._pieces) - 1:
      self._finish(a)
    return self.fits

  def _keep(self, tile: int, *piece: np.ndarray) -> None:
    known_R = self._candidate_TxR[tile] >= 0
    if not known_R.all():
      known = known_R[piece[0]]
      piece = tuple(part[known] for part in piece)
    self._pieces[tile].append(piece)
    self._room -= len(piece[0])

  def _finish(self, tile: int) -> None:
    """Puts all of one tile's candidates together: no more will come."""
    pieces, self._pieces[tile] = self._pieces[tile], []
    candidate, row, value = map(np.concatenate, zip(*pieces, strict=True))
    pieces.clear()
    candidate_R = self._candidate_TxR[tile]
    known_R = candidate_R >= 0
    # Counting sort.
    shape = len(known_R), self._current_TxR.size
    by_candidate = sparse.coo_array((value, (candidate, row)), shape).tocsr()
    self._lists.add_panel(
      candidate_R[known_R],
      by_candidate.indices,
      by_candidate.data,
      by_candidate.indptr[1:][known_R],
    )


def _entries(
  s_AxB: np.ndarray, current: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the entries above coverage: where in A, where in B, and which."""
  position = np.flatnonzero(s_AxB > current)
  value = s_AxB.reshape(-1)[position]
  position = position.astype(np.int32)
  size = s_AxB.shape[1]
  in_a = position // size
  return in_a, position - in_a * size, value


def finish(
  lists: ShortLists, bound_C: np.ndarray, num_picked: int, budget: int
) -> tuple[list[int], list[float]]:
  """Goes on with greedy until the budget, or until nothing gains.

  Lazy while lists are long. Once they are short it takes less to keep all
  gains fresh: a pick changes those that share a row with it.

  Args:
    lists: what each candidate could still cover.
    bound_C: marginal gains, perhaps stale: fresh ones are not larger; -inf for
      candidates that may not be picked. Overwritten.
    num_picked: picks made before.
    budget: of picks in all.

  Returns:
    New picks and their gains.
  """
  order: StaleGains | _FreshGains = StaleGains(lists, bound_C)
  picks: list[int] = []
  gains: list[float] = []
  next_compaction = max(8, 2 * num_picked)
  while num_picked + len(picks) < budget:
    candidate, gain = order.best()
    if gain <= 0.0:
      break
    order.pick(candidate)
    bound_C[candidate] = -np.inf
    picks.append(candidate)
    gains.append(gain)
    if num_picked + len(picks) >= next_compaction:
      lists.compact()
      bound_C = np.where(np.isneginf(bound_C), bound_C, lists.gains())
      short = lists.num_entries <= _SHORT * len(bound_C)
      next_compaction *= 4 if short else 2
      order = (_FreshGains if short else StaleGains)(lists, bound_C)
  return picks, gains


class StaleGains:
  """A heap of stale gains, refreshed when they come to the top."""

  def __init__(self, lists: ShortLists | kernel.Kernel, bound_C: np.ndarray):
    """Takes gains that may be stale; -inf: not to be picked."""
    self._lists = lists
    self._heap = [
      (-bound, c) for c, bound in enumerate(bound_C.tolist()) if bound > -np.inf
    ]
    heapq.heapify(self._heap)

  def best(self) -> tuple[int, float]:
    """Returns the best candidate and its gain; -inf when there is none."""
    heap = self._heap
    if not heap:
      return -1, -np.inf
    while True:
      candidate = heap[0][1]
      gain = self._lists.gain(candidate)
      heapq.heapreplace(heap, (-gain, candidate))
      if heap[0][1] == candidate:
        return candidate, gain

  def pick(self, candidate: int) -> None:
    """Takes the best candidate."""
    heapq.heappop(self._heap)
    self._lists.cover(candidate)


class _FreshGains:
  """All gains, lowered with every pick."""

  def __init__(self, lists: ShortLists, gain_C: np.ndarray):
    self._lists = lists
    self._by_row = lists.by_row()
    self._gain_C = gain_C

  def best(self) -> tuple[int, float]:
    """Returns the best candidate and its gain; -inf when there is none."""
    while True:
      candidate = int(self._gain_C.argmax())
      noted = float(self._gain_C[candidate])
      if noted == -np.inf:
        return -1, noted
      if self._lists.unweighted:
        return candidate, noted
      # Weights that are no whole numbers leave rounding behind.
      gain = self._lists.gain(candidate)
      if gain == noted:
        return candidate, gain
      self._gain_C[candidate] = gain

  def pick(self, candidate: int) -> None:
    """Takes the best candidate."""
    row, before = self._lists.cover(candidate)
    others, losses = self._by_row.losses(
      row, before, self._lists.current_U[row]
    )
    np.subtract.at(self._gain_C, others, losses)
    self._gain_C[candidate] = -np.inf
