"""The plots of the report: plain numbers in, matplotlib figures out.

matplotlib is imported where a figure is made: `--help` and a rerun that finds
nothing to do shall not wait for it. Figures are made without pyplot, so there
is no global state and no display.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import math
from typing import Any

from edsft_jax import study
from edsft_jax.reporting import statistics
from edsft_jax.strategies.registry import STRATEGIES

INK = '#1f2430'
MUTED = '#6b7280'
FAINT = '#c9ced6'
ACCENT = '#0072b2'

REFERENCES = {
  study.FULL_POOL: ('#1f2430', (0, (6, 2)), 'full pool'),
  study.NO_FINETUNING: ('#1f2430', (0, (1, 2)), 'no finetuning'),
}

# Inches; the pixels of the PNG are this times savefig.dpi.
_WIDTH = 9.4

_STYLE = {
  'font.size': 9.5,
  'text.color': INK,
  # Task names may hold dollar signs, which are not formulas.
  'text.parse_math': False,
  'axes.edgecolor': '#9aa1ac',
  'axes.labelcolor': INK,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.titlepad': 10,
  'figure.constrained_layout.h_pad': 0.1,
  'figure.constrained_layout.w_pad': 0.1,
  'grid.color': '#eceef2',
  'xtick.color': '#4b5563',
  'ytick.color': '#4b5563',
  'xtick.major.size': 3,
  'ytick.major.size': 0,
  'lines.linewidth': 1.8,
  'savefig.dpi': 180,
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
  import warnings

  import matplotlib

  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # A script that the font lacks shows as boxes; the tables have the text.
    warnings.filterwarnings('ignore', message='Glyph .* missing from')
    yield


def _figure(width: float, height: float) -> Any:
  from matplotlib import figure

  return figure.Figure(figsize=(width, height), layout='constrained')


def _png(figure: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', bbox_inches='tight', pad_inches=0.08)
  return buffer.getvalue()


def _plain_log_ticks(axis: Any) -> None:
  from matplotlib import ticker

  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  axis.set_minor_formatter(ticker.NullFormatter())


def spread(places: Sequence[float], gap: float) -> list[float]:
  """Moves labels apart to at least `gap`, keeping their order and centre."""
  order = sorted(range(len(places)), key=lambda i: places[i])
  blocks: list[tuple[float, list[int]]] = []
  for i in order:
    blocks.append((places[i], [i]))
    while len(blocks) > 1:
      (low, below), (high, above) = blocks[-2:]
      if high - low >= gap * (len(below) + len(above)) / 2:
        break
      members = below + above
      centre = sum(places[j] for j in members) / len(members)
      blocks[-2:] = [(centre, members)]
  moved = list(places)
  for centre, members in blocks:
    for place, i in enumerate(members):
      moved[i] = centre + (place - (len(members) - 1) / 2) * gap
  return moved


def _end_labels(
  axes: Any, labels: Sequence[tuple[float, str, str]], weight: str = 'bold'
) -> None:
  """Writes (y in data, text, colour) at the right edge, moved apart."""
  to_axes = axes.transData + axes.transAxes.inverted()
  x = axes.get_xlim()[1]
  places = [to_axes.transform((x, y))[1] for y, _, _ in labels]
  height = axes.figure.get_size_inches()[1] * axes.get_position().height
  moved = spread(places, 0.16 / height)
  for (_, text, colour), y in zip(labels, moved, strict=True):
    axes.text(
      1.015,
      y,
      text,
      transform=axes.transAxes,
      color=colour,
      va='center',
      fontsize=8.5,
      fontweight=weight,
    )


# Label efficiency.


def label_efficiency(
  label: str,
  budgets: Sequence[int],
  dots: Mapping[tuple[str, int], Sequence[float]],
  intervals: Mapping[tuple[str, int], statistics.Interval],
  references: Mapping[str, statistics.Interval],
) -> bytes:
  """Quality against answers bought; the first panel shows every mean.

  Then one panel for each strategy, with its seeds and interval before those of
  random. With one strategy, its panel is the only one.

  Args:
    label: the metric, with its direction.
    budgets: ascending.
    dots: (strategy, budget) -> one value a seed.
    intervals: (strategy, budget) -> mean and interval over seeds.
    references: full_pool and no_finetuning, where they exist.
  """
  strategies = list(dict.fromkeys(strategy for strategy, _ in dots))
  with_random = 'random' in strategies
  others = [s for s in strategies if s != 'random'] or strategies
  panels = [None, *others] if len(strategies) > 1 else others
  num_columns = min(len(panels), 2 if len(panels) <= 4 else 3)
  num_rows = math.ceil(len(panels) / num_columns)
  limits = _limits(dots, intervals, references)
  with _style():
    # The page shows each plot at the same width: so the type keeps its size.
    figure = _figure(_WIDTH, 0.8 + 3.0 * num_rows)
    grid = figure.subplots(
      num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    ).ravel()
    for unused in grid[len(panels) :]:
      unused.remove()
    for i, (axes, strategy) in enumerate(zip(grid, panels, strict=False)):
      if strategy is None:
        for name in strategies:
          _curve(axes, name, budgets, {}, intervals)
        axes.set_title('All strategies: means over seeds', color=INK)
      else:
        if with_random and strategy != 'random':
          _curve(axes, 'random', budgets, dots, intervals)
        _curve(axes, strategy, budgets, dots, intervals)
        axes.set_title(strategy, color=STRATEGIES[strategy].colour)
      _budget_axis(axes, budgets)
      axes.set_ylim(*limits)
      _reference_lines(axes, references, limits)
      if i % num_columns == 0:
        axes.set_ylabel(label)
      if i >= len(panels) - num_columns:
        axes.set_xlabel('answers bought')
        axes.tick_params(labelbottom=True)
    if panels[0] is None:
      figure.legend(
        *_legend(strategies),
        loc='outside upper left',
        ncols=4,
        frameon=False,
        fontsize=8.5,
      )
    return _png(figure)


def _legend(strategies: Sequence[str]) -> tuple[list[Any], list[str]]:
  from matplotlib import lines

  handles = [
    lines.Line2D(
      [],
      [],
      color=STRATEGIES[s].colour,
      marker=STRATEGIES[s].marker,
      markersize=5,
    )
    for s in strategies
  ]
  return handles, list(strategies)


def _limits(
  dots: Mapping[tuple[str, int], Sequence[float]],
  intervals: Mapping[tuple[str, int], statistics.Interval],
  references: Mapping[str, statistics.Interval],
) -> tuple[float, float]:
  """A y range that shows every dot; what would squash the dots is cut.

  Intervals of few seeds can be many times wider than the dots, and a line can
  be far away: both may take as much room again as the dots, no more.
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
  # A line beyond the plot is written at its edge, clear of the dots.
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
  """Mean line; with `dots` the seeds and the interval band too."""
  colour, marker = STRATEGIES[strategy].colour, STRATEGIES[strategy].marker
  present = [b for b in budgets if (strategy, b) in intervals]
  found = [intervals[strategy, b] for b in present]
  axes.plot(
    present,
    [interval.mean for interval in found],
    color=colour,
    marker=marker,
    markersize=5,
    markeredgecolor='white',
    markeredgewidth=0.6,
    zorder=3,
  )
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
      markersize=4.2,
      markerfacecolor='white',
      markeredgecolor=colour,
      markeredgewidth=1.1,
      zorder=4,
    )


