"""The facility location problem, and the picks that a search has found."""

import dataclasses

import numpy as np

from edsft_jax.selection import checks, inputs
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.progress import Progress
from edsft_jax.selection.result import Certificate, MemoryUse, Selection


@dataclasses.dataclass(frozen=True)
class Problem:
  """Facility location over distinct rows.

  Attributes:
    budget: number of new picks.
    formula: elementwise part of the similarity.
    point_UxD: distinct points.
    weight_U: for each distinct row, the summed weights of the rows equal to it.
    initial_I: distinct rows already chosen.
    row_C: distinct row of each distinct candidate.
    pick_C: pool position of each distinct candidate, the lowest among equal
      rows; ascending, so candidates are in the order of the pool.
    free: all pool positions that may be picked, ascending.
  """

  budget: int
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
    features: inputs.Features,
    budget: int,
    similarity: similarity_lib.Similarity,
    initial: inputs.Positions,
    candidates: inputs.Positions | None,
    weights: inputs.Values | None,
    progress: Progress,
  ) -> 'Problem':
    """Validates the arguments and finds equal rows."""
    feature_NxD = checks.features(features)
    n = len(feature_NxD)
    similarity = similarity_lib.check(similarity)
    initial_I = checks.indices('initial', initial, n)
    allowed = None
    if candidates is not None:
      allowed = checks.indices('candidates', candidates, n)
    free = checks.choosable(n, initial_I, allowed)
    budget = checks.budget(budget, len(free))
    weight_N = checks.weights(weights, n)

    progress.start(budget)
    point_NxD = similarity.points(feature_NxD, progress.working)
    distinct = similarity_lib.distinct_rows(point_NxD, progress.working)
    group_N = distinct.group_N
    _, first = np.unique(group_N[free], return_index=True)
    pick_C = free[np.sort(first)]
    return cls(
      budget=budget,
      formula=similarity.formula,
      point_UxD=distinct.point_UxD,
      weight_U=np.bincount(
        group_N, weights=weight_N, minlength=len(distinct.point_UxD)
      ),
      initial_I=np.unique(group_N[initial_I]),
      row_C=group_N[pick_C],
      pick_C=pick_C,
      free=free,
    )

  @property
  def num_rows(self) -> int:
    """Number of distinct rows."""
    return len(self.point_UxD)

  def among(self, part: np.ndarray) -> 'Problem':
    """Returns the problem with only these candidates to pick from."""
    return dataclasses.replace(
      self,
      budget=min(self.budget, len(part)),
      row_C=self.row_C[part],
      pick_C=self.pick_C[part],
    )

  def objective(self, current_U: np.ndarray) -> float:
    """Returns F, given each row's largest similarity to a chosen one."""
    worth = self.weight_U > 0
    current_U = current_U[: len(self.weight_U)]
    return float(np.dot(self.weight_U[worth], current_U[worth].astype(float)))


@dataclasses.dataclass
class Order:
  """Greedy picks as positions among the candidates.

  Attributes:
    candidates: in pick order.
    gains: the marginal gain of each pick.
    certificates: bounds on what any set can reach.
    objective: F of the initial rows and the picks.
    memory_use: what the memory limit cost; None if all similarities fit.
  """

  candidates: list[int]
  gains: list[float]
  certificates: list[Certificate]
  objective: float
  memory_use: MemoryUse | None = None

  @classmethod
  def of_nothing(cls) -> 'Order':
    """Returns an order without picks."""
    return cls([], [], [], 0.0)

  def certify(
    self, problem: Problem, current_U: np.ndarray, bound_C: np.ndarray
  ) -> None:
    """Records the objective and a bound; the gains may be stale."""
    self.objective = problem.objective(current_U)
    self.certificates.append(
      Certificate.of(self.objective, np.maximum(bound_C, 0.0), problem.budget)
    )

  def selection(self, problem: Problem) -> Selection:
    """Returns pool positions; fills the budget with picks of zero gain."""
    picked = problem.pick_C[np.asarray(self.candidates, np.int64)]
    if len(picked) < problem.budget:
      # No other prompt adds anything, not even a copy of a pick: lowest index
      # first.
      rest = problem.free[~np.isin(problem.free, picked)]
      picked = np.concatenate([picked, rest[: problem.budget - len(picked)]])
    gains = np.zeros(problem.budget)
    gains[: len(self.gains)] = self.gains
    return Selection(
      picked, gains, self.objective, self.certificates, self.memory_use
    )
