"""The state of a greedy search for facility location."""

import dataclasses

import numpy as np

from edsft_jax.selection.options import Options, Plan
from edsft_jax.selection.problem import Order, Problem
from edsft_jax.selection.similarity_cache import SimilarityCache


@dataclasses.dataclass
class Search:
  """The picks so far, and what is known about the gains.

  Attributes:
    problem: what to maximise.
    plan: how to maximise it.
    cache: similarities on devices.
    order: the picks, as candidates.
    bound_C: marginal gains, perhaps stale, so they are upper bounds; -inf:
      already picked.
    current_U: each row's largest similarity to a chosen one.
  """

  problem: Problem
  plan: Plan
  cache: SimilarityCache
  order: Order
  bound_C: np.ndarray
  current_U: np.ndarray

  @classmethod
  def of(cls, problem: Problem, plan: Plan) -> 'Search':
    """Starts with the initial rows covered; the pool must not be empty."""
    cache = SimilarityCache(
      problem.formula, problem.point_UxD, problem.weight_U, plan
    )
    plan.progress.working()
    cache.cover(problem.initial_I)
    return cls(
      problem=problem,
      plan=plan,
      cache=cache,
      order=Order.of_nothing(),
      bound_C=np.zeros(len(problem.row_C)),
      current_U=cache.current(),
    )

  @property
  def options(self) -> Options:
    """Regimes and sizes."""
    return self.plan.options

  @property
  def num_picked(self) -> int:
    """Number of picks so far."""
    return len(self.order.candidates)

  @property
  def goal(self) -> int:
    """Maximum number of candidates that can be picked."""
    return min(self.problem.budget, len(self.bound_C))

  def enter(self, regime: str) -> None:
    """Records which regime is used."""
    if self.plan.trace[-1:] != [regime]:
      self.plan.trace.append(regime)

  def refresh(self, gain_C: np.ndarray) -> None:
    """Replaces the gains of all candidates by fresh ones."""
    self.bound_C = np.where(np.isneginf(self.bound_C), self.bound_C, gain_C)

  def take(self, candidate: int, gain: float) -> None:
    """Records a pick."""
    self.bound_C[candidate] = -np.inf
    self.order.candidates.append(candidate)
    self.order.gains.append(gain)
    self.plan.progress.picked(len(self.order.candidates))

  def certify(self, bound_C: np.ndarray | None = None) -> None:
    """Records objective and bound, given gains that may be stale."""
    if bound_C is None:
      bound_C = self.bound_C
    self.order.certify(self.problem, self.current_U, bound_C)
