"""Selection without features: at random, by a score, or like other picks."""

import numpy as np

from edsft_jax.selection import checks, inputs
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.inputs import Positions, Values
from edsft_jax.selection.result import Selection

# Prompts that a matched pick is drawn from. On 1,198 Dolly prompts, ten more or
# less change the mean length of what is drawn by a few percent.
_NUM_NEAREST = 20


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


def random_matched(
  values: Values,
  picks: Positions,
  seed: int,
  initial: Positions = (),
  num_nearest: int = _NUM_NEAREST,
) -> Selection:
  """Picks at random, with the values of other picks.

  For each of these, in order, one of the free prompts nearest in value is
  drawn: half of them below, half above, or further on one side where the other
  ends. So every prefix has nearly the distribution of the other prefix, until
  prompts with such values run out.

  >>> lengths = [10, 90, 11, 91, 12, 92, 13, 93]
  >>> drawn = random_matched(lengths, [2, 5, 4], seed=2, num_nearest=3)
  >>> [lengths[i] for i in drawn.indices]
  [11, 92, 13]

  Args:
    values: [N] numbers, such as lengths; NaN is refused.
    picks: [M] positions of the other picks.
    seed: whole number of at least 0; budgets nest for one seed.
    initial: already chosen positions, not picked again.
    num_nearest: the number of prompts that each pick is drawn from.

  Returns:
    A Selection of M picks whose gains and objective are NaN: nothing is
    maximised.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  array = inputs.array('values', values)
  n = len(array)
  value_N = checks.row_values('values', array, n)
  pick_M = checks.indices('picks', picks, n)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(len(pick_M), n - len(initial_I))
  seed = checks.integer('seed', seed)
  num_nearest = checks.integer('num_nearest', num_nearest, least=1)
  rng = np.random.default_rng(seed)
  free = rng.permutation(n)  # Equal values are then in random order.
  free = free[~np.isin(free, initial_I)]
  free = free[np.argsort(value_N[free], kind='stable')]
  ascending = value_N[free]
  drawn = np.zeros(budget, np.int64)
  for i, value in enumerate(value_N[pick_M]):
    middle = (
      np.searchsorted(ascending, value)
      + np.searchsorted(ascending, value, side='right')
    ) // 2
    size = min(num_nearest, len(free))
    first = np.clip(middle - size // 2, 0, len(free) - size)
    place = int(first) + int(rng.integers(size))
    drawn[i] = free[place]
    free = np.delete(free, place)
    ascending = np.delete(ascending, place)
  return Selection(drawn, np.full(budget, np.nan), np.nan)
