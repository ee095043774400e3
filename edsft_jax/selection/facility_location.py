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

from edsft_jax.selection import checks, memory, sharding, short_lists
from edsft_jax.selection import columns as columns_lib
from edsft_jax.selection import kernel as kernel_lib
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.result import Certificate, Selection

METHODS = ('greedy', 'threshold', 'partitioned')
# Bytes of one entry of a short list: row and similarity, and what cutting the
# lists takes beside them.
_ENTRY_BYTES = 10
# Short lists pay when one entry in so many is left, or when they are small.
_SPARSE = 4
_SMALL = 2**18
# Rows up to which all similarities are kept, if they fit.
_FEW_ROWS = 3000
# The first picks lower nearly every gain: all are refreshed at once.
_FIRST = 2
# Picks guessed at most before the first pass over all pairs. Another one pays
# where more than a few of all entries are left, and the last one left fewer.
_MOST_GUESSED = 16
_FEW = 0.1
_WORTH_A_GUESS = 0.02
# How many picks before which all gains are refreshed: later few fall.
_REFRESHED = (0, 1, 2, 4)
# Rows to guess from, and one in so many candidates looked at closely.
_MOST_SAMPLED = 512
_PROMISING = 128


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
      'threshold' takes any pick that gains at least 1 - epsilon of the best,
      until short lists, or all similarities of a small pool, fit memory_limit,
      and is exact from there: at least 1 - 1/e - epsilon of the optimum;
      prefixes nest.
      'partitioned' runs greedy on random parts of the candidates, then on
      what they picked, and returns the best of all these runs: at least
      (1 - 1/e) / 2 of the optimum in expectation over the partition (Barbosa
      et al. 2015); prefixes are greedy orders, yet another budget has others.
    epsilon: of method 'threshold', between 0 and 1.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    memory_limit: bytes to use beside the features, for similarities; a smaller
      one costs time, never exactness. None: a fraction of what is free.

  Returns:
    A Selection: gains are marginal, the objective is F(initial and picks), and
    upper_bound_at(m) is what F(initial and any m candidates) cannot exceed.

  Raises:
    SelectionError: naming the argument that is wrong.
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
  epsilon = checks.positive('epsilon', epsilon)
  if epsilon >= 1:
    raise SelectionError(f'epsilon {epsilon} is not below 1')
  mesh = checks.mesh(mesh)
  memory_limit = memory.limit(memory_limit, mesh)
  problem = _Problem.of(
    similarity.formula, similarity.points(feature_NxD), weight_N, initial, free
  )
  if method == 'partitioned':
    order = _partitioned(problem, budget, mesh, memory_limit)
  else:
    slack = epsilon if method == 'threshold' else 0.0
    order = _greedy(problem, budget, mesh, memory_limit, slack)
  return problem.selection(order, budget)


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

  def among(self, part: np.ndarray) -> '_Problem':
    """Returns the same rows with some of the candidates."""
    return dataclasses.replace(
      self, row_C=self.row_C[part], pick_C=self.pick_C[part]
    )

  def objective(self, current_U: np.ndarray) -> float:
    """F, given each row's largest similarity to a chosen one."""
    worth = self.weight_U > 0
    current_U = current_U[: len(self.weight_U)]
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

  def certify(
    self,
    problem: _Problem,
    current_U: np.ndarray,
    bound_C: np.ndarray,
    budget: int,
  ) -> None:
    """Notes the objective, and a bound from gains that may be stale."""
    self.objective = problem.objective(current_U)
    self.certificates.append(
      Certificate.of(self.objective, np.maximum(bound_C, 0.0), budget)
    )


