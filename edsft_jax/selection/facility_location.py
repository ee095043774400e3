"""Greedy facility location that never holds the N x N similarities.

F(S) = sum over i of w_i max over j in S of s(i, j), maximised greedily: at
least 1 - 1/e of the optimum (Nemhauser, Wolsey, Fisher 1978), with a bound
for the very case at hand (`Selection.upper_bound_at`). README.md in this
folder explains the algorithm.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from edsft_jax.selection import checks, memory, short_lists
from edsft_jax.selection import columns as columns_lib
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.result import Certificate, Selection

METHODS = ('greedy', 'threshold', 'partitioned')
# Bytes of one entry of a short list: row and similarity.
_ENTRY_BYTES = 8
# Short lists are made once they are this short on average: making them costs
# a pass over all pairs whatever their length.
_ENTRIES_A_CANDIDATE = 512


def facility_location(
  features: Any,
  budget: int,
  similarity: similarity_lib.Similarity = similarity_lib.DEFAULT,
  initial: Sequence[int] = (),
  candidates: Sequence[int] | None = None,
  weights: Any = None,
  method: str = 'greedy',
  epsilon: float = 0.1,
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
) -> Selection:
  """Picks prompts that together are similar to the whole pool.

  Args:
    features: [N, D] numbers, numpy or jax.
    budget: new picks.
    similarity: Rbf or Cosine.
    initial: already chosen positions: they cover, and are not picked again.
    candidates: positions that may be picked; None: all. All rows are covered
      either way.
    weights: [N] of at least 0, what covering each row is worth; None: 1.
    method: 'greedy' is exact; its prefixes are the answers for smaller
      budgets, and the lowest index wins among equal gains.
    epsilon: of method 'threshold'.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    memory_limit: bytes to use beside the features, for similarities; a smaller
      one costs time, never exactness. None: a fraction of what is free.

  Returns:
    A Selection: gains are marginal, the objective is F(initial and picks), and
    upper_bound_at(m) is what F(initial and any m candidates) cannot exceed.

  Raises:
    ValueError: naming the argument that is wrong.
  """
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  similarity = similarity_lib.check(similarity)
  initial = checks.indices('initial', initial, n)
  if candidates is not None:
    candidates = checks.indices('candidates', candidates, n)
  free = checks.choosable(n, initial, candidates)
  budget = checks.budget(budget, len(free))
  weight_N = checks.weights(weights, n)
  checks.one_of('method', method, METHODS)
  checks.positive('epsilon', epsilon)
  mesh = checks.mesh(mesh)
  memory_limit = memory.limit(memory_limit, mesh)
  problem = _Problem.of(
    similarity.formula, similarity.points(feature_NxD), weight_N, initial, free
  )
  return problem.selection(_greedy(problem, budget, mesh, memory_limit), budget)


@dataclasses.dataclass(frozen=True)
class _Problem:
  """Facility location over distinct rows.

  Attributes:
    formula: elementwise part of the similarity.
    point_UxD: distinct points.
    weight_U: summed weights of the equal rows.
    initial_I: distinct rows already chosen.
    row_C: distinct row of each distinct candidate.
    pick_C: its pool position, the lowest of equal rows; ascending, so that
      order among candidates is order in the pool.
    free: all pool positions that may be picked, ascending.
  """

  formula: str
  point_UxD: np.ndarray
  weight_U: np.ndarray
  initial_I: np.ndarray
  row_C: np.ndarray
  pick_C: np.ndarray
  free: np.ndarray

  @classmethod
  def of(
    cls,
    formula: str,
    point_NxD: np.ndarray,
    weight_N: np.ndarray,
    initial: np.ndarray,
    free: np.ndarray,
  ) -> '_Problem':
    distinct = similarity_lib.distinct_rows(point_NxD)
    group_N = distinct.group_N
    weight_U = np.bincount(
      group_N, weights=weight_N, minlength=len(distinct.point_UxD)
    )
    _, first = np.unique(group_N[free], return_index=True)
    pick_C = free[np.sort(first)]
    return cls(
      formula=formula,
      point_UxD=distinct.point_UxD,
      weight_U=weight_U,
      initial_I=np.unique(group_N[initial]),
      row_C=group_N[pick_C],
      pick_C=pick_C,
      free=free,
    )

  def objective(self, current_U: np.ndarray) -> float:
    """F, given each row's largest similarity to a chosen one."""
    worth = self.weight_U > 0
    return float(np.dot(self.weight_U[worth], current_U[worth].astype(float)))

  def selection(self, order: '_Order', budget: int) -> Selection:
    """Turns candidates into pool positions and fills up with zero gains."""
    picked = self.pick_C[np.asarray(order.candidates, np.int64)]
    if len(picked) < budget:
      # Nothing gains any more, copies of picks included: lowest index first.
      rest = self.free[~np.isin(self.free, picked)]
      picked = np.concatenate([picked, rest[: budget - len(picked)]])
    gains = np.zeros(budget)
    gains[: len(order.gains)] = order.gains
    return Selection(picked, gains, order.objective, order.certificates)


