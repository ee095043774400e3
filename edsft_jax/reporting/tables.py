"""A study's results as tables: the csv files, and data frames for notebooks."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import importlib.util
import io
import pathlib
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import store, study
from edsft_jax.reporting import account, comparison, results, savings
from edsft_jax.strategies import registry

# Columns and rows.
Table = tuple[Sequence[str], Sequence[tuple[Any, ...]]]

# The strategy minus another, which is random or a control. The budget is empty
# for the comparison of whole curves.
COMPARISON_COLUMNS = (
  'metric',
  'strategy',
  'minus',
  'budget',
  'difference',
  'low',
  'high',
  'standard_error',
  'degrees_of_freedom',
  'corrected_p',
  'verdict',
  *(f'detectable_{n}' for n in ('as_run', *comparison.PLANNED_SEEDS)),
)
# Numbers of answers are 0 and inf where they are beyond the budgets run.
SAVINGS_COLUMNS = (
  'metric',
  'strategy',
  'method',
  'random_answers',
  'answers',
  'low',
  'high',
  'saving',
  'saving_low',
  'saving_high',
)
# Means over prompts and seeds.
LENGTH_COLUMNS = ('strategy', 'budget', 'prompt_words', 'answer_words')

CELL_COLUMNS = (
  *('strategy', 'budget', 'seed', 'task', 'metric'),
  *('value', 'larger_is_better', 'num_items'),
)
ITEM_COLUMNS = ('strategy', 'budget', 'seed', 'task', 'metric', 'id', 'value')
PICK_COLUMNS = (
  *('strategy', 'seed', 'rank', 'id', 'task', 'score', 'gain', 'words'),
)


@dataclasses.dataclass(frozen=True)
class Tables:
  """A study's results, each a pandas DataFrame or a pyarrow Table.

  Attributes:
    cells: a row per cell and metric: strategy, budget, seed, task, metric,
      value, larger_is_better and num_items. 'full_pool' and 'no_finetuning' are
      strategies here.
    items: a row per cell, metric and evaluation item: strategy, budget, seed,
      task, metric, id and value.
    picks: a row per strategy, seed and chosen prompt in greedy order: strategy,
      seed, rank from 0, id, task, score, gain and words. Budget k has the ranks
      below k; rejected prompts have none.
    comparisons: as in report/comparisons.csv.
    savings: as in report/savings.csv.
  """

  cells: Any
  items: Any
  picks: Any
  comparisons: Any
  savings: Any


def load(workdir: str | pathlib.Path) -> Tables:
  """Reads a study's results, for your own tables and plots.

  >>> tables = load('runs/mine')  # doctest: +SKIP
  >>> losses = tables.cells.query('metric == "loss"')  # doctest: +SKIP

  Args:
    workdir: the study's folder; evaluations may still be missing.

  Returns:
    pandas DataFrames if pandas is installed, else pyarrow Tables.

  Raises:
    InputError: the folder holds no study, or one of its files is damaged.
  """
  made = store.Workdir(pathlib.Path(workdir))
  store.require(made.pool, 'pool', frozenset())
  config = study.read_config(made)
  found = results.read_results(config, made)
  compared = comparison.compare_all(
    found, config.report.metric, config.report.confidence
  )
  return Tables(
    cells=_frame(CELL_COLUMNS, cell_rows(found)),
    items=_frame(ITEM_COLUMNS, item_rows(found)),
    picks=_frame(PICK_COLUMNS, _pick_rows(config, made)),
    comparisons=_frame(COMPARISON_COLUMNS, comparison_rows(compared)),
    savings=_frame(SAVINGS_COLUMNS, savings_rows(compared)),
  )


def csv_text(table: Table) -> str:
  """A table as the text of a csv file."""
  columns, rows = table
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(rows)
  return text.getvalue()


def _frame(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Any:
  """A DataFrame where pandas is installed, else a pyarrow Table."""
  import pyarrow as pa

  values = zip(*rows, strict=True) if rows else ([] for _ in columns)
  table = pa.table(
    {name: list(column) for name, column in zip(columns, values, strict=True)}
  )
  has_pandas = importlib.util.find_spec('pandas') is not None
  return table.to_pandas() if has_pandas else table


def cell_rows(found: results.Results) -> list[tuple[Any, ...]]:
  """Rows of CELL_COLUMNS."""
  return [
    (
      *(cell.strategy, cell.budget, cell.seed, metric.task, name),
      *(evaluation.metrics[name], metric.larger_is_better),
      evaluation.num_items[metric.task],
    )
    for cell, evaluation in found.evaluations.items()
    for name, metric in found.metrics.items()
    if name in evaluation.metrics
  ]


def item_rows(found: results.Results) -> list[tuple[Any, ...]]:
  """Rows of ITEM_COLUMNS."""
  return [
    (*(cell.strategy, cell.budget, cell.seed, task, name), item, float(value))
    for cell, evaluation in found.evaluations.items()
    for name, values in evaluation.items.items()
    for task in (found.metrics[name].task,)
    for item, value in zip(found.item_ids[task], values, strict=True)
  ]


def _pick_rows(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[tuple[Any, ...]]:
  """Rows of PICK_COLUMNS."""
  pool = store.read_prompts(workdir.pool)
  words = dict(zip(pool.ids, pool.num_words(), strict=True))
  selections = results.read_selections(config, workdir)
  return [
    (
      *(strategy, seed, rank, row['id'], row.get('task')),
      *(row.get('score'), row.get('gain'), words[row['id']]),
    )
    for (strategy, seed), rows in selections.items()
    for rank, row in enumerate(rows)
  ]


def comparison_rows(
  compared: Mapping[str, comparison.Comparisons],
) -> list[tuple[Any, ...]]:
  """Rows of COMPARISON_COLUMNS: of each metric curves, budgets, control."""
  rows = []
  for metric, found in compared.items():
    against_random = [*found.curves.values(), *found.budgets.values()]
    rows += [
      _comparison_row(metric, registry.RANDOM, one) for one in against_random
    ]
    if found.control is not None:
      rows.append(
        _comparison_row(metric, registry.LENGTH_MATCHED, found.control)
      )
  return rows


def savings_rows(
  compared: Mapping[str, comparison.Comparisons],
) -> list[tuple[Any, ...]]:
  """Rows of SAVINGS_COLUMNS."""
  return [
    _savings_row(metric, strategy, saving)
    for metric, comparisons in compared.items()
    for strategy, saving in comparisons.savings.items()
  ]


def length_rows(
  lengths: Mapping[tuple[str, int], account.Lengths],
) -> list[tuple[Any, ...]]:
  """Rows of LENGTH_COLUMNS."""
  return [(*key, mean.prompts, mean.answers) for key, mean in lengths.items()]


def _comparison_row(
  metric: str, other: str, one: comparison.Comparison
) -> tuple[Any, ...]:
  numbers: list[float | None] = [None] * 5
  if (difference := one.difference) is not None:
    error = difference.error
    numbers = [
      _number(x)
      for x in (
        difference.mean,
        difference.low,
        difference.high,
        error.value,
        error.freedom,
      )
    ]
  sizes = list(one.detectable.items())
  return (
    metric,
    one.strategy,
    other,
    one.budget or None,
    *numbers,
    one.p_value,
    one.verdict.value.replace(registry.RANDOM, other),
    sizes[0][1] if sizes else None,
    *(dict(sizes).get(n) for n in comparison.PLANNED_SEEDS),
  )


def _savings_row(
  metric: str, strategy: str, saving: savings.Saving
) -> tuple[Any, ...]:
  ends = saving.answers, saving.low, saving.high
  return (
    metric,
    strategy,
    saving.method,
    saving.budget,
    *(_number(end) if saving.known else None for end in ends),
    *(
      _number(saving.share(end)) if saving.known and 0 < end < np.inf else None
      for end in (saving.answers, saving.high, saving.low)
    ),
  )


def _number(x: float) -> float | None:
  """The number; None for NaN."""
  return None if np.isnan(x) else float(x)
