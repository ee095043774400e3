"""What answers cost, and what a strategy saves in money."""

from collections.abc import Callable, Mapping

import ml_collections

from edsft_jax.prices import Prices
from edsft_jax.reporting import account, savings
from edsft_jax.strategies.registry import RANDOM


def prices(
  config: ml_collections.ConfigDict,
  lengths: Mapping[tuple[str, int], account.Lengths],
) -> dict[str, float]:
  """The mean price of an answer among each strategy's picks.

  Of the first picks, up to the reference budget of savings, over all seeds.
  Empty if no prices are set.

  Args:
    config: annotation.price_per_answer and price_per_word.
    lengths: (strategy, budget) -> mean lengths of its first picks.
  """
  if not (prices := Prices.of(config)):
    return {}
  reference = savings.reference_budget(config.study.budgets)
  return {
    strategy: prices.total(1, mean.prompts)
    for (strategy, budget), mean in lengths.items()
    if budget == reference
  }


def saved(
  saving: savings.Saving, strategy: str, price: Mapping[str, float]
) -> Callable[[float], float] | None:
  """Money saved at the reference budget, by the answers that are needed.

  What random's answers cost, less what the strategy's cost, each at the mean
  price of its own picks. None without prices.
  """
  if RANDOM not in price or strategy not in price:
    return None
  spent = saving.budget * price[RANDOM]
  return lambda answers: spent - answers * price[strategy]
