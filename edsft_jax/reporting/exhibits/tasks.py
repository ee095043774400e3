"""Picks and quality by task."""

from collections.abc import Iterable, Mapping, Sequence
import functools
from typing import Any

from edsft_jax import store
from edsft_jax.reporting import picks, plots, results
from edsft_jax.reporting.exhibits.exhibit import Exhibit

# Plots by task show this many tasks; their csv files have all.
MAX_TASKS = 30

NO_TASK = '(no task)'


def task_allocation(
  found: results.Results,
  pool: store.Prompts,
  selections: picks.Selections,
) -> Exhibit | None:
  """Prompts per task at the largest budget, next to the pool's share."""
  if pool.tasks is None or not selections:
    return None
  budget = found.budgets[-1]
  pool_counts = _count(pool.tasks)
  tasks = sorted(pool_counts, key=lambda task: -pool_counts[task])
  picked = {
    key: _count([row['task'] for row in rows[:budget]])
    for key, rows in selections.items()
  }
  rows = [
    (task, pool_counts[task], *key, counts.get(task, 0))
    for task in tasks
    for key, counts in picked.items()
  ]
  # The plot has a single row for all further tasks.
  shown, rest = tasks[:MAX_TASKS], tasks[MAX_TASKS:]
  groups = {task: [task] for task in shown}
  if rest:
    groups[f'{len(rest)} smaller tasks'] = rest
  shares = {}
  for strategy in found.strategies:
    counts = [c for (name, _), c in picked.items() if name == strategy]
    total = sum(sum(c.values()) for c in counts)
    if total:
      shares[strategy] = {
        group: 100
        * sum(c.get(task, 0) for c in counts for task in members)
        / total
        for group, members in groups.items()
      }
  of_pool = {
    group: 100 * sum(pool_counts[task] for task in members) / len(pool)
    for group, members in groups.items()
  }
  return Exhibit(
    name='task_allocation',
    caption=f'Share of each task among the {budget:,} prompts that a strategy '
    "bought, mean over seeds. A bar is the task's share of the pool: a mark to "
    'the right of its end means that the strategy bought more of the task than '
    'random would.',
    alt=f'Share of each task among the first {budget:,} picks: '
    + _listed(groups, {'pool': of_pool, **shares}, '{:.0f}%'),
    draw=functools.partial(
      plots.by_task,
      list(groups),
      shares,
      f'% of the {budget:,} prompts (mean over seeds)',
      bars=of_pool,
      bars_label='share of the pool',
    ),
    columns=('task', 'pool_prompts', 'strategy', 'seed', 'picked'),
    rows=rows,
  )


def _listed(
  tasks: Iterable[str],
  values: Mapping[str, Mapping[str, float]],
  number: str,
) -> str:
  """'copy: pool 12%, random 14%; sort: ...', in the order of the tasks."""
  return '; '.join(
    f'{task}: '
    + ', '.join(
      f'{name} {number.format(of_task[task])}'
      for name, of_task in values.items()
      if task in of_task
    )
    for task in tasks
  )


def _count(tasks: Sequence[str | None]) -> dict[str, int]:
  counts: dict[str, int] = {}
  for task in tasks:
    name = NO_TASK if task is None else task
    counts[name] = counts.get(name, 0) + 1
  return counts


def task_quality(found: results.Results, metric: str) -> Exhibit | None:
  """The metric by task at the largest evaluated budget; None without tasks."""
  evaluated = [
    budget
    for budget in found.budgets
    if any(found.at(strategy, budget) for strategy in found.strategies)
  ]
  if not evaluated:
    return None
  budget = evaluated[-1]
  lines = [
    *((s, budget) for s in found.strategies if found.at(s, budget)),
    *found.references(metric),
  ]
  about = found.metrics[metric]
  # The csv has all metrics of the evaluation task.
  columns = [k for k, m in found.metrics.items() if m.task == about.task]
  rows = [
    row for line in lines for row in _group_rows(found, *line, metric, columns)
  ]
  if not rows:
    return None
  sizes = {row[0]: row[1] for row in rows}
  means = _means_by_task(rows, 5 + columns.index(metric))
  tasks = sorted(sizes, key=lambda task: -sizes[task])
  hidden = len(tasks) - MAX_TASKS
  return Exhibit(
    name='task_quality',
    caption=f'{about.axis_label} of each task with {budget:,} answers, mean '
    'over seeds; tasks in order of their number of items. There are few items '
    'per task: these are hints, not findings.',
    alt=f'{about.label} of each task with {budget:,} answers: '
    + _listed(tasks[:MAX_TASKS], means, '{:.3f}'),
    draw=functools.partial(
      plots.by_task,
      tasks[:MAX_TASKS],
      {s: means[s] for s in found.strategies if s in means},
      f'{about.label} with {budget:,} answers (mean over seeds; '
      f'{about.direction})',
      references={
        name: means[name]
        for name, _ in found.references(metric)
        if name in means
      },
    ),
    columns=('task', 'num_prompts', 'strategy', 'budget', 'seed', *columns),
    rows=rows,
    note=f'{hidden} tasks with fewer items are only in the csv.'
    if hidden > 0
    else '',
  )


def _group_rows(
  found: results.Results,
  strategy: str,
  budget: int,
  metric: str,
  columns: Sequence[str],
) -> list[tuple[Any, ...]]:
  """Rows of task, size, strategy, budget, seed and metrics, per seed."""
  return [
    (
      task,
      size,
      strategy,
      budget,
      seed,
      *(
        evaluation.groups.get(name, {}).get(task, (None,))[0]
        for name in columns
      ),
    )
    for seed, evaluation in found.at(strategy, budget).items()
    for task, (_, size) in evaluation.groups.get(metric, {}).items()
  ]


def _means_by_task(
  rows: Sequence[tuple[Any, ...]], column: int
) -> dict[str, dict[str, float]]:
  """Strategy -> task -> mean of a column over seeds."""
  values: dict[str, dict[str, list[float]]] = {}
  for row in rows:
    task, strategy = row[0], row[2]
    of_task = values.setdefault(strategy, {}).setdefault(task, [])
    of_task.append(row[column])
  return {
    strategy: {task: sum(v) / len(v) for task, v in by_task.items()}
    for strategy, by_task in values.items()
  }
