"""What answers cost: per strategy and budget, and for the whole study."""

from collections.abc import Callable

import ml_collections
import numpy as np

from edsft_jax import console, store, study
from edsft_jax.plan.orders import Orders
from edsft_jax.plan.section import Section
from edsft_jax.prices import Prices


def sections(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> list[Section]:
  """Words to read and, if prices are set, money, per strategy and budget."""
  words = dict(zip(pool.ids, pool.num_words(), strict=True))
  pool_mean = float(np.mean(list(words.values())))
  mean_words = {
    name: [
      float(np.mean([[words[i] for i in ids[:budget]] for ids in lists]))
      for budget in orders.budgets
    ]
    for name, lists in orders.lists.items()
  }
  mean_words['(pool mean)'] = [pool_mean] * len(orders.budgets)
  columns = ['strategy', *(f'{b:,} answers' for b in orders.budgets)]

  def rows(text: Callable[[float, int], str]) -> list[list[str]]:
    """A cell per strategy and budget, from its mean words and its answers."""
    return [
      [name, *map(text, means, orders.budgets)]
      for name, means in mean_words.items()
    ]

  made = [
    Section(
      'Words to read, and per prompt',
      [_to_buy(config, workdir, orders, words)],
      columns,
      rows(lambda mean, budget: f'{mean * budget:,.0f} ({mean:,.1f})'),
    )
  ]
  title = 'Price of the answers'
  prices = Prices.of(config)
  if not prices:
    note = (
      'No prices: set annotation.price_per_answer or annotation.price_per_word '
      'to see what answers cost.'
    )
    return [*made, Section(title, [note])]
  note = (
    f'{prices.per_answer:g} per answer and {prices.per_word:g} per word of its '
    'prompt; means over seeds.'
  )

  def price(mean: float, budget: int) -> str:
    return f'{prices.total(budget, budget * mean):,.2f}'

  return [*made, Section(title, [note], columns, rows(price))]


def _to_buy(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  orders: Orders,
  words: dict[str, int],
) -> str:
  """How many answers the comparison of all strategies needs."""
  if orders.missing:
    count = sum(
      orders.largest * len(study.seeds(config, name))
      for name in config.selection.strategies
    )
    return (
      f'The whole study needs at most {min(count, len(words)):,} answers; the '
      'exact number is known once all strategies have chosen.'
    )
  union = {i for lists in orders.lists.values() for ids in lists for i in ids}
  open_ids = union.difference(store.known_answers(workdir))
  text = (
    f'The whole study needs {console.count(len(union), "answer")}, of which '
    f'{len(open_ids):,} are not known yet'
  )
  prices = Prices.of(config)
  total = prices.total(len(open_ids), sum(words[i] for i in open_ids))
  return f'{text}: {total:,.2f}.' if total else f'{text}.'
