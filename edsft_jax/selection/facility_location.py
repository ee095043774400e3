"""Greedy facility location, without the N x N similarities of a large pool.

F(S) = sum over i of w_i max over j in S of s(i, j), maximised greedily: at
least 1 - 1/e of the optimum (Nemhauser, Wolsey, Fisher 1978), with a bound
for the data at hand (`Selection.upper_bound_at`). README.md in this
folder explains the algorithm.
"""

import jax

from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.greedy import greedy
from edsft_jax.selection.inputs import Features, Positions, Values
from edsft_jax.selection.options import Plan
from edsft_jax.selection.partitioned import partitioned
from edsft_jax.selection.problem import Problem
from edsft_jax.selection.progress import Callback
from edsft_jax.selection.result import Selection


def facility_location(
  features: Features,
  budget: int,
  similarity: similarity_lib.Similarity = similarity_lib.DEFAULT,
  initial: Positions = (),
  candidates: Positions | None = None,
  weights: Values | None = None,
  method: str = 'greedy',
  epsilon: float = 0.1,
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
  progress: Callback | None = None,
) -> Selection:
  """Picks prompts that together are similar to the whole pool.

  >>> result = facility_location([[0.0], [1.0], [1.0], [5.0]], budget=2)
  >>> result.indices.tolist(), result.gains.round(2).tolist()
  ([1, 3], [2.99, 0.89])

  Args:
    features: [N, D] numbers.
    budget: new picks.
    similarity: Rbf or Cosine.
    initial: already chosen positions: they cover, and are not picked again.
    candidates: positions that may be picked (None: all); all rows are covered.
    weights: [N] of at least 0, what covering each row is worth; None: 1.
    method: 'greedy' is exact; prefixes are the answers for smaller budgets,
      and the lowest index wins among equal gains. 'threshold' may miss the best
      gain by a share of epsilon until similarities fit memory_limit: at least
      1 - 1/e - epsilon of the optimum; prefixes nest. 'partitioned' is greedy
      on random parts of the candidates, then on what these picked: at least
      (1 - 1/e) / 2 of the optimum in expectation (Barbosa et al. 2015);
      another budget has another order.
    epsilon: for method 'threshold', between 0 and 1.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    memory_limit: bytes to use besides the features, for similarities; a
      smaller one costs time, never exactness. None: a fraction of what is free.
    progress: called with (picks, budget) throughout; see `progress.Progress`.

  Returns:
    A Selection: gains are marginal, the objective is F(initial and picks), and
    upper_bound_at(m) is what F(initial and any m candidates) cannot exceed.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  plan = Plan.of(method, epsilon, mesh, memory_limit, progress)
  problem = Problem.of(
    *(features, budget, similarity, initial, candidates, weights), plan.progress
  )
  return solve(problem, plan)


def solve(problem: Problem, plan: Plan) -> Selection:
  """Solves the problem by the plan's method."""
  by = partitioned if plan.method == 'partitioned' else greedy
  order = by(problem, plan)
  plan.progress.picked(problem.budget)
  return order.selection(problem)