@dataclasses.dataclass
class _Order:
  """Greedy picks as positions among the candidates."""

  candidates: list[int]
  gains: list[float]
  certificates: list[Certificate]
  objective: float


def _greedy(
  problem: _Problem,
  budget: int,
  mesh: jax.sharding.Mesh,
  memory_limit: int,
) -> _Order:
  if not len(problem.point_UxD):
    return _Order([], [], [Certificate.of(0.0, np.zeros(0), budget)], 0.0)
  columns = columns_lib.Columns(
    problem.formula,
    problem.point_UxD,
    problem.weight_U,
    mesh,
    cache_bytes=memory_limit // 2,
  )
  columns.cover(problem.initial_I)
  bound_C = columns.gains(problem.row_C)
  objective = problem.objective(columns.current())
  certificates = [Certificate.of(objective, bound_C, budget)]

  count = len(problem.row_C)
  most_entries = min(
    memory_limit // 2 // _ENTRY_BYTES, _ENTRIES_A_CANDIDATE * count
  )
  picks: list[int] = []
  gains: list[float] = []
  next_look = 0
  while len(picks) < budget:
    if len(picks) >= next_look:
      if _expected_entries(problem, columns) <= most_entries:
        break
      next_look = len(picks) + 8
    candidate = _next_pick(problem, columns, bound_C)
    if bound_C[candidate] == 0.0:
      break
    picks.append(candidate)
    gains.append(float(bound_C[candidate]))
    bound_C[candidate] = -np.inf
    columns.cover(problem.row_C[[candidate]])

  current_U = columns.current()
  if len(picks) < budget and bound_C.max(initial=0.0) > 0.0:
    lists = short_lists.ShortLists(
      columns.blocks(problem.row_C), current_U, problem.weight_U
    )
    fresh = lists.gains()
    certificates.append(
      Certificate.of(problem.objective(lists.current_U), fresh, budget)
    )
    more, more_gains = short_lists.finish(lists, fresh, picks, budget)
    picks, gains = picks + more, gains + more_gains
    current_U = lists.current_U
    bound_C = lists.gains()
  objective = problem.objective(current_U)
  certificates.append(
    Certificate.of(objective, np.maximum(bound_C, 0.0), budget)
  )
  return _Order(picks, gains, certificates, objective)


def _next_pick(
  problem: _Problem, columns: columns_lib.Columns, bound_C: np.ndarray
) -> int:
  """Refreshes the largest stale gains until one is above all others."""
  size = min(columns_lib.TILE_COLUMNS, len(bound_C))
  while True:
    top = np.argpartition(-bound_C, size - 1)[:size]
    bound_C[top] = columns.gains(problem.row_C[top])
    best = int(np.argmax(bound_C))
    if best in top:
      return best


def _expected_entries(problem: _Problem, columns: columns_lib.Columns) -> float:
  """Estimates from some candidates how many entries could still count."""
  count = len(problem.row_C)
  step = max(count // columns_lib.TILE_COLUMNS, 1)
  sample = problem.row_C[::step][: columns_lib.TILE_COLUMNS]
  alive = sum((b > columns.current()).sum() for b in columns.blocks(sample))
  return float(alive) * count / len(sample)