def _greedy(
  problem: _Problem,
  budget: int,
  mesh: jax.sharding.Mesh,
  memory_limit: int,
  slack: float = 0.0,
) -> _Order:
  """Greedy: lazy over columns, then over short lists once they fit.

  Over columns a pick may miss the best gain by a factor of 1 - slack.
  """
  order = _Order([], [], [], 0.0)
  if not len(problem.point_UxD):
    order.certificates.append(Certificate.of(0.0, np.zeros(0), budget))
    return order
  columns = columns_lib.Columns(
    problem.formula, problem.point_UxD, problem.weight_U, mesh, memory_limit
  )
  columns.cover(problem.initial_I)
  goal = min(budget, len(problem.row_C))
  if _few_rows(problem, memory_limit):
    if goal and columns.symmetric(problem.row_C):
      _over_kernel(problem, columns, budget, order)
      return order
    # On any number of devices the same picks.
    slack = 0.0
  current_U = columns.current()
  bound_C = np.zeros(len(problem.row_C))
  ahead = _Ahead([], {}, None)
  if goal:
    sample_SxU = columns.similarities(_sample(problem.row_C))
    if _opens(problem, columns):
      ahead = _look_ahead(problem, columns, memory_limit, slack)
  too_many = np.inf
  while len(order.candidates) < goal:
    ahead.check(order.candidates)
    pays = False
    if ahead.lists is None or slack:
      alive = np.count_nonzero(sample_SxU > current_U) / len(sample_SxU)
      pays = alive < too_many and _lists_pay(alive, problem, memory_limit)
    if slack:
      # Lists end the slack: on any number of devices at the same pick, though
      # only one device looks ahead.
      pays = pays and len(order.candidates) >= _FIRST
      if not pays and len(order.candidates) == len(ahead.guess):
        ahead.lists = None
    if ahead.lists is not None:
      if len(order.candidates) == len(ahead.guess):
        columns.forget()
        if not order.candidates:
          bound_C = ahead.gain_C[0]
        return _finish(problem, budget, ahead.lists, bound_C, order)
    elif pays:
      lists, fresh_C = _short_lists(problem, columns, memory_limit)
      if lists is not None:
        columns.forget()
        bound_C = np.where(np.isneginf(bound_C), bound_C, fresh_C)
        return _finish(problem, budget, lists, bound_C, order)
      # The sample was misleading: not again before half of it is gone.
      too_many = alive / 2
    fresh_C = ahead.gains_after(order.candidates)
    if fresh_C is None and len(order.candidates) < _FIRST:
      fresh_C = columns.all_gains(problem.row_C)
    if fresh_C is not None:
      bound_C = np.where(np.isneginf(bound_C), bound_C, fresh_C)
      order.certify(problem, current_U, bound_C, budget)
      picks = np.argmax(bound_C, keepdims=True)
      columns.cover(problem.row_C[picks])
    elif slack == 0.0:
      picks = _next_pick(problem, columns, bound_C)
      columns.cover(problem.row_C[picks])
    else:
      most = goal - len(order.candidates)
      picks = _good_picks(problem, columns, bound_C, slack, most)
    gain_P = bound_C[picks]
    if not gain_P.any():
      break
    order.candidates += picks.tolist()
    order.gains += gain_P.tolist()
    bound_C[picks] = -np.inf
    current_U = columns.current()
  order.certify(problem, current_U, bound_C, budget)
  return order


