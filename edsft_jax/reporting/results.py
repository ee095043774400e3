"""Reads the evaluations and selections of a study, for the report."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import errors, store, study
from edsft_jax.reporting import items as items_lib
from edsft_jax.reporting import statistics
from edsft_jax.strategies import registry

# This task's metrics have no prefix; those of other tasks have the task's name.
HELDOUT = 'heldout'


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric, as described in eval.json.

  Attributes:
    task: the evaluation task.
    label: its name in headings.
    larger_is_better: False if smaller values are better.
    meaning: what it measures, with the unit.
    against_random: whether it is relative to random at the same budget and for
      the same seed.
  """

  task: str
  label: str
  larger_is_better: bool
  meaning: str
  against_random: bool = False

  @property
  def direction(self) -> str:
    """'higher is better' or 'lower is better'."""
    return 'higher is better' if self.larger_is_better else 'lower is better'

  @property
  def axis_label(self) -> str:
    """The label with the direction."""
    return f'{self.label} ({self.direction})'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A cell's results on all tasks that it was evaluated on.

  Attributes:
    num_items: task -> number of items evaluated.
    metrics: metric -> value over all items of its task.
    groups: metric -> group of its task -> (value, number of items); empty for a
      task without groups.
    items: metric -> value of each item of its task.
  """

  num_items: dict[str, int] = dataclasses.field(default_factory=dict)
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  groups: dict[str, dict[str, tuple[float, int]]] = dataclasses.field(
    default_factory=dict
  )
  items: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Results:
  """The evaluations of the study that exist, and the missing ones.

  Attributes:
    metrics: the metrics of all evaluations.
    evaluations: cell -> evaluation, in the study's order, references last.
    absent: cells of the study without an eval.json.
    strategies: strategies in display order: random first, then as configured.
    budgets: ascending budgets.
    seeds: strategy -> its seeds as configured.
    pool_size: number of prompts in the pool.
    items: metric -> weights and clusters of its items.
    item_ids: task -> ids of its items.
    fixed: strategies that have the same list of prompts for every seed, by
      design, since every seed has the whole pool.
    matched: the strategy that random_length_matched has the lengths of; '' if
      this is not in the study.
  """

  metrics: Mapping[str, Metric]
  evaluations: dict[study.Cell, Evaluation]
  absent: list[study.Cell]
  strategies: list[str]
  budgets: list[int]
  seeds: Mapping[str, Sequence[int]]
  pool_size: int
  items: Mapping[str, statistics.Items] = dataclasses.field(
    default_factory=dict
  )
  item_ids: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  fixed: frozenset[str] = frozenset()
  matched: str = ''

  @property
  def num_seeds(self) -> int:
    """The largest number of seeds of a strategy."""
    return max(map(len, self.seeds.values()))

  def at(self, strategy: str, budget: int) -> dict[int, Evaluation]:
    """Seed -> evaluation of one strategy at one budget."""
    return {
      cell.seed: evaluation
      for cell, evaluation in self.evaluations.items()
      if (cell.strategy, cell.budget) == (strategy, budget)
    }

  def values(self, strategy: str, budget: int, metric: str) -> list[float]:
    """The values of a metric, one for each seed that has it."""
    return [
      evaluation.metrics[metric]
      for evaluation in self.at(strategy, budget).values()
      if metric in evaluation.metrics
    ]

  def item_values(
    self, strategy: str, budget: int, metric: str
  ) -> dict[int, np.ndarray]:
    """Seed -> values of a metric's items, [I], for the seeds that have it."""
    return {
      seed: evaluation.items[metric]
      for seed, evaluation in self.at(strategy, budget).items()
      if metric in evaluation.items
    }

  def reference(
    self, strategy: str, budget: int, metric: str
  ) -> statistics.Interval:
    """The mean over seeds of a reference cell, without an interval.

    Its variance over seeds is not that of the strategies, and a few seeds alone
    would show too little of it, by chance.
    """
    values = self.values(strategy, budget, metric)
    mean = sum(values) / len(values)
    return statistics.Interval(mean, None, None, len(values))

  def references(self, metric: str) -> list[tuple[str, int]]:
    """(name, budget) of the full-pool and no-finetuning cells that have it."""
    lines = ((study.FULL_POOL, self.pool_size), (study.NO_FINETUNING, 0))
    return [line for line in lines if self.values(*line, metric)]


