"""What the report reads: the evaluations of a study and the files around."""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import ml_collections

from edsft_jax import errors, store, study
from edsft_jax.reporting import metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One eval.json.

  Attributes:
    num_prompts: held-out prompts evaluated.
    metrics: metric name -> value over all of them.
    tasks: task -> {'num_prompts', metric name -> value}; empty without tasks.
  """

  num_prompts: int
  metrics: dict[str, float]
  tasks: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Results:
  """The evaluations of the present study that exist, and the absent ones.

  Attributes:
    evaluations: cell -> evaluation, in the study's order, references last.
    absent: cells of the study without an eval.json.
    strategies: in the order shown: random first, then as configured.
    budgets: ascending.
    seeds: as configured.
    pool_size: prompts in the pool.
  """

  evaluations: dict[study.Cell, Evaluation]
  absent: list[study.Cell]
  strategies: list[str]
  budgets: list[int]
  seeds: list[int]
  pool_size: int

  def at(self, strategy: str, budget: int) -> dict[int, Evaluation]:
    """Seed -> evaluation of one strategy at one budget."""
    return {
      cell.seed: evaluation
      for cell, evaluation in self.evaluations.items()
      if (cell.strategy, cell.budget) == (strategy, budget)
    }

  def values(self, strategy: str, budget: int, metric: str) -> list[float]:
    """One value of a metric for each seed that was evaluated."""
    return [e.metrics[metric] for e in self.at(strategy, budget).values()]

  def references(self) -> list[tuple[str, int]]:
    """(name, budget) of the full-pool and no-finetuning lines there are."""
    lines = ((study.FULL_POOL, self.pool_size), (study.NO_FINETUNING, 0))
    return [line for line in lines if self.at(*line)]


def pool_size(workdir: store.Workdir) -> int:
  """Number of prompts in the pool, from the file's footer alone."""
  import pyarrow.parquet as pq

  return pq.read_metadata(workdir.pool).num_rows


def cells(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  num_prompts: int,
) -> list[study.Cell]:
  """Every cell that the report would show, the references last.

  The whole pool is one of them only where it has been answered.
  """
  answered = len(store.read_responses(workdir.responses))
  full_pool = study.full_pool_cells(config, num_prompts)
  return [
    *study.cells(config),
    *(full_pool if answered >= num_prompts else []),
    study.no_finetuning_cell(),
  ]


def read_results(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> Results:
  """Reads the evaluations of the study's cells.

  Raises:
    InputError: an eval.json that is broken or belongs to another cell.
  """
  num_prompts = pool_size(workdir)
  evaluations, absent = {}, []
  for cell in cells(config, workdir, num_prompts):
    path = workdir.run(cell.name).evaluation
    if path.exists():
      evaluations[cell] = _read_evaluation(path, cell)
    else:
      absent.append(cell)
  return Results(
    evaluations=evaluations,
    absent=absent,
    strategies=sorted(
      config.selection.strategies, key=lambda name: name != 'random'
    ),
    budgets=sorted(config.study.budgets),
    seeds=list(config.study.seeds),
    pool_size=num_prompts,
  )


def _read_evaluation(path: pathlib.Path, cell: study.Cell) -> Evaluation:
  remedy = 'delete it and run the evaluate stage again'
  try:
    contents = store.read_json(path)
    named = study.Cell(
      contents['strategy'], contents['budget'], contents['seed']
    )
    evaluation = Evaluation(
      num_prompts=contents['num_prompts'],
      metrics={name: contents['metrics'][name] for name in metrics.METRICS},
      tasks=contents.get('tasks') or {},
    )
    rows = [evaluation.metrics, *evaluation.tasks.values()]
    finite = all(
      math.isfinite(row[name]) for row in rows for name in metrics.METRICS
    )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f'{path} is not a whole evaluation ({error!r}): {remedy}'
    ) from error
  if named != cell:
    raise errors.InputError(f'{path} is of the cell {named.name}: {remedy}')
  if not finite:
    raise errors.InputError(f'{path} has a metric that is no number: {remedy}')
  return evaluation


def read_selections(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[tuple[str, int], list[dict[str, Any]]]:
  """(strategy, seed) -> rows in greedy order, for the files that exist."""
  return {
    (strategy, seed): store.read_jsonl(path)
    for strategy in config.selection.strategies
    for seed in config.study.seeds
    if (path := workdir.selection(strategy, seed)).exists()
  }


def certificates(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """How near the best possible choice a strategy is sure to be, by budget.

  Only of strategies whose selection proved a bound (facility location).
  """
  return [
    f'{strategy} at {bound["budget"]:,} answers reaches '
    f'{bound["objective"]:,.1f}, and no choice of so many prompts can exceed '
    f'{bound["upper_bound"]:,.1f}: it is at least '
    f'{bound["objective"] / bound["upper_bound"]:.1%} of the best possible'
    for strategy in config.selection.strategies
    if (path := workdir.selection_record(strategy)).exists()
    for bound in store.read_json(path)['bounds']
    if bound['budget'] in config.study.budgets and bound['upper_bound'] > 0
  ]


def found_tasks(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[str, int]:
  """Strategy -> number of clusters that it took for tasks.

  Only of those whose tasks were found by k-means, for want of labels.
  """
  return {
    strategy: clusters
    for strategy in config.selection.strategies
    if (path := workdir.selection_record(strategy)).exists()
    and (clusters := store.read_json(path)['task_clusters'])
  }


def input_files(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[pathlib.Path]:
  """Every file that the page is made from, where it exists."""
  paths = [
    workdir.pool,
    workdir.gains_curves,
    *(workdir.selection_record(s) for s in config.selection.strategies),
    *(
      workdir.selection(strategy, seed)
      for strategy in config.selection.strategies
      for seed in config.study.seeds
    ),
    *(
      workdir.run(cell.name).evaluation
      for cell in cells(config, workdir, pool_size(workdir))
    ),
  ]
  return [path for path in paths if path.exists()]


def absent_lines(absent: Sequence[study.Cell]) -> list[str]:
  """One line for each strategy and budget with its absent seeds."""
  groups: dict[tuple[str, int], list[int]] = {}
  for cell in absent:
    groups.setdefault((cell.strategy, cell.budget), []).append(cell.seed)
  return [
    f'{strategy} at {budget:,} answers: '
    f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'
    for (strategy, budget), seeds in groups.items()
  ]
