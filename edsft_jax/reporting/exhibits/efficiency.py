"""Quality against what it cost, and strategies against random."""

import functools

from edsft_jax.reporting import (
  comparison,
  costs,
  plots,
  results,
  statistics,
  wording,
)
from edsft_jax.reporting.exhibits.exhibit import Exhibit
from edsft_jax.strategies.registry import LENGTH_MATCHED, RANDOM


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
    caption=f'{about.axis_label} against the number of answers bought. First '
    'panel: means over seeds. Others: a strategy and random (grey), with the '
    f'{confidence:.0%} intervals of the means by the variance over seeds '
    'pooled over strategies; rings are seeds.'
    + (' Lines: the full pool, and no finetuning.' if lines else ''),
    alt=f'{about.label} against answers bought. Means: {means}.',
    draw=functools.partial(
      plots.label_efficiency,
      about.axis_label,
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


def cost_efficiency(
  found: results.Results,
  metric: str,
  compared: comparison.Comparisons,
  spent: costs.Costs,
) -> Exhibit | None:
  """Quality against the other known costs: tokens, money, seconds."""
  axes = [axis for axis in spent.axes() if axis != costs.ANSWERS]
  places = [
    (strategy, budget, level.means[strategy].mean().item())
    for strategy in found.strategies
    for budget, level in compared.levels.items()
    if strategy in level.means
  ]
  if not axes or not places:
    return None
  rows = [
    (*place, *(spent.typical(*place[:2], axis) for axis in axes))
    for place in places
  ]
  panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
  for column, axis in enumerate(axes, start=3):
    lines = panels.setdefault(costs.LABELS[axis], {})
    for row in rows:
      lines.setdefault(row[0], []).append((row[column], row[2]))
  about = found.metrics[metric]
  listed = '; '.join(
    f'{row[0]} with {row[1]:,} answers: '
    + ', '.join(
      f'{x:,.0f} {axis}' for axis, x in zip(axes, row[3:], strict=True)
    )
    for row in rows
  )
  return Exhibit(
    name=f'cost_efficiency_{metric}',
    caption=f'{about.axis_label} against what the answers and the machine '
    'cost: means over seeds, but medians of seconds, since the first cell '
    'includes compilation.',
    alt=f'{about.label} against costs. {listed}.',
    draw=functools.partial(plots.cost_efficiency, about.axis_label, panels),
    columns=('strategy', 'budget', metric, *axes),
    rows=rows,
  )


def forest(
  about: results.Metric,
  compared: comparison.Comparisons,
  confidence: float,
) -> Exhibit | None:
  """Whole curves minus random; None if no difference is known."""
  differences = [
    (one.strategy, RANDOM, one)
    for one in compared.curves.values()
    if one.difference is not None
  ]
  if (control := compared.control) is not None and control.difference:
    differences.append(
      (f'{control.strategy} − control', LENGTH_MATCHED, control)
    )
  if not differences:
    return None
  rows = [_forest_row(label, one) for label, _, one in differences]
  return Exhibit(
    name='forest',
    caption=f'{about.label} of each strategy minus that of random, averaged '
    f'over all budgets, with {confidence:.0%} intervals of single comparisons; '
    "p-values have Holm's correction over strategies."
    + (
      f' The control is a single test against {LENGTH_MATCHED}.'
      if control is not None
      else ''
    ),
    alt=f'{about.label} minus that of random: '
    + '; '.join(f'{row.label} {row.text}' for row in rows)
    + '.',
    draw=functools.partial(
      plots.forest,
      rows,
      f'{about.label}: difference from random',
      about.larger_is_better,
    ),
    columns=('strategy', 'minus', 'difference', 'low', 'high', 'p', 'verdict'),
    rows=[
      (
        *(one.strategy, other, row.mean, row.low, row.high, one.p_value),
        one.verdict.value.replace(RANDOM, other),
      )
      for (_, other, one), row in zip(differences, rows, strict=True)
    ],
  )


def _forest_row(label: str, one: comparison.Comparison) -> plots.Row:
  difference = one.difference
  assert difference is not None
  mean = float(difference.mean)
  text = wording.signed(mean)
  if one.p_value is None:
    return plots.Row(
      label, one.strategy, mean, None, None, f'{text}, not tested'
    )
  low, high = float(difference.low), float(difference.high)
  return plots.Row(
    *(label, one.strategy, mean, low, high),
    f'{text} ({wording.signed(low)} to {wording.signed(high)}), '
    f'p {wording.probability(one.p_value)}',
  )
