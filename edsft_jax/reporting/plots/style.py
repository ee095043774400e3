"""Common style of the plots: figures and labels.

matplotlib is imported when a figure is made, so that a rerun with nothing to do
does not wait for it. Figures do not use pyplot, which has global state and may
need a display.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import io
import math
import re
from typing import Any

from edsft_jax import study
from edsft_jax.reporting.plots import palette
from edsft_jax.strategies.registry import STRATEGIES


@dataclasses.dataclass(frozen=True)
class Reference:
  """How the line of a reference is drawn.

  Attributes:
    label: its name on plots and pages.
    dashes: lengths of dashes and gaps, in points.
  """

  label: str
  dashes: tuple[float, float]


REFERENCES = {
  study.FULL_POOL: Reference('full pool', (6, 2)),
  study.NO_FINETUNING: Reference('no finetuning', (1, 2)),
}

# Width of plots in inches: the text width of a page with two columns. The page
# shows all plots at the same width, so their text has the same size.
_WIDTH = 6.75

_STYLE: Any = {
  'font.size': 8,
  'text.color': palette.INK,
  # Dollar signs in task names must not start formulas.
  'text.parse_math': False,
  'axes.edgecolor': palette.SPINE,
  'axes.labelcolor': palette.INK,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.linewidth': 0.7,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 8.5,
  'axes.titleweight': 'bold',
  'axes.titlepad': 7,
  'figure.constrained_layout.h_pad': 0.06,
  'figure.constrained_layout.w_pad': 0.06,
  'grid.color': palette.GRID,
  'grid.linewidth': 0.7,
  'legend.fontsize': 7.5,
  'legend.frameon': False,
  'xtick.color': palette.TICK,
  'ytick.color': palette.TICK,
  'xtick.labelsize': 7.5,
  'ytick.labelsize': 7.5,
  'xtick.major.size': 2.5,
  'xtick.minor.size': 0,
  'ytick.major.size': 0,
  'ytick.minor.size': 0,
  'lines.linewidth': 1.4,
  'savefig.dpi': 200,
  # Text stays text, which readers can search and publishers can set.
  'svg.fonttype': 'none',
  # Type 42 (TrueType): publishers refuse Type 3.
  'pdf.fonttype': 42,
}


@dataclasses.dataclass(frozen=True)
class Images:
  """A figure in the formats of its files.

  Attributes:
    svg: for the page, and for editing.
    pdf: for papers.
    png: for slides.
  """

  svg: str
  pdf: bytes
  png: bytes


def render(draw: Callable[[], Any], name: str, caption: str) -> Images:
  """Makes a figure and renders it; the same figure gives the same bytes.

  Args:
    draw: makes the figure.
    name: its title in the files' metadata.
    caption: its description there.
  """
  with _use():
    import matplotlib

    matplotlib.rcParams['svg.hashsalt'] = name
    made = draw()
    # All formats have the same layout, which takes most of the time.
    made.draw_without_rendering()
    made.set_layout_engine('none')
    svg = _saved(made, 'svg', Title=name, Description=caption, Date=None)
    pdf = _saved(made, 'pdf', Title=name, Subject=caption, CreationDate=None)
    png = _saved(made, 'png', Title=name, Description=caption)
  return Images(_scalable(svg.decode('utf-8')), pdf, png)


def _saved(made: Any, form: str, **metadata: str | None) -> bytes:
  buffer = io.BytesIO()
  made.savefig(buffer, format=form, metadata=metadata)
  return buffer.getvalue()


def _scalable(svg: str) -> str:
  """The SVG without the ids of its groups, which would repeat on a page."""
  return re.sub('<g id="[^"]*"', '<g', svg)


@contextlib.contextmanager
def _use() -> Iterator[None]:
  """Applies the style of all plots within the block."""
  import warnings

  import matplotlib

  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # Characters that the font lacks show as boxes; the tables have the text.
    warnings.filterwarnings('ignore', message='Glyph .* missing from')
    yield


def figure(height: float) -> Any:
  """An empty figure of this height in inches, made without pyplot."""
  from matplotlib import figure as figures

  return figures.Figure(figsize=(_WIDTH, height), layout='constrained')


def grid(
  count: int, num_columns: int, row_height: float, margin: float
) -> tuple[Any, list[Any]]:
  """A figure with a grid of panels that share their axes, and these panels.

  Args:
    count: the number of panels; the last row may have fewer than the others.
    num_columns: panels per row.
    row_height: in inches.
    margin: height of what is above and below all rows, in inches.
  """
  num_rows = math.ceil(count / num_columns)
  made = figure(margin + row_height * num_rows)
  panels = made.subplots(
    num_rows, num_columns, squeeze=False, sharex=True, sharey=True
  ).ravel()
  for unused in panels[count:]:
    unused.remove()
  return made, list(panels[:count])


def curve(
  axes: Any, strategy: str, x: Sequence[float], y: Sequence[float]
) -> None:
  """Draws a line with markers in the colour of a strategy."""
  axes.plot(
    x,
    y,
    color=STRATEGIES[strategy].colour,
    marker=STRATEGIES[strategy].marker,
    markersize=4,
    markeredgecolor=palette.PAPER,
    markeredgewidth=0.6,
    zorder=3,
  )


def budget_axis(axes: Any, budgets: Sequence[int]) -> None:
  """A logarithmic axis with a tick at each budget."""
  from matplotlib import ticker

  axes.set_xscale('log', base=2)
  low, high = budgets[0], budgets[-1]
  reach = high / low if high > low else 2.0
  axes.set_xlim(low * reach**-0.08, high * reach**0.08)
  # Labels of neighbours that are too near would overlap.
  labels: list[str] = []
  last = 0.0
  for budget in budgets:
    is_free = budget >= last * reach**0.1
    labels.append(f'{budget:,}' if is_free else '')
    last = budget if is_free else last
  axes.set_xticks(budgets, labels)
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def plain_log_ticks(axis: Any) -> None:
  """Labels the decades of a logarithmic axis with plain numbers."""
  from matplotlib import ticker

  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:,.10g}'))
  axis.set_minor_formatter(ticker.NullFormatter())


def some_log_ticks(axis: Any) -> None:
  """Labels 1, 2 and 5 of each decade of a logarithmic axis."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
  plain_log_ticks(axis)


def legend(made: Any, strategies: Sequence[str]) -> None:
  """A legend of the strategies, above the panels."""
  from matplotlib import lines

  handles = [
    lines.Line2D(
      [],
      [],
      color=STRATEGIES[s].colour,
      marker=STRATEGIES[s].marker,
      markersize=4,
    )
    for s in strategies
  ]
  made.legend(handles, strategies, loc='outside upper left', ncols=4)


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


def end_labels(
  axes: Any, labels: Sequence[tuple[float, str, str]], weight: str = 'bold'
) -> None:
  """Writes labels at the right edge, moved apart; each (y, text, colour)."""
  to_axes = axes.transData + axes.transAxes.inverted()
  x = axes.get_xlim()[1]
  places = [to_axes.transform((x, y))[1] for y, _, _ in labels]
  height = axes.figure.get_size_inches()[1] * axes.get_position().height
  moved = spread(places, 0.13 / height)
  for (_, text, colour), y in zip(labels, moved, strict=True):
    axes.text(
      1.015,
      y,
      text,
      transform=axes.transAxes,
      color=colour,
      va='center',
      fontsize=7,
      fontweight=weight,
    )