def pool_size(workdir: store.Workdir) -> int:
  """Number of prompts in the pool, read from the file's footer."""
  import pyarrow.parquet as pq

  return pq.read_metadata(workdir.pool).num_rows


def cells(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  num_prompts: int,
) -> list[study.Cell]:
  """All cells that the report can show, the references last.

  The full pool is only included if it is completely answered.
  """
  answered = len(store.read_responses(workdir.responses))
  full_pool = study.full_pool_cells(config, num_prompts)
  return [
    *study.cells(config),
    *(full_pool if answered >= num_prompts else []),
    study.no_finetuning_cell(),
  ]


def evaluation_files(run: store.Run) -> list[pathlib.Path]:
  """The eval.json of each task that a cell was evaluated on.

  Raises:
    InputError: the evaluation was written by an older version.
  """
  files = sorted(run.evaluations.glob('*/eval.json'))
  old = run.old_evaluation[0]
  if not files and old.exists():
    raise errors.InputError(
      f'{old} was written by an earlier version: run the evaluate stage, which '
      'evaluates the cells again'
    )
  return files


def read_results(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> Results:
  """Reads the evaluations of the study's cells.

  Raises:
    InputError: an eval.json is damaged, belongs to another cell, or has another
      version of its task than the others.
  """
  num_prompts = pool_size(workdir)
  evaluations, absent = {}, []
  metrics: dict[str, Metric] = {}
  items: dict[str, statistics.Items] = {}
  firsts: dict[str, tuple[pathlib.Path, Mapping[str, Any]]] = {}
  ids: dict[str, tuple[str, ...]] = {}
  outdated = study.outdated(workdir)
  for cell in cells(config, workdir, num_prompts):
    if cell in outdated:
      absent.append(cell)
      continue
    evaluation = Evaluation()
    for path in evaluation_files(workdir.run(cell.name)):
      contents = _read_evaluation(path, cell)
      task = contents['task']
      table = items_lib.read(workdir.run(cell.name).items(task), contents)
      _add(contents, table, evaluation, metrics, items)
      first = firsts.setdefault(task, (path, contents))
      _refuse_mixed(first, (path, contents))
      if table.ids != ids.setdefault(task, table.ids):
        raise errors.InputError(
          f'{path.parent} has other items than {first[0].parent}: remove one '
          'of them and run the evaluate stage again'
        )
    if evaluation.metrics:
      evaluations[cell] = evaluation
    else:
      absent.append(cell)
  if metrics and all(metric.against_random for metric in metrics.values()):
    # References have no metrics relative to random at the same budget.
    references = (study.FULL_POOL, study.NO_FINETUNING)
    absent = [cell for cell in absent if cell.strategy not in references]
  return of_study(
    config,
    metrics=metrics,
    evaluations=evaluations,
    absent=absent,
    pool_size=num_prompts,
    items=items,
    item_ids=ids,
  )


def of_study(config: ml_collections.ConfigDict, **found: Any) -> Results:
  """What was found, with what the study's config says about its cells."""
  return Results(
    strategies=sorted(
      config.selection.strategies, key=lambda name: name != registry.RANDOM
    ),
    budgets=sorted(config.study.budgets),
    seeds={
      strategy: study.seeds(config, strategy)
      for strategy in config.selection.strategies
    },
    fixed=frozenset(
      row.name
      for row in registry.rows(config.selection.strategies)
      if not study.lists_differ(config, row)
    ),
    matched=config.selection.length_matched_to
    if registry.LENGTH_MATCHED in config.selection.strategies
    else '',
    **found,
  )


def find_metric(name: str, known: Iterable[str]) -> str:
  """Checks report.metric and returns it.

  Raises:
    InputError: it is unknown; suggests the nearest.
  """
  known = list(known)
  if name not in known:
    raise errors.unknown(f'report.metric {name!r}', name, known)
  return name


def _read_evaluation(path: pathlib.Path, cell: study.Cell) -> dict[str, Any]:
  """Reads and checks an eval.json.

  Raises:
    InputError: it is damaged or belongs to another cell.
  """
  contents = store.read_evaluation(path)
  named = study.Cell(contents['strategy'], contents['budget'], contents['seed'])
  if named != cell:
    raise errors.InputError(
      f'{path} belongs to cell {named.name}: delete it and run the evaluate '
      'stage again'
    )
  return contents


def _refuse_mixed(
  first: tuple[pathlib.Path, Mapping[str, Any]],
  other: tuple[pathlib.Path, Mapping[str, Any]],
) -> None:
  """Rejects two evaluations on a task that cannot be compared.

  Raises:
    InputError: the versions of the task, its options or its inputs differ.
  """
  (path, old), (other_path, new) = first, other
  remedy = (
    f"remove the task's folder in {path.parents[3]}/*/evaluations and run the "
    'evaluate stage again'
  )
  if old['version'] != new['version']:
    raise errors.InputError(
      f'{path} and {other_path} were made by different versions of the task: '
      f'{remedy}'
    )
  # Every cell has its own model.
  before, after = (
    {
      name: value
      for name, value in one['fingerprint'].items()
      if name != 'cell'
    }
    for one in (old, new)
  )
  store.refuse_change(f'{other_path}, unlike {path},', before, after, remedy)


def _add(
  contents: Mapping[str, Any],
  table: items_lib.Table,
  evaluation: Evaluation,
  known: dict[str, Metric],
  items: dict[str, statistics.Items],
) -> None:
  """Adds an evaluation to its cell, and its metrics to `known` and `items`."""
  task = contents['task']
  for name, metric in contents['metrics'].items():
    key = name if task == HELDOUT else f'{task}.{name}'
    known.setdefault(
      key,
      Metric(
        task,
        metric['label'],
        metric['larger_is_better'],
        metric.get('meaning', metric['label']),
        metric.get('against_random', False),
      ),
    )
    evaluation.num_items[task] = metric['n']
    evaluation.metrics[key] = metric['value']
    evaluation.items[key] = table.values[name]
    items.setdefault(key, table.items[name])
    evaluation.groups[key] = {
      group: (metrics[name]['value'], metrics[name]['n'])
      for group, metrics in contents['by_task'].items()
    }


def read_selections(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[tuple[str, int], list[dict[str, Any]]]:
  """(strategy, seed) -> rows in greedy order, without rejected prompts.

  Only for selections that exist.
  """
  return {
    (strategy, seed): [
      row
      for row in study.picks(workdir, strategy, seed)
      if row['status'] == study.CHOSEN
    ]
    for strategy in config.selection.strategies
    for seed in study.seeds(config, strategy)
    if workdir.selection(strategy, seed).exists()
  }


def certificates(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """A guarantee of quality per budget, as text; of several seeds, the least.

  Only for strategies that compute an upper bound (facility location).
  """
  least: dict[tuple[str, int], Mapping[str, Any]] = {}
  for strategy in config.selection.strategies:
    path = workdir.selection_record(strategy)
    for bound in store.read_json(path)['bounds'] if path.exists() else ():
      key = strategy, bound['budget']
      if key[1] not in config.study.budgets or bound['upper_bound'] <= 0:
        continue
      if key not in least or _share(bound) < _share(least[key]):
        least[key] = bound
  return [
    f'{strategy} at {budget:,} answers reaches {bound["objective"]:,.1f}, and '
    f'no choice of that many prompts can exceed {bound["upper_bound"]:,.1f}: '
    f'it is at least {_share(bound):.1%} of the optimum'
    for (strategy, budget), bound in least.items()
  ]


def _share(bound: Mapping[str, Any]) -> float:
  return bound['objective'] / bound['upper_bound']


def found_tasks(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[str, int]:
  """Strategy -> number of clusters that it used as tasks.

  Only for strategies whose tasks were found by k-means, since the pool has no
  labels.
  """
  return {
    strategy: clusters
    for strategy in config.selection.strategies
    if (path := workdir.selection_record(strategy)).exists()
    and (clusters := store.read_json(path)['task_clusters'])
  }


def absent_lines(absent: Sequence[study.Cell]) -> list[str]:
  """A line for each strategy and budget with missing seeds."""
  groups: dict[tuple[str, int], list[int]] = {}
  for cell in absent:
    groups.setdefault((cell.strategy, cell.budget), []).append(cell.seed)
  return [
    f'{strategy} at {budget:,} answers: '
    f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'
    for (strategy, budget), seeds in groups.items()
  ]
