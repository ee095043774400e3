"""What answers cost, and what a strategy saves in money."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import store
from edsft_jax.reporting import savings
from edsft_jax.strategies.registry import RANDOM


def prices(
  config: ml_collections.ConfigDict,
  pool: store.Prompts,
  selections: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
  """The mean price of an answer among each strategy's picks.

  Of the first picks, up to the reference budget of savings, over all seeds.
  Empty if no prices are set.

  Args:
    config: annotation.price_per_answer and price_per_word.
    pool: the prompts.
    selections: (strategy, seed) -> rows in greedy order.
  """
  c = config.annotation
  if not c.price_per_answer and not c.price_per_word:
    return {}
  budget = savings.reference_budget(config.study.budgets)
  words = dict(zip(pool.ids, pool.num_words(), strict=True))
  read: dict[str, list[int]] = {}
  for (strategy, _), rows in selections.items():
    read.setdefault(strategy, []).extend(
      words[row['id']] for row in rows[:budget]
    )
  return {
    strategy: c.price_per_answer + c.price_per_word * float(np.mean(counts))
    for strategy, counts in read.items()
  }


def saved(
  saving: savings.Saving, strategy: str, price: Mapping[str, float]
) -> tuple[float, float, float] | None:
  """Money saved at the reference budget: best guess and interval.

  What random's answers cost, less what the strategy's cost, each at the mean
  price of its own picks. -inf where the strategy may need more answers than
  were run, and inf where it may need fewer. None without prices.
  """
  if RANDOM not in price or strategy not in price:
    return None
  spent = saving.budget * price[RANDOM]

  def left(answers: float) -> float:
    return np.inf if answers == 0 else spent - answers * price[strategy]

  return left(saving.answers), left(saving.high), left(saving.low)
