"""What the answers and the machine cost, per cell and along each curve."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import store, study
from edsft_jax.prices import Prices
from edsft_jax.reporting import account, picks, results, timing
from edsft_jax.strategies import registry

# Kind of cost -> its label on an axis.
ANSWERS, TOKENS, MONEY, SECONDS = 'answers', 'tokens', 'money', 'seconds'
LABELS = {
  ANSWERS: 'answers bought',
  TOKENS: 'tokens of the answers',
  MONEY: 'money',
  SECONDS: 'seconds to choose and finetune',
}

COLUMNS = (
  *('strategy', 'budget', 'seed', 'answer_tokens', 'price_of_answers'),
  *('choosing_seconds', 'finetuning_seconds', 'evaluation_seconds'),
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one cell cost; None where it is not known.

  Attributes:
    answers: answers bought.
    tokens: tokens of these answers.
    price: of these answers; None without prices.
    choosing: seconds to score the pool, if the strategy needs it, and to choose
      for one seed.
    finetuning: its seconds.
    evaluation: its seconds, on all tasks.
  """

  answers: int
  tokens: int | None
  price: float | None
  choosing: float | None
  finetuning: float | None
  evaluation: float | None

  def along(self, axis: str, price_per_hour: float) -> float | None:
    """The cost along an axis of LABELS.

    Args:
      axis: its name.
      price_per_hour: of the machine, which is part of the money.
    """
    if axis == ANSWERS:
      return self.answers
    if axis == TOKENS:
      return self.tokens
    seconds = None
    if self.choosing is not None and self.finetuning is not None:
      seconds = self.choosing + self.finetuning
    if axis == SECONDS:
      return seconds
    if not price_per_hour or self.price is None:
      return self.price
    if seconds is None:
      return None
    return self.price + price_per_hour * seconds / 3600


@dataclasses.dataclass(frozen=True)
class Costs:
  """The costs of the evaluated cells of strategies.

  Attributes:
    cells: cell -> its cost.
    price_per_hour: of the machine; 0.0: not counted.
  """

  cells: Mapping[study.Cell, Cost]
  price_per_hour: float

  def axes(self) -> list[str]:
    """The axes along which all cells have a cost above 0."""
    return [
      axis
      for axis in LABELS
      if self.cells
      and all(
        cost.along(axis, self.price_per_hour) for cost in self.cells.values()
      )
    ]

  def typical(self, strategy: str, budget: int, axis: str) -> float:
    """The cost over the seeds that were evaluated, along one of `axes`.

    The median if seconds are part of the cost, since the first cell of a
    command waits for compilation; otherwise the mean.
    """
    values = [
      cost.along(axis, self.price_per_hour)
      for cell, cost in self.cells.items()
      if (cell.strategy, cell.budget) == (strategy, budget)
    ]
    known = [value for value in values if value is not None]
    has_seconds = axis == SECONDS or (axis == MONEY and self.price_per_hour)
    return float(np.median(known) if has_seconds else np.mean(known))

  def rows(self) -> list[tuple[Any, ...]]:
    """Rows of COLUMNS."""
    return [
      (*dataclasses.astuple(cell), *dataclasses.astuple(cost)[1:])
      for cell, cost in self.cells.items()
    ]


def read(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  found: results.Results,
  prompt_words: Mapping[str, int],
  selections: picks.Selections,
  timings: timing.Timing,
) -> Costs:
  """Reads what the evaluated cells cost.

  Args:
    config: the study, with its prices.
    workdir: has the logs of the cells.
    found: the evaluations.
    prompt_words: prompt -> its words.
    selections: (strategy, seed) -> rows in greedy order.
    timings: has the seconds to score the pool.
  """
  prices = Prices.of(config)
  choosing = _choosing(config, workdir, timings)
  costs = {}
  for cell in found.evaluations:
    if cell.strategy not in config.selection.strategies:
      continue
    rows = selections.get((cell.strategy, cell.seed))
    price = None
    if prices and rows is not None:
      words = sum(prompt_words[row['id']] for row in rows[: cell.budget])
      price = prices.total(cell.budget, words)
    costs[cell] = Cost(
      answers=cell.budget,
      tokens=_answer_tokens(config, workdir.run(cell.name)),
      price=price,
      choosing=choosing.get(cell.strategy),
      finetuning=timing.finetuning_seconds(workdir.run(cell.name)),
      evaluation=timing.evaluation_seconds(workdir.run(cell.name)),
    )
  return Costs(costs, config.report.price_per_hour)


def _choosing(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  timings: timing.Timing,
) -> dict[str, float]:
  """Strategy -> seconds to choose for one seed, with scoring if it needs it."""
  found = {}
  for strategy, seconds in account.seconds_to_choose(config, workdir).items():
    row = registry.STRATEGIES[strategy]
    lists = study.seeds(config, strategy)
    if study.lists_differ(config, row):
      seconds /= len(lists)
    if row.needs_scoring:
      seconds += timings.seconds.get('score', 0.0)
    found[strategy] = seconds
  return found


def _answer_tokens(
  config: ml_collections.ConfigDict, run: store.Run
) -> int | None:
  """Tokens of a cell's answers; None if they are not known."""
  if config.finetuning.early_stopping or not run.metrics.exists():
    return None
  lines = store.read_jsonl(run.metrics)
  # Every epoch counts each answer once.
  return lines[-1]['tokens'] // config.finetuning.epochs if lines else None
