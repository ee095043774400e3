"""What to ask annotators for, and what it costs.

A study compares strategies, so it needs the answers to the union of what they
choose. For a single finetuned model, the picks of one strategy are enough.
"""

from collections.abc import Collection, Mapping, Sequence

import ml_collections

from edsft_jax import console, errors, store, study
from edsft_jax.annotation.formats import Task
from edsft_jax.prices import Prices

_STAGE = 'annotate'


def check(config: ml_collections.ConfigDict) -> None:
  """Rejects bad prices, and a purchase that is not part of the study.

  Raises:
    InputError: naming the option.
  """
  c = config.annotation
  for name in ('price_per_answer', 'price_per_word'):
    errors.refuse_below(f'annotation.{name}', c[name], 0.0)
  if c.buy and c.buy not in config.selection.strategies:
    raise errors.unknown(
      f'annotation.buy={c.buy!r}, which has to be one of selection.strategies,',
      c.buy,
      config.selection.strategies,
    )
  if c.buy and config.study.pool_fraction < 1:
    raise errors.InputError(
      f'annotation.buy={c.buy!r} with study.pool_fraction='
      f'{config.study.pool_fraction:g} would buy from a part of the pool: set '
      'study.pool_fraction=1.0 in a new --workdir, to choose from all of it'
    )


def wanted(
  config: ml_collections.ConfigDict, ids: Mapping[study.Cell, Sequence[str]]
) -> tuple[list[str], int]:
  """Ids to buy, and how many picks must be replaced before the rest is known.

  Args:
    config: the study and annotation.buy.
    ids: those of every cell.

  Returns:
    Ids of all cells or of the purchase, each once, those of small budgets
    first, and the largest number of rejected picks of any cell without a
    replacement.
  """
  buy = config.annotation.buy
  first = study.seeds(config, buy)[0]
  cells = [
    cell
    for cell in sorted(ids, key=lambda cell: cell.budget)
    if not buy or (cell.strategy, cell.seed) == (buy, first)
  ]
  union = dict.fromkeys(i for cell in cells for i in ids[cell])
  return list(union), max(cell.budget - len(ids[cell]) for cell in cells)


def say_union(
  config: ml_collections.ConfigDict,
  ids: Mapping[study.Cell, Sequence[str]],
  answered: Collection[str],
) -> None:
  """Says how many answers each order needs, and all of them together.

  Args:
    config: the study and annotation.buy.
    ids: those of every cell.
    answered: ids with an answer.
  """
  budget = max(config.study.budgets)
  if buy := config.annotation.buy:
    console.say(
      _STAGE, f'asks for the {budget:,} picks of {buy} alone (annotation.buy)'
    )
    return
  # Seeds that share their picks share a line.
  groups: dict[tuple[str, frozenset[str]], list[int]] = {}
  for cell, some in ids.items():
    if cell.budget == budget:
      groups.setdefault((cell.strategy, frozenset(some)), []).append(cell.seed)
  if len(groups) == 1:
    return  # The union is the budget.
  union: set[str] = set()
  rows: list[tuple[str, ...]] = [
    ('strategy', 'seeds', 'prompts', 'to answer', 'together')
  ]
  for (strategy, picks), seeds in groups.items():
    unanswered = picks.difference(answered)
    union |= unanswered
    numbers = (len(picks), len(unanswered), len(union))
    rows.append(
      (strategy, ', '.join(map(str, seeds)), *(f'{n:,}' for n in numbers))
    )
  console.say(
    _STAGE,
    f'{console.count(len(union), "answer")} to buy, to compare {len(groups):,} '
    f'orders of {budget:,} prompts:',
  )
  for line in console.aligned(rows, num_text=2):
    console.say(_STAGE, f'  {line}')
  console.say(
    _STAGE,
    f'to buy {budget:,} answers for one strategy alone, set annotation.buy to '
    'its name',
  )


def say_cost(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  tasks: Sequence[Task],
) -> None:
  """Says what the answers cost, and what will be missing without others.

  Args:
    config: the prices.
    workdir: it should have a held-out set.
    tasks: what is to be answered.
  """
  if prices := Prices.of(config):
    words = sum(task.words for task in tasks)
    console.say(
      _STAGE,
      f'cost: {prices.total(len(tasks), words):,.2f} for '
      f'{console.count(len(tasks), "answer")} to prompts of '
      f'{console.count(words, "word")}',
    )
  heldout = workdir.heldout
  if not heldout.exists() or not len(store.read_prompts(heldout).answered()):
    console.say(
      _STAGE,
      'before you buy: the evaluate stage needs a held-out set with answers: '
      'set pool.heldout_path',
    )
