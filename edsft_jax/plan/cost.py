"""What answers cost: per strategy and budget, and for the whole study."""

from collections.abc import Callable

import ml_collections
import numpy as np

from edsft_jax import console, store, study
from edsft_jax.plan.orders import Orders
from edsft_jax.plan.section import Section


def sections(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> list[Section]:
  """Words to read and, if prices are set, money, per strategy and budget."""
  c = config.annotation
  words = dict(zip(pool.ids, pool.num_words(), strict=True))
  pool_mean = float(np.mean(list(words.values())))
  # Mean words of the first picks, at each budget.
  read = {
    name: [
      float(np.mean([[words[i] for i in ids[:budget]] for ids in lists]))
      for budget in orders.budgets
    ]
    for name, lists in orders.lists.items()
  }
  read['(pool mean)'] = [pool_mean] * len(orders.budgets)
  columns = ['strategy', *(f'{b:,} answers' for b in orders.budgets)]

  def rows(text: Callable[[float, int], str]) -> list[list[str]]:
    """A cell per strategy and budget, from its mean words and its answers."""
    return [
      [name, *map(text, means, orders.budgets)] for name, means in read.items()
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
  if not c.price_per_answer and not c.price_per_word:
    note = (
      'No prices: set annotation.price_per_answer or annotation.price_per_word '
      'to see what answers cost.'
    )
    return [*made, Section(title, [note])]
  note = (
    f'{c.price_per_answer:g} per answer and {c.price_per_word:g} per word of '
    'its prompt; means over seeds.'
  )

  def price(mean: float, budget: int) -> str:
    return f'{budget * (c.price_per_answer + c.price_per_word * mean):,.2f}'

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
      f'The whole study needs at most {min(count, len(words)):,} answers; how '
      'many, the selections show.'
    )
  answered = {
    *store.read_responses(workdir.responses),
    *store.read_responses(workdir.pool_responses),
  }
  union = {i for lists in orders.lists.values() for ids in lists for i in ids}
  open_ids = union - answered
  text = (
    f'The whole study needs {console.count(len(union), "answer")}, of which '
    f'{len(open_ids):,} are not known yet'
  )
  c = config.annotation
  price = c.price_per_answer * len(open_ids)
  price += c.price_per_word * sum(words[i] for i in open_ids)
  return f'{text}: {price:,.2f}.' if price else f'{text}.'
