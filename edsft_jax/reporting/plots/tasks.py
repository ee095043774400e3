"""Plots values by task: shares of the picks, and quality."""

from collections.abc import Mapping, Sequence
from typing import Any

from edsft_jax import study
from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies.registry import STRATEGIES


def by_task(
  tasks: Sequence[str],
  values: Mapping[str, Mapping[str, float]],
  xlabel: str,
  bars: Mapping[str, float] | None = None,
  bars_label: str = '',
  references: Mapping[str, Mapping[str, float]] | None = None,
) -> Any:
  """One row per task, one mark per strategy.

  Args:
    tasks: the rows, top to bottom.
    values: strategy -> task -> value.
    xlabel: label of the values.
    bars: task -> value of a grey bar behind the marks.
    bars_label: label of the bars.
    references: full_pool or no_finetuning -> task -> value, as thin marks.
  """
  names = [t if len(t) <= 34 else f'{t[:33]}…' for t in tasks]
  figure = style.figure(0.8 + 0.26 * len(tasks))
  axes = figure.subplots()
  places = range(len(tasks))
  if bars is not None:
    axes.barh(
      places,
      [bars[task] for task in tasks],
      height=0.72,
      color=palette.BAR,
      label=bars_label,
    )
  _reference_ticks(axes, tasks, references or {})
  _marks(axes, tasks, values)
  axes.set_yticks(list(places), names)
  axes.set_ylim(len(tasks) - 0.4, -0.6)
  axes.set_xlim(left=0)
  axes.set_xlabel(xlabel)
  axes.grid(axis='y', color=palette.GRID)
  figure.legend(
    loc='outside upper left',
    ncols=4,
  )
  return figure


def _reference_ticks(
  axes: Any,
  tasks: Sequence[str],
  references: Mapping[str, Mapping[str, float]],
) -> None:
  for name, row in references.items():
    present = [i for i, task in enumerate(tasks) if task in row]
    axes.scatter(
      [row[tasks[i]] for i in present],
      present,
      marker='|' if name == study.FULL_POOL else 'x',
      s=90 if name == study.FULL_POOL else 18,
      color=palette.INK,
      linewidth=1.0,
      label=style.REFERENCES[name].label,
      zorder=2,
    )


def _marks(
  axes: Any, tasks: Sequence[str], values: Mapping[str, Mapping[str, float]]
) -> None:
  for k, (strategy, row) in enumerate(values.items()):
    present = [i for i, task in enumerate(tasks) if task in row]
    # Marks in a row are shifted vertically, so that none hides another.
    shift = (k - (len(values) - 1) / 2) * 0.5 / max(len(values) - 1, 1)
    axes.scatter(
      [row[tasks[i]] for i in present],
      [i + shift for i in present],
      color=STRATEGIES[strategy].colour,
      marker=STRATEGIES[strategy].marker,
      s=18,
      edgecolor=palette.PAPER,
      linewidth=0.5,
      label=strategy,
      zorder=3,
    )
