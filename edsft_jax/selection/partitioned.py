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
  """Runs greedy on each part, then on all their picks; returns the best run.

  Args:
    problem: all candidates.
    plan: for every run. Its progress reports only the picks of the last run.
    run: solves the problem for some of the candidates.
  """
  count = len(problem.row_C)
  # Both rounds then have about the same number of candidates.
  parts = max(round(np.sqrt(count / max(problem.budget, 1))), 2)
  # A fixed seed will do: the partition must only be independent of the data.
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
  """Records a bound over all candidates: each run knew only its own gains."""
  cache = Search.of(problem, plan).cache
  cache.cover(problem.row_C[order.candidates])
  gain_C = cache.all_gains(problem.row_C)
  order.certify(problem, cache.current(), gain_C)
