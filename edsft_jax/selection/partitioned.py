"""Facility location in two rounds over a random partition of the candidates.

RandGreeDi: Barbosa, Ene, Nguyen, Ward: The Power of Randomization: Distributed
Submodular Maximization on Massive Datasets, ICML 2015.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from edsft_jax.selection.greedy import greedy
from edsft_jax.selection.options import Plan
from edsft_jax.selection.problem import Order, Problem
from edsft_jax.selection.search import Search


def partitioned(
  problem: Problem,
  plan: Plan,
  run: Callable[[Problem, Plan], Order] = greedy,
) -> Order:
  """Runs greedy on each part, then on what they picked; the best run counts.

  Args:
    problem: all candidates.
    plan: of each run. Only picks of the last run are reported to its progress.
    run: greedy.
  """
  count = len(problem.row_C)
  # Both rounds then have about as many candidates to look at.
  parts = max(round(np.sqrt(count / max(problem.budget, 1))), 2)
  # Independent of the data and of its order, which is all it has to be.
  shuffled = np.random.default_rng(0).permutation(count)
  quiet = dataclasses.replace(plan, progress=plan.progress.provisional())
  runs: list[tuple[np.ndarray, Order]] = []
  for part in np.array_split(shuffled, parts):
    part.sort()
    order = run(problem.among(part), quiet)
    runs.append((part[order.candidates], order))
  union = np.sort(np.concatenate([picked for picked, _ in runs]))
  order = run(problem.among(union), plan)
  runs.append((union[order.candidates], order))
  picked, best = max(runs, key=lambda run: run[1].objective)
  best = dataclasses.replace(best, candidates=picked.tolist(), certificates=[])
  if problem.num_rows:
    _certify(problem, plan, best)
  return best


def _certify(problem: Problem, plan: Plan, order: Order) -> None:
  """Notes a bound over all candidates: each run saw the gains of its own."""
  cache = Search.of(problem, plan).cache
  cache.cover(problem.row_C[order.candidates])
  gain_C = cache.all_gains(problem.row_C)
  order.certify(problem, cache.current(), gain_C)
