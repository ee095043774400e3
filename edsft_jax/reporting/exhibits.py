"""The exhibits of the page: plots with their data."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from edsft_jax import store
from edsft_jax.reporting import comparison, plots, results, statistics, timing
from edsft_jax.strategies import registry

# Plots by task show this many tasks; their csv files have all.
MAX_TASKS = 30

NO_TASK = '(no task)'

# A kernel width is marked if its first pick covers more than this share.
MOST_OF_THE_POOL = 0.5


@dataclasses.dataclass(frozen=True)
class Exhibit:
  """A plot with its data.

  Attributes:
    name: name of the PNG and csv files.
    alt: text for readers who cannot see the plot.
    png: the image.
    columns: header of the csv.
    rows: rows of the csv; None is an empty field.
    note: text to print below the plot.
  """

  name: str
  alt: str
  png: bytes
  columns: tuple[str, ...]
  rows: list[tuple[Any, ...]]
  note: str = ''


def label_efficiency(
  found: results.Results,
  metric: str,
  compared: comparison.Comparisons,
  confidence: float,
) -> Exhibit | None:
  """Quality against answers bought; None if no strategy was evaluated."""
  dots = {
    (strategy, budget): values
    for strategy in found.strategies
    for budget in found.budgets
    if (values := found.values(strategy, budget, metric))
  }
  if not dots:
    return None
  lines = found.references(metric)
  intervals = {
    key: interval
    for key in dots
    if (interval := compared.interval(*key, confidence))
  } | {line: found.reference(*line, metric) for line in lines}
  rows = []
  for (strategy, budget), interval in intervals.items():
    for seed, evaluation in found.at(strategy, budget).items():
      if metric in evaluation.metrics:
        value = evaluation.metrics[metric]
        rows.append((strategy, budget, seed, value, *_ends(interval)))
  about = found.metrics[metric]
  means = '; '.join(
    f'{strategy} at {budget}: {intervals[strategy, budget].mean:.3f}'
    for strategy, budget in dots
  )
  return Exhibit(
    name=f'label_efficiency_{metric}',
    alt=f'{about.label} against answers bought. Means: {means}.',
    png=plots.label_efficiency(
      f'{about.label} ({about.direction})',
      found.budgets,
      dots,
      {key: intervals[key] for key in dots},
      {name: intervals[name, budget] for name, budget in lines},
    ),
    columns=('strategy', 'budget', 'seed', metric, 'mean', 'low', 'high'),
    rows=rows,
  )


def _ends(
  interval: statistics.Interval,
) -> tuple[float, float | None, float | None]:
  return interval.mean, interval.low, interval.high


def gains_by_width(curves: Mapping[str, Any]) -> Exhibit:
  """The gains plot, from gains_curves.json."""
  widths = curves['widths']
  rows = [
    (width, position, gain, flaw)
    for width, curve, flaw in zip(
      widths, curves['curves'], curves['degenerate'], strict=True
    )
    for position, gain in enumerate(curve, start=1)
  ]
  shares = [curve[0] / curves['num_prompts'] for curve in curves['curves']]
  remarks = [
    flaw or (f'first pick {share:.0%}' if share > MOST_OF_THE_POOL else '')
    for flaw, share in zip(curves['degenerate'], shares, strict=True)
  ]
  note = _about_width(curves, shares)
  listed = ', '.join(
    f'{width:g} ({remark or "decays"})'
    for width, remark in zip(widths, remarks, strict=True)
  )
  return Exhibit(
    name='gains_by_width',
    alt='Marginal gain of each greedy pick of facility location against its '
    f'position, one line per kernel width: {listed}. {note}',
    png=plots.gains_by_width(
      widths, curves['curves'], remarks, curves['width']
    ),
    columns=('width', 'position', 'gain', 'degenerate'),
    rows=rows,
    note=note,
  )


def _about_width(curves: Mapping[str, Any], shares: Sequence[float]) -> str:
  """The width that was used, and what its first and last picks gain."""
  used, suggested = curves['width'], curves['suggested']
  of_prompts = f'{curves["num_prompts"]:,} prompts'
  picks = f'{curves["budget"]:,} picks'
  note = f'Width {used:g} was used'
  if used == suggested:
    note += ', as suggested by the curves.'
  else:
    note += f'; the curves suggest {suggested:g}.'
  note += f' The curves were computed on {of_prompts} for {picks}.'
  if used not in curves['widths']:
    return f'{note} It is not among the widths tried: no line is highlighted.'
  where = curves['widths'].index(used)
  note += (
    f' At this width, the first pick covers {shares[where]:.0%} of the prompts '
    f'and the last gains {curves["curves"][where][-1]:.2f}.'
  )
  if shares[where] > MOST_OF_THE_POOL:
    note += (
      ' A single prompt covers most of the pool: the width is large for this '
      'pool, and other prompts differ little in what they add.'
    )
  return note


def selection_gains(
  selections: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
) -> Exhibit | None:
  """Gains of the strategies that use features; None if there are none."""
  chosen = {
    key: rows
    for key, rows in selections.items()
    if 'features' in registry.STRATEGIES[key[0]].reads
    and any(row['gain'] is not None for row in rows)
  }
  if not chosen:
    return None
  gains = {key: [row['gain'] for row in rows] for key, rows in chosen.items()}
  names = dict.fromkeys(strategy for strategy, _ in chosen)
  return Exhibit(
    name='selection_gains',
    alt='Gain of each pick against its position for ' + ', '.join(names) + '.',
    png=plots.selection_gains(gains),
    columns=('strategy', 'seed', 'position', 'id', 'gain'),
    rows=[
      (*key, position, row['id'], row['gain'])
      for key, rows in chosen.items()
      for position, row in enumerate(rows, start=1)
    ],
  )


def task_allocation(
  found: results.Results,
  pool: store.Prompts,
  selections: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
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
  return Exhibit(
    name='task_allocation',
    alt=f'Share of each task among the first {budget} picks of each strategy, '
    'next to its share of the pool.',
    png=plots.by_task(
      list(groups),
      shares,
      f'% of the {budget:,} prompts (mean over seeds)',
      bars={
        group: 100 * sum(pool_counts[task] for task in members) / len(pool)
        for group, members in groups.items()
      },
      bars_label='share of the pool',
    ),
    columns=('task', 'pool_prompts', 'strategy', 'seed', 'picked'),
    rows=rows,
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
    alt=f'{about.label} of each task with {budget} answers, by strategy.',
    png=plots.by_task(
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


def stage_seconds(timings: timing.Timing) -> Exhibit | None:
  """Wall seconds by stage; None if none were recorded."""
  if not timings.total:
    return None
  listed = ', '.join(
    f'{stage} {seconds:.1f} s' for stage, seconds in timings.seconds.items()
  )
  return Exhibit(
    name='stage_seconds',
    alt=f'Wall seconds of each stage: {listed}.',
    png=plots.stage_seconds(timings.seconds, timing.CHOOSING),
    columns=('stage', 'seconds'),
    rows=list(timings.seconds.items()),
  )
