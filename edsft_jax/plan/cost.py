"""What answers cost: per strategy and budget, and for the whole study."""

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
  made = [
    Section(
      'Words to read, and per prompt',
      columns=columns,
      rows=[
        [
          name,
          *(
            f'{mean * budget:,.0f} ({mean:,.1f})'
            for mean, budget in zip(means, orders.budgets, strict=True)
          ),
        ]
        for name, means in read.items()
      ],
      lines=[_to_buy(config, workdir, orders, words)],
    )
  ]
  if not c.price_per_answer and not c.price_per_word:
    note = (
      'No prices: set annotation.price_per_answer or annotation.price_per_word '
      'to see what answers cost.'
    )
    return [*made, Section('Price of the answers', [note])]
  return [
    *made,
    Section(
      'Price of the answers',
      columns=columns,
      rows=[
        [
          name,
          *(
            f'{budget * (c.price_per_answer + c.price_per_word * mean):,.2f}'
            for mean, budget in zip(means, orders.budgets, strict=True)
          ),
        ]
        for name, means in read.items()
      ],
      lines=[
        f'{c.price_per_answer:g} per answer and {c.price_per_word:g} per word '
        'of its prompt; means over seeds.'
      ],
    ),
  ]


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
