"""Makes sparse residuals in one pass over all similarities."""

from collections.abc import Sequence

import jax
import numpy as np
from scipy import sparse

from edsft_jax.selection.options import Plan
from edsft_jax.selection.problem import Problem
from edsft_jax.selection.residuals import Panel, SparseResiduals
from edsft_jax.selection.similarity_cache import SimilarityCache

# Of an entry: 8 for row and similarity, and a share of temporary arrays.
_ENTRY_BYTES = 10
# The share of the memory limit that an estimate may fill, as it may be too low.
_SAFE = 0.8


def residuals_pay(alive: float, problem: Problem, plan: Plan) -> bool:
  """Whether residuals fit, and are sparse enough to make them now.

  Args:
    alive: entries per candidate that can still count, on average.
    problem: has the numbers of rows and candidates.
    plan: has the memory limit.
  """
  fit = memory_wanted(alive, problem) <= plan.memory_limit
  return fit and sparse_enough(alive, problem, plan)


def sparse_enough(alive: float, problem: Problem, plan: Plan) -> bool:
  """Whether residuals would pay if there was enough memory."""
  options = plan.options
  count = len(problem.row_C)
  few = max(
    options.small_residuals, count * problem.num_rows // options.sparse_one_in
  )
  return bool(options.use_residuals and alive * count <= few)


def memory_wanted(alive: float, problem: Problem) -> float:
  """Returns the memory limit, in bytes, that this many residuals fit."""
  return alive * len(problem.row_C) * _ENTRY_BYTES / _SAFE


def make_residuals(
  problem: Problem, cache: SimilarityCache, plan: Plan
) -> tuple[SparseResiduals | None, np.ndarray]:
  """Makes residuals at the current coverage.

  Returns:
    The residuals and [C] fresh gains of all candidates. If the residuals do not
    fit: None, and gains that may not be used.
  """
  cache.forget()
  if cache.symmetric(problem.row_C):
    residuals, gain_1xC = pass_over_pairs(
      problem, cache, plan, [cache.coverage], make=True
    )
    return residuals, gain_1xC[0]
  residuals = _empty(problem, cache, plan)
  gains = []
  start = 0
  for s_CxU, gain_C in cache.panels(problem.row_C):
    residuals.append(np.arange(start, start + len(s_CxU)), s_CxU)
    start += len(s_CxU)
    gains.append(gain_C)
    if residuals.num_entries * _ENTRY_BYTES > plan.memory_limit:
      return None, np.zeros(0)
  return residuals, np.concatenate(gains)


def pass_over_pairs(
  problem: Problem,
  cache: SimilarityCache,
  plan: Plan,
  coverages: Sequence[jax.Array],
  make: bool,
) -> tuple[SparseResiduals | None, np.ndarray]:
  """Visits each pair of rows once, on one device.

  Args:
    problem: its rows and candidates.
    cache: the coverage at which residuals are cut.
    plan: has the memory limit.
    coverages: V arrays [T, R]; gains are computed for each.
    make: whether to make residuals.

  Returns:
    The residuals, None if they do not fit or `make` is False; and [V, C] gains
    for each of the coverages.
  """
  if not make:
    return None, cache.gains_from_pairs(coverages)[:, problem.row_C]
  residuals = _empty(problem, cache, plan)
  cutter = TileCutter(
    residuals,
    problem.row_C,
    plan.options.tile_rows,
    plan.memory_limit / _ENTRY_BYTES,
  )
  gain_VxU = cache.gains_from_pairs(coverages, cutter.cut)
  return residuals if cutter.fits else None, gain_VxU[:, problem.row_C]


def _empty(
  problem: Problem, cache: SimilarityCache, plan: Plan
) -> SparseResiduals:
  return SparseResiduals(
    cache.current(), problem.weight_U, len(problem.row_C), plan.progress
  )


class TileCutter:
  """Extracts residuals from tiles, for the candidates on both sides."""

  def __init__(
    self,
    residuals: SparseResiduals,
    row_C: np.ndarray,
    tile_rows: int,
    most_entries: float,
  ) -> None:
    """Starts with no tile.

    Args:
      residuals: empty; entries above their coverage are kept.
      row_C: the candidates as rows.
      tile_rows: rows per tile.
      most_entries: number of entries that fit.
    """
    self._residuals = residuals
    self._current_TxR = residuals.current_U.reshape(-1, tile_rows)
    self._candidate_TxR = np.full(self._current_TxR.shape, -1)
    self._candidate_TxR.reshape(-1)[row_C] = np.arange(len(row_C))
    # For each tile: candidates in it, and rows and similarities.
    self._pieces: list[list[tuple[np.ndarray, ...]]] = [
      [] for _ in self._current_TxR
    ]
    self._room = most_entries

  @property
  def fits(self) -> bool:
    """Whether all entries fitted."""
    return self._room >= 0

  def cut(self, a: int, b: int, s_AxB: np.ndarray) -> bool:
    """Takes the next pair, ordered by a, then b >= a; False: no room left."""
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
    """Adds a tile's candidates to the residuals, after its last pair."""
    pieces, self._pieces[tile] = self._pieces[tile], []
    candidate, row, value = map(np.concatenate, zip(*pieces, strict=True))
    pieces.clear()
    candidate_R = self._candidate_TxR[tile]
    known_R = candidate_R >= 0
    shape = len(known_R), self._current_TxR.size
    # Sorts by candidate: a counting sort, so it takes linear time.
    by_candidate = sparse.coo_array((value, (candidate, row)), shape).tocsr()
    self._residuals.add(
      Panel(
        candidate_R[known_R],
        by_candidate.indices,
        by_candidate.data,
        by_candidate.indptr[1:][known_R],
      )
    )


def _entries(
  s_AxB: np.ndarray, current: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns entries above coverage: positions in A and B, and values."""
  position = np.flatnonzero(s_AxB > current)
  value = s_AxB.reshape(-1)[position]
  position = position.astype(np.int32)
  size = s_AxB.shape[1]
  in_a = position // size
  return in_a, position - in_a * size, value