def _few_rows(problem: _Problem, memory_limit: int) -> bool:
  """Whether it takes less to keep all similarities than to find the few."""
  rows = len(problem.point_UxD)
  tiles = -(-rows // sharding.TILE_ROWS)
  fits = 4 * (tiles * sharding.TILE_ROWS) ** 2 <= memory_limit
  return rows <= _FEW_ROWS and fits


def _over_kernel(
  problem: _Problem,
  columns: columns_lib.Columns,
  budget: int,
  order: _Order,
) -> None:
  """Greedy over all similarities: lazy, but for the first picks."""
  kernel = kernel_lib.Kernel(
    columns.kernel(), columns.current(), problem.weight_U, problem.row_C
  )
  bound_C = np.zeros(len(problem.row_C))
  goal = min(budget, len(bound_C))
  while len(order.candidates) < goal:
    if len(order.candidates) <= _FIRST:
      bound_C = np.where(np.isneginf(bound_C), bound_C, kernel.gains())
      order.certify(problem, kernel.current_U, bound_C, budget)
      stale = short_lists.StaleGains(kernel, bound_C)
    candidate, gain = stale.best()
    if gain <= 0.0:
      break
    stale.pick(candidate)
    bound_C[candidate] = -np.inf
    order.candidates.append(candidate)
    order.gains.append(gain)
  order.certify(problem, kernel.current_U, kernel.gains(), budget)


@dataclasses.dataclass
class _Ahead:
  """What was computed for a guess of the first picks.

  A guess decides what is computed ahead, never what is picked: it is used only
  where the picks are those that were guessed, in whichever order.

  Attributes:
    guess: the first candidates.
    gain_C: gains of all after so many of them.
    lists: short lists after all of them, or None.
  """

  guess: list[int]
  gain_C: dict[int, np.ndarray]
  lists: short_lists.ShortLists | None

  def check(self, candidates: list[int]) -> None:
    """Forgets all unless these picks were guessed."""
    if not set(candidates) <= set(self.guess):
      self.guess, self.gain_C, self.lists = [], {}, None

  def gains_after(self, candidates: list[int]) -> np.ndarray | None:
    """Returns the gains after some picks, if they are known."""
    count = len(candidates)
    as_guessed = set(candidates) == set(self.guess[:count])
    return self.gain_C.get(count) if as_guessed else None


def _opens(problem: _Problem, columns: columns_lib.Columns) -> bool:
  """Whether to guess the first picks, rather than to make lists at once."""
  pairs = len(problem.row_C) * len(problem.point_UxD)
  return pairs > _SMALL and columns.symmetric(problem.row_C)


def _look_ahead(
  problem: _Problem,
  columns: columns_lib.Columns,
  memory_limit: int,
  slack: float,
) -> _Ahead:
  """Guesses the first picks, and computes what to do if they are right.

  One pass over all pairs then gives gains on the way, and the lists.
  """
  coverages = [columns.coverage]
  row_S = _sample_rows(problem, memory_limit)
  s_SxU = columns.similarities(row_S)
  guess: list[int] = []
  # With slack, other picks will follow the first two.
  most = min(_FIRST if slack else _MOST_GUESSED, len(problem.row_C))
  alive = np.inf
  while True:
    current_S = columns.current()[row_S]
    before = alive
    alive = np.count_nonzero(s_SxU > current_S[:, None]) / len(row_S)
    fits = _lists_pay(alive, problem, memory_limit)
    rows = len(problem.point_UxD)
    more = alive > _FEW * rows and before - alive > _WORTH_A_GUESS * rows
    if len(guess) == most or (fits and not more and not slack):
      break
    gain_U = _weighted_gains(s_SxU, current_S, problem.weight_U[row_S])
    guess.append(_likely_pick(columns, problem.row_C, gain_U, guess))
    columns.cover(problem.row_C[guess[-1:]])
    coverages.append(columns.coverage)
  del s_SxU
  lists = None
  if fits:
    lists = short_lists.ShortLists(
      columns.current(), problem.weight_U, len(problem.row_C)
    )
  refreshed = [k for k in _REFRESHED if k < max(len(guess), 1)]
  lists, gain_KxC = _pass(
    problem, columns, [coverages[k] for k in refreshed], lists, memory_limit
  )
  columns.coverage = coverages[0]
  return _Ahead(guess, dict(zip(refreshed, gain_KxC, strict=True)), lists)


def _weighted_gains(
  s_SxU: np.ndarray, current_S: np.ndarray, weight_S: np.ndarray
) -> np.ndarray:
  """Returns [padded rows] float32 gains over a sample of rows, roughly."""
  gain_U = np.zeros(s_SxU.shape[1], np.float32)
  # Row by row: all is in the cache.
  for s_U, current, weight in zip(s_SxU, current_S, weight_S, strict=True):
    gain_U += np.float32(weight) * np.maximum(s_U - current, 0.0)
  return gain_U


def _likely_pick(
  columns: columns_lib.Columns,
  row_C: np.ndarray,
  sampled_gain_U: np.ndarray,
  picked: list[int],
) -> int:
  """Returns the best of those candidates that the sample speaks for."""
  gain_C = sampled_gain_U[row_C]
  gain_C[picked] = -np.inf
  most = max(columns_lib.PANEL, len(row_C) // _PROMISING)
  promising = np.sort(_largest(gain_C, most))
  return int(promising[np.argmax(columns.panel_gains(row_C[promising]))])


def _sample_rows(problem: _Problem, memory_limit: int) -> np.ndarray:
  """Takes rows at even steps, enough to guess by."""
  rows = len(problem.point_UxD)
  size = min(rows // 8, _MOST_SAMPLED, memory_limit // (8 * rows))
  return np.arange(0, rows, -(-rows // max(size, columns_lib.BATCH)))


def _pass(
  problem: _Problem,
  columns: columns_lib.Columns,
  coverages: Sequence[jax.Array],
  lists: short_lists.ShortLists | None,
  memory_limit: int,
) -> tuple[short_lists.ShortLists | None, np.ndarray]:
  """Visits each pair of rows once.

  Returns:
    The lists, filled, or None if they do not fit, and [K, C] gains with each
    of the coverages.
  """
  if lists is None:
    gain_KxU = columns.symmetric_gains(coverages)
  else:
    cutter = short_lists.TileCutter(
      lists, problem.row_C, sharding.TILE_ROWS, memory_limit / _ENTRY_BYTES
    )
    gain_KxU = columns.symmetric_gains(coverages, cutter.cut)
    lists = lists if cutter.fits else None
  return lists, gain_KxU[:, problem.row_C]


def _sample(row_C: np.ndarray) -> np.ndarray:
  """Takes candidates at even steps."""
  step = -(-len(row_C) // columns_lib.BATCH)
  return row_C[::step]


def _lists_pay(alive: float, problem: _Problem, memory_limit: int) -> bool:
  """Whether lists of `alive` entries on average fit and are short enough."""
  count = len(problem.row_C)
  entries = alive * count
  if entries > max(_SMALL, count * len(problem.point_UxD) // _SPARSE):
    return False
  return entries * _ENTRY_BYTES <= 0.8 * memory_limit


def _short_lists(
  problem: _Problem, columns: columns_lib.Columns, memory_limit: int
) -> tuple[short_lists.ShortLists | None, np.ndarray]:
  """Makes lists of all that can still count, or None if they do not fit.

  And fresh gains of all candidates.
  """
  columns.forget()
  lists = short_lists.ShortLists(
    columns.current(), problem.weight_U, len(problem.row_C)
  )
  if columns.symmetric(problem.row_C):
    lists, gain_1xC = _pass(
      problem, columns, [columns.coverage], lists, memory_limit
    )
    return lists, gain_1xC[0]
  gains = []
  start = 0
  for s_CxU, gain_C in columns.panels(problem.row_C):
    lists.append(np.arange(start, start + len(s_CxU)), s_CxU)
    start += len(s_CxU)
    gains.append(gain_C)
    if lists.num_entries * _ENTRY_BYTES > memory_limit:
      return None, np.zeros(0)
  return lists, np.concatenate(gains)


def _finish(
  problem: _Problem,
  budget: int,
  lists: short_lists.ShortLists,
  bound_C: np.ndarray,
  order: _Order,
) -> _Order:
  """Goes on over short lists to the end."""
  order.certify(problem, lists.current_U, bound_C, budget)
  picks, gains = short_lists.finish(
    lists, bound_C, len(order.candidates), budget
  )
  order.candidates += picks
  order.gains += gains
  # Picks gain nothing any more: no need to leave them out.
  order.certify(problem, lists.current_U, lists.gains(), budget)
  return order


def _next_pick(
  problem: _Problem, columns: columns_lib.Columns, bound_C: np.ndarray
) -> np.ndarray:
  """Refreshes the largest stale gains until one of them is above all."""
  while True:
    top = _largest(bound_C, columns_lib.BATCH)
    bound_C[top] = columns.gains(problem.row_C[top])
    # The first of equals is the lowest index.
    best = np.argmax(bound_C, keepdims=True)
    if best[0] in top:
      return best


def _good_picks(
  problem: _Problem,
  columns: columns_lib.Columns,
  bound_C: np.ndarray,
  slack: float,
  most: int,
) -> np.ndarray:
  """Picks, and covers, at least one whose gain is near the best.

  A stale gain is never too small, so what reaches 1 - slack of the largest
  stale gain reaches 1 - slack of the best.
  """
  while True:
    top = _largest(bound_C, columns_lib.BATCH)
    top = top[np.argsort(-bound_C[top], kind='stable')]
    enough = (1 - slack) * bound_C[top[0]]
    bound_C[top], taken = columns.sweep(problem.row_C[top], enough, most)
    if taken.any():
      return top[taken]
    if bound_C.max() <= 0.0:
      return top[:1]


def _largest(bound_C: np.ndarray, most: int) -> np.ndarray:
  """Returns candidates with the largest stale gains."""
  size = min(most, len(bound_C))
  top = np.argpartition(-bound_C, size - 1)[:size]
  return top[bound_C[top] > -np.inf]


def _partitioned(
  problem: _Problem,
  budget: int,
  mesh: jax.sharding.Mesh,
  memory_limit: int,
) -> _Order:
  """Two rounds of greedy over a random partition of the candidates."""
  count = len(problem.row_C)
  # Both rounds have about as many candidates to look at.
  parts = max(round(np.sqrt(count / max(budget, 1))), 2)
  # Independent of the data and of its order, which is all it has to be.
  shuffled = np.random.default_rng(0).permutation(count)
  runs: list[tuple[np.ndarray, _Order]] = []
  for part in np.array_split(shuffled, parts):
    part.sort()
    size = min(budget, len(part))
    order = _greedy(problem.among(part), size, mesh, memory_limit)
    runs.append((part[order.candidates], order))
  union = np.sort(np.concatenate([picked for picked, _ in runs]))
  order = _greedy(
    problem.among(union), min(budget, len(union)), mesh, memory_limit
  )
  runs.append((union[order.candidates], order))
  picked, best = max(runs, key=lambda run: run[1].objective)

  # Each run saw the gains of its own candidates only.
  best = dataclasses.replace(best, candidates=picked.tolist(), certificates=[])
  if len(problem.point_UxD):
    columns = columns_lib.Columns(
      problem.formula, problem.point_UxD, problem.weight_U, mesh, memory_limit
    )
    columns.cover(problem.initial_I)
    columns.cover(problem.row_C[picked])
    gain_C = columns.all_gains(problem.row_C)
    best.certify(problem, columns.current(), gain_C, budget)
  return best
