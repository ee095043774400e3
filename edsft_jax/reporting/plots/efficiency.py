"""Plots quality against the number of answers bought."""

from collections.abc import Mapping, Sequence
from typing import Any

from edsft_jax.reporting import statistics
from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies.registry import RANDOM, STRATEGIES

# Height of a line of text, as a share of a panel.
_LABEL_GAP = 0.1


def label_efficiency(
  label: str,
  budgets: Sequence[int],
  dots: Mapping[tuple[str, int], Sequence[float]],
  intervals: Mapping[tuple[str, int], statistics.Interval],
  references: Mapping[str, statistics.Interval],
) -> Any:
  """Quality against answers bought; the first panel shows all means.

  Each further panel has one strategy's seeds and interval, in front of those of
  random. A single strategy has a single panel.

  Args:
    label: the metric, with its direction.
    budgets: ascending budgets.
    dots: (strategy, budget) -> one value per seed.
    intervals: (strategy, budget) -> mean and interval over seeds.
    references: full_pool and no_finetuning, where they exist.
  """
  strategies = list(dict.fromkeys(strategy for strategy, _ in dots))
  base = [RANDOM] if RANDOM in strategies else []
  others = [s for s in strategies if s != RANDOM] or strategies
  panels = [None, *others] if len(strategies) > 1 else others
  num_columns = min(len(panels), 2 if len(panels) <= 4 else 3)
  y_range = limits(dots, intervals, references)
  figure, grid = style.grid(len(panels), num_columns, 2.0, margin=0.7)
  for i, (axes, strategy) in enumerate(zip(grid, panels, strict=True)):
    if strategy is None:
      for name in strategies:
        _curve(axes, name, budgets, {}, intervals)
      axes.set_title('All: means over seeds', color=palette.INK)
    else:
      for name in dict.fromkeys([*base, strategy]):
        _curve(axes, name, budgets, dots, intervals)
      axes.set_title(strategy, color=STRATEGIES[strategy].colour)
    style.budget_axis(axes, budgets)
    axes.set_ylim(*y_range)
    reference_lines(axes, references, y_range)
    if i % num_columns == 0:
      axes.set_ylabel(label)
    if i >= len(panels) - num_columns:
      axes.set_xlabel('answers bought')
      axes.tick_params(labelbottom=True)
  if panels[0] is None:
    style.legend(figure, strategies)
  return figure


def limits(
  dots: Mapping[tuple[str, int], Sequence[float]],
  intervals: Mapping[tuple[str, int], statistics.Interval],
  references: Mapping[str, statistics.Interval],
) -> tuple[float, float]:
  """A y range that shows every dot without squashing them.

  Intervals of few seeds can be many times wider than the range of the dots, and
  reference lines far away. They may extend the range by at most its own size on
  either side.
  """
  values = [value for row in dots.values() for value in row]
  low, high = min(values), max(values)
  room = (high - low) or abs(high) or 1.0
  ends = [
    end
    for interval in intervals.values()
    for end in (interval.low, interval.high)
    if end is not None
  ]
  ends += [
    reference.mean
    for reference in references.values()
    if low - room <= reference.mean <= high + room
  ]
  bottom = max(low - room, min([low, *ends]))
  top = min(high + room, max([high, *ends]))
  margin = 0.06 * (top - bottom) or 0.06 * room
  means = [reference.mean for reference in references.values()]
  # A line outside the plot is labelled at its edge, clear of the dots.
  below = 0.1 * (top - bottom) if min(means, default=bottom) < bottom else 0.0
  above = 0.1 * (top - bottom) if max(means, default=top) > top else 0.0
  return bottom - margin - below, top + margin + above


def _curve(
  axes: Any,
  strategy: str,
  budgets: Sequence[int],
  dots: Mapping[tuple[str, int], Sequence[float]],
  intervals: Mapping[tuple[str, int], statistics.Interval],
) -> None:
  """Draws the means; with `dots`, also the seeds and the interval band."""
  colour = STRATEGIES[strategy].colour
  present = [b for b in budgets if (strategy, b) in intervals]
  found = [intervals[strategy, b] for b in present]
  style.curve(axes, strategy, present, [interval.mean for interval in found])
  banded = [
    (b, interval.low, interval.high)
    for b, interval in zip(present, found, strict=True)
    if dots and interval.low is not None
  ]
  if len(banded) > 1:
    x, low, high = zip(*banded, strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
  elif banded:
    axes.vlines(*banded[0], color=colour, alpha=0.35, linewidth=5)
  for b in present:
    row = dots.get((strategy, b), ())
    axes.plot(
      [b] * len(row),
      row,
      linestyle='none',
      marker='o',
      markersize=3.2,
      markerfacecolor=palette.PAPER,
      markeredgecolor=colour,
      markeredgewidth=0.9,
      zorder=4,
    )


def reference_lines(
  axes: Any,
  references: Mapping[str, statistics.Interval],
  limits: tuple[float, float],
) -> None:
  """Draws a labelled line per reference; labels do not overlap.

  Args:
    axes: a panel.
    references: values by name.
    limits: of the panel's y axis.
  """
  low, high = limits
  texts, places = [], []
  for name, reference in references.items():
    line = style.REFERENCES[name]
    text = f'{line.label} {reference.mean:.3f}'
    place = (reference.mean - low) / (high - low)
    if 0 < place < 1:
      axes.axhline(
        reference.mean,
        color=palette.INK,
        linestyle=(0, line.dashes),
        linewidth=1,
      )
      # Above the line, unless the plot ends there.
      place += _LABEL_GAP / 2 if place < 0.92 else -_LABEL_GAP / 2
    else:
      text = f'{"↑" if place >= 1 else "↓"} {text} (beyond the plot)'
    texts.append(text)
    half = _LABEL_GAP / 2
    places.append(min(max(place, half), 1 - half))
  spread = style.spread(places, _LABEL_GAP)
  # Those moved beyond the panel come back into it.
  lowest = min(spread, default=0.5) - _LABEL_GAP / 2
  highest = max(spread, default=0.5) + _LABEL_GAP / 2
  shift = max(-lowest, 0.0) - max(highest - 1, 0.0)
  for text, place in zip(texts, spread, strict=True):
    axes.text(
      0.012,
      place + shift,
      text,
      transform=axes.transAxes,
      fontsize=7,
      color=palette.INK,
      va='center',
      ha='left',
    )


def cost_efficiency(
  label: str,
  panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> Any:
  """Quality against several kinds of cost: a panel each, a line per strategy.

  Args:
    label: the metric, with its direction.
    panels: label of the cost -> strategy -> (cost, mean) by budget.
  """
  figure = style.figure(2.8)
  row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
  strategies = dict.fromkeys(s for lines in panels.values() for s in lines)
  for axes, (title, lines) in zip(row, panels.items(), strict=True):
    for strategy, points in lines.items():
      style.curve(axes, strategy, *zip(*points, strict=True))
    axes.set_xscale('log')
    style.some_log_ticks(axes.xaxis)
    axes.set_xlabel(title)
  row[0].set_ylabel(label)
  style.legend(figure, list(strategies))
  return figure