def _budget_axis(axes: Any, budgets: Sequence[int]) -> None:
  reach = (budgets[-1] - budgets[0]) or budgets[0]
  axes.set_xlim(budgets[0] - 0.08 * reach, budgets[-1] + 0.08 * reach)
  ticks: list[int] = []
  for budget in budgets:
    if not ticks or budget - ticks[-1] >= 0.08 * reach:
      ticks.append(budget)
  axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])


def _reference_lines(
  axes: Any,
  references: Mapping[str, statistics.Interval],
  limits: tuple[float, float],
) -> None:
  low, high = limits
  inside = {'fontsize': 8, 'color': INK, 'va': 'bottom', 'ha': 'left'}
  for name, reference in references.items():
    colour, dashes, label = REFERENCES[name]
    text = f'{label} {reference.mean:.3f}'
    if low < reference.mean < high:
      axes.axhline(reference.mean, color=colour, linestyle=dashes, linewidth=1)
      upper = (reference.mean - low) / (high - low) > 0.92
      axes.annotate(
        text,
        (0.012, reference.mean),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -2 if upper else 2),
        textcoords='offset points',
        **{**inside, 'va': 'top' if upper else 'bottom'},
      )
    else:
      above = reference.mean >= high
      axes.annotate(
        f'{"↑" if above else "↓"} {text} (beyond the plot)',
        (0.012, 0.985 if above else 0.015),
        xycoords='axes fraction',
        **{**inside, 'va': 'top' if above else 'bottom'},
      )


# Gains.


def gains_by_width(
  widths: Sequence[float],
  curves: Sequence[Sequence[float]],
  degenerate: Sequence[str | None],
  used: float,
) -> bytes:
  """Marginal gain of each greedy pick, one line a width, the used one blue."""
  with _style():
    figure = _figure(_WIDTH, 4.6)
    axes = figure.subplots()
    top = max(max(curve) for curve in curves) or 1.0
    floor = top * 1e-5
    labels = []
    for width, curve, flaw in zip(widths, curves, degenerate, strict=True):
      chosen = width == used
      # A gain of zero has no place on a logarithmic axis.
      heights = [gain if gain > 0 else math.nan for gain in curve]
      colour = ACCENT if chosen else ('#a3a9b4' if flaw is None else '#b9785a')
      axes.plot(
        range(1, len(curve) + 1),
        heights,
        color=colour,
        linewidth=2.8 if chosen else 1.2,
        linestyle='-' if flaw is None else (0, (3, 1.5)),
        zorder=3 if chosen else 2,
      )
      note = f' {flaw}' if flaw else ''
      labels.append(
        (
          max(curve[-1], floor),
          f'{width:g}{note}{" (used)" if chosen else ""}',
          colour,
        )
      )
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlim(1, max(len(curve) for curve in curves))
    axes.set_ylim(floor, top * 1.6)
    _plain_log_ticks(axes.xaxis)
    _plain_log_ticks(axes.yaxis)
    axes.set_xlabel('position of the pick')
    axes.set_ylabel('marginal gain')
    axes.set_title('Facility location: gain of each pick, by RBF width')
    figure.draw_without_rendering()
    _end_labels(axes, labels)
    return _png(figure)


