"""Sparse residuals: the similarities that can still count, on the host.

A similarity that does not exceed its row's coverage adds nothing, and never
will, because coverage only rises. So the entries above coverage are all that
exact greedy needs: on average about N / t per row after t picks.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from edsft_jax.selection.progress import Progress


class Panel(NamedTuple):
  """The entries of some candidates, one candidate after the other.

  Attributes:
    candidate_C: the candidates.
    row: the row of each entry.
    value: the similarity of each entry.
    end_C: where each candidate's entries end.
  """

  candidate_C: np.ndarray
  row: np.ndarray
  value: np.ndarray
  end_C: np.ndarray


class SparseResiduals:
  """For each candidate, the rows that it could still cover better.

  Attributes:
    current_U: float32, each row's largest similarity to a chosen one.
    num_entries: total number of entries.
  """

  def __init__(
    self,
    current_U: np.ndarray,
    weight_U: np.ndarray,
    num_candidates: int,
    progress: Progress,
  ) -> None:
    """Starts empty; candidates are added in any order.

    Args:
      current_U: float32, each row's largest similarity to a chosen one.
      weight_U: float64, what covering each row is worth.
      num_candidates: number of candidates.
      progress: called after every panel of a pass over all entries.
    """
    self.current_U = current_U.copy()
    self._weight_U = None if (weight_U == 1).all() else weight_U
    self._panels: list[Panel] = []
    # For each candidate its panel, and where its entries start and end there.
    self._places: list[tuple[int, int, int]] = [(0, 0, 0)] * num_candidates
    self._progress = progress
    self.num_entries = 0

  @property
  def unweighted(self) -> bool:
    """Whether every row is worth 1."""
    return self._weight_U is None

  def append(self, candidate_C: np.ndarray, s_CxU: np.ndarray) -> None:
    """Adds candidates, given their similarities to all rows."""
    size = s_CxU.shape[1]
    position = np.flatnonzero(s_CxU > self.current_U)
    end_C = np.searchsorted(position, np.arange(1, len(s_CxU) + 1) * size)
    value = s_CxU.reshape(-1)[position]
    position -= np.repeat(
      np.arange(len(s_CxU)) * size, np.diff(end_C, prepend=0)
    )
    self.add(Panel(candidate_C, position.astype(np.int32), value, end_C))

  def add(self, panel: Panel) -> None:
    """Adds candidates, given their entries."""
    number, ends = len(self._panels), panel.end_C.tolist()
    for candidate, start, end in zip(
      panel.candidate_C.tolist(), [0, *ends], ends, strict=False
    ):
      self._places[candidate] = number, start, end
    self._panels.append(panel)
    self.num_entries += len(panel.row)

  def _entries(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and similarities of a candidate."""
    number, start, end = self._places[candidate]
    _, row, value, _ = self._panels[number]
    return row[start:end], value[start:end]

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""
    row, extra = self._entries(candidate)
    extra = extra - self.current_U[row]
    np.maximum(extra, 0.0, out=extra)
    if self._weight_U is None:
      return float(np.add.reduce(extra, dtype=np.float64))
    return float(np.dot(extra.astype(np.float64), self._weight_U[row]))

  def gains(self) -> np.ndarray:
    """Returns the marginal gains of all candidates."""
    gain_C = np.zeros(len(self._places))
    for candidate_C, row, value, end_C in self._panels:
      extra = np.maximum(value - self.current_U[row], 0.0).astype(np.float64)
      if self._weight_U is not None:
        extra *= self._weight_U[row]
      sums = np.concatenate([[0.0], extra.cumsum()])[end_C]
      gain_C[candidate_C] = np.diff(sums, prepend=0.0)
      self._progress.working()
    return gain_C

  def cover(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
    """Marks a candidate as chosen.

    Returns:
      The rows that it covers better, and their coverage before.
    """
    row, value = self._entries(candidate)
    better = value > self.current_U[row]
    row = row[better]
    before = self.current_U[row]
    self.current_U[row] = value[better]
    return row, before

  def compact(self) -> None:
    """Drops the entries that cannot count any more."""
    # Taken from the end, so that memory is freed panel by panel.
    panels, self._panels = self._panels[::-1], []
    self.num_entries = 0
    while panels:
      candidate_C, row, value, end_C = panels.pop()
      alive = np.flatnonzero(value > self.current_U[row])
      ends = np.searchsorted(alive, end_C)
      self.add(Panel(candidate_C, row[alive], value[alive], ends))
      self._progress.working()

  def by_row(self) -> 'ResidualsByRow':
    """Returns the same entries, grouped by row."""
    candidates, rows, values, ends = zip(*self._panels, strict=True)
    length_C = np.concatenate([np.diff(end_C, prepend=0) for end_C in ends])
    shape = len(length_C), len(self.current_U)
    by_candidate = sparse.csr_array(
      (
        np.concatenate(values),
        np.concatenate(rows),
        np.concatenate([[0], length_C.cumsum()]),
      ),
      shape,
    )
    # A counting sort, so it takes linear time.
    by_row = by_candidate.tocsc()
    candidate = np.concatenate(candidates)[by_row.indices]
    return ResidualsByRow(by_row.indptr, candidate, by_row.data, self._weight_U)


class ResidualsByRow:
  """For each row, the candidates that could still cover it better."""

  def __init__(
    self,
    start_U: np.ndarray,
    candidate: np.ndarray,
    value: np.ndarray,
    weight_U: np.ndarray | None,
  ) -> None:
    """Takes the entries, sorted by row.

    Args:
      start_U: where each row's entries start.
      candidate: the candidate of each entry.
      value: the similarity of each entry.
      weight_U: float64, what covering each row is worth; None: 1.
    """
    self._start_U = start_U
    self._count_U = np.diff(start_U)
    self._numbers = np.arange(len(value), dtype=start_U.dtype)
    self._candidate = candidate
    self._value = value
    self._weight_U = weight_U

  def losses(
    self, row: np.ndarray, before: np.ndarray, after: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns candidates, with repetition, and by how much their gains fall.

    Args:
      row: the rows that are covered better than before.
      before: the coverage of each before.
      after: the coverage of each now.
    """
    # Array methods, not numpy's functions: there are few entries, so the
    # functions' overhead would exceed the work.
    count = self._count_U[row]
    first = self._start_U[row] - (count.cumsum() - count)
    entry = first.repeat(count)
    entry += self._numbers[: len(entry)]
    value = self._value[entry]
    # Differences are rounded like those that the gains are sums of.
    loss = value - before.repeat(count)
    np.maximum(loss, 0.0, out=loss)
    value -= after.repeat(count)
    np.maximum(value, 0.0, out=value)
    loss = loss.astype(np.float64)
    loss -= value
    if self._weight_U is not None:
      loss *= self._weight_U[row].repeat(count)
    return self._candidate[entry], loss
