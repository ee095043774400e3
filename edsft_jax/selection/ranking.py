"""Selection without features: at random, or by a score."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.result import Selection


def random(
  n: int, budget: int, seed: int, initial: Sequence[int] = ()
) -> Selection:
  """Picks at random without replacement; budgets nest for one seed.

  Args:
    n: prompts in the pool.
    budget: new picks.
    seed: whole number of at least 0; one seed, one order of the whole pool.
    initial: already chosen positions, not picked again.

  Returns:
    A Selection whose gains and objective are NaN: nothing is maximised.
  """
  n = checks.integer('n', n)
  seed = checks.integer('seed', seed)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  order = np.random.default_rng(seed).permutation(n)
  order = order[~np.isin(order, initial)][:budget].astype(np.int64)
  return Selection(order, np.full(budget, np.nan), np.nan)


def top(
  scores: Any,
  budget: int,
  largest: bool = True,
  initial: Sequence[int] = (),
) -> Selection:
  """Picks the largest (or smallest) scores; the lowest index wins a tie.

  Args:
    scores: [N] one number a prompt; infinities are ordered, NaN is refused.
    budget: new picks.
    largest: False picks the smallest scores.
    initial: already chosen positions, not picked again.

  Returns:
    A Selection whose gains are the scores of the picks and whose objective is
    the sum of scores over `initial` and picks.
  """
  if np.ndim(scores) != 1:
    raise SelectionError(f'scores have shape {np.shape(scores)}: [N] is needed')
  n = len(scores)
  score_N = checks.row_values('scores', scores, n)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  free = checks.choosable(n, initial)
  keys = -score_N[free] if largest else score_N[free]
  picks = free[np.argsort(keys, kind='stable')[:budget]]
  chosen = np.concatenate([initial, picks])
  return Selection(picks, score_N[picks], float(score_N[chosen].sum()))
