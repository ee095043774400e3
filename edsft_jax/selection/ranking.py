"""Selection without features: at random, or by a score."""

import numpy as np

from edsft_jax.selection import checks, inputs
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.inputs import Positions, Values
from edsft_jax.selection.result import Selection


def random(
  n: int, budget: int, seed: int, initial: Positions = ()
) -> Selection:
  """Picks at random without replacement; budgets nest for one seed.

  >>> random(n=6, budget=3, seed=0).indices.tolist()
  [3, 2, 5]

  Args:
    n: prompts in the pool.
    budget: new picks.
    seed: whole number of at least 0; it fixes the order of the whole pool.
    initial: already chosen positions, not picked again.

  Returns:
    A Selection whose gains and objective are NaN: nothing is maximised.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  n = checks.integer('n', n)
  seed = checks.integer('seed', seed)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial_I))
  order = np.random.default_rng(seed).permutation(n)
  order = order[~np.isin(order, initial_I)][:budget].astype(np.int64)
  return Selection(order, np.full(budget, np.nan), np.nan)


def top(
  scores: Values,
  budget: int,
  largest: bool = True,
  initial: Positions = (),
) -> Selection:
  """Picks the largest (or smallest) scores; the lowest index wins a tie.

  >>> top([0.5, 2.0, 1.0, 2.0], budget=3).indices.tolist()
  [1, 3, 2]

  Args:
    scores: [N] numbers; infinities are ordered, NaN is refused.
    budget: new picks.
    largest: False picks the smallest scores.
    initial: already chosen positions, not picked again.

  Returns:
    A Selection whose gains are the scores of the picks and whose objective is
    the sum of scores over `initial` and picks.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  array = inputs.array('scores', scores)
  if array.ndim != 1:
    raise SelectionError(f'scores have shape {array.shape}: [N] is needed')
  n = len(array)
  score_N = checks.row_values('scores', array, n)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial_I))
  free = checks.choosable(n, initial_I)
  keys = -score_N[free] if largest else score_N[free]
  picks = free[np.argsort(keys, kind='stable')[:budget]]
  chosen = np.concatenate([initial_I, picks])
  return Selection(picks, score_N[picks], float(score_N[chosen].sum()))
