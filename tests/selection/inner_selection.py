"""Facility location with internal options, which callers cannot set."""

from edsft_jax.selection.facility_location import solve
from edsft_jax.selection.options import Plan
from edsft_jax.selection.problem import Problem
from edsft_jax.selection.similarity import DEFAULT


def posed(
  options,
  features,
  budget,
  similarity=DEFAULT,
  initial=(),
  candidates=None,
  weights=None,
  method='greedy',
  epsilon=0.1,
  mesh=None,
  memory_limit=None,
  progress=None,
):
  """Returns the problem and the plan that facility_location makes."""
  plan = Plan.of(method, epsilon, mesh, memory_limit, progress, options)
  problem = Problem.of(
    *(features, budget, similarity, initial, candidates, weights), plan.progress
  )
  return problem, plan


def select(options, features, budget, *args, **kwargs):
  """Does what facility_location does, with these options."""
  return solve(*posed(options, features, budget, *args, **kwargs))


def traced(options, features, budget, *args, **kwargs):
  """Returns the selection, and the regimes that made it."""
  problem, plan = posed(options, features, budget, *args, **kwargs)
  return solve(problem, plan), plan.trace