def selection_gains(
  gains: Mapping[tuple[str, int], Sequence[float | None]],
) -> bytes:
  """The gain column of the selections that have one, a panel a strategy."""
  strategies = list(dict.fromkeys(strategy for strategy, _ in gains))
  units = {'k_center': 'distance to the chosen set'}
  with _style():
    figure = _figure(_WIDTH, 3.6)
    panels = figure.subplots(1, len(strategies), squeeze=False)[0]
    for axes, strategy in zip(panels, strategies, strict=True):
      drawn = []
      for (name, _), column in gains.items():
        if name != strategy or column in drawn:
          continue
        drawn.append(column)
        axes.plot(
          range(1, len(column) + 1),
          [math.nan if gain is None else gain for gain in column],
          color=STRATEGIES[strategy].colour,
          linewidth=1.6,
        )
      axes.set_title(strategy, color=STRATEGIES[strategy].colour)
      axes.set_xlabel('position of the pick')
      axes.set_ylabel(units.get(strategy, 'marginal gain'))
      positive = all(g is None or g > 0 for column in drawn for g in column)
      if strategy != 'k_center' and positive:
        axes.set_yscale('log')
        _plain_log_ticks(axes.yaxis)
      else:
        axes.set_ylim(bottom=0)
    return _png(figure)


# Tasks.


def by_task(
  tasks: Sequence[str],
  values: Mapping[str, Mapping[str, float]],
  xlabel: str,
  bars: Mapping[str, float] | None = None,
  bars_label: str = '',
  references: Mapping[str, Mapping[str, float]] | None = None,
) -> bytes:
  """One row a task, one mark a strategy.

  Args:
    tasks: rows, top to bottom.
    values: strategy -> task -> value.
    xlabel: what the values are.
    bars: task -> value of a grey bar behind the marks.
    bars_label: what the bars are.
    references: full_pool or no_finetuning -> task -> value, as thin ticks.
  """
  names = [t if len(t) <= 34 else f'{t[:33]}…' for t in tasks]
  with _style():
    figure = _figure(_WIDTH, 1.2 + 0.36 * len(tasks))
    axes = figure.subplots()
    places = range(len(tasks))
    if bars is not None:
      axes.barh(
        places,
        [bars[task] for task in tasks],
        height=0.72,
        color='#dfe3e9',
        label=bars_label,
      )
    for name, row in (references or {}).items():
      present = [i for i in places if tasks[i] in row]
      axes.scatter(
        [row[tasks[i]] for i in present],
        present,
        marker='|' if name == study.FULL_POOL else 'x',
        s=140 if name == study.FULL_POOL else 26,
        color=INK,
        linewidth=1.3,
        label=REFERENCES[name][2],
        zorder=2,
      )
    for k, (strategy, row) in enumerate(values.items()):
      colour, marker = STRATEGIES[strategy].colour, STRATEGIES[strategy].marker
      present = [i for i in places if tasks[i] in row]
      # Marks of one row lie on slightly different heights: none hides another.
      shift = (k - (len(values) - 1) / 2) * 0.5 / max(len(values) - 1, 1)
      axes.scatter(
        [row[tasks[i]] for i in present],
        [i + shift for i in present],
        color=colour,
        marker=marker,
        s=30,
        edgecolor='white',
        linewidth=0.5,
        label=strategy,
        zorder=3,
      )
    axes.set_yticks(list(places), names)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(xlabel)
    axes.grid(axis='y', color='#f4f5f7')
    num_entries = len(values) + len(references or {}) + (bars is not None)
    figure.legend(
      loc='outside upper left',
      ncols=num_entries if num_entries <= 6 else 4,
      frameon=False,
      fontsize=8.5,
    )
    return _png(figure)


# Time.


def stage_seconds(
  seconds: Mapping[str, float], selection_stages: Sequence[str]
) -> bytes:
  """Wall seconds of each stage; those of choosing prompts in blue."""
  with _style():
    figure = _figure(_WIDTH, 0.9 + 0.34 * len(seconds))
    axes = figure.subplots()
    bars = axes.barh(
      list(seconds),
      list(seconds.values()),
      height=0.66,
      color=[ACCENT if name in selection_stages else FAINT for name in seconds],
    )
    total = sum(seconds.values()) or 1.0
    axes.bar_label(
      bars,
      [f'{value:,.1f} s  ({value / total:.1%})' for value in seconds.values()],
      padding=5,
      fontsize=8.5,
    )
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel('wall seconds')
    axes.grid(axis='y', visible=False)
    return _png(figure)
