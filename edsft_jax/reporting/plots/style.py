"""Common style of the plots: colours, figures and labels.

matplotlib is imported when a figure is made, so that a rerun with nothing to do
does not wait for it. Figures do not use pyplot, which has global state and may
need a display.
"""

from collections.abc import Iterator, Sequence
import contextlib
import io
from typing import Any

from edsft_jax import study

INK = '#1f2430'
MUTED = '#6b7280'
FAINT = '#c9ced6'
ACCENT = '#0072b2'

REFERENCES = {
  study.FULL_POOL: ('#1f2430', (0, (6, 2)), 'full pool'),
  study.NO_FINETUNING: ('#1f2430', (0, (1, 2)), 'no finetuning'),
}

# Width of plots in inches; the PNG's width in pixels is this times savefig.dpi.
WIDTH = 9.4

_STYLE: Any = {
  'font.size': 9.5,
  'text.color': INK,
  # Dollar signs in task names must not start formulas.
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
def use() -> Iterator[None]:
  """Applies the style of all plots within the block."""
  import warnings

  import matplotlib

  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # Characters that the font lacks show as boxes; the tables have the text.
    warnings.filterwarnings('ignore', message='Glyph .* missing from')
    yield


def figure(width: float, height: float) -> Any:
  """An empty figure, in inches, without pyplot."""
  from matplotlib import figure as figures

  return figures.Figure(figsize=(width, height), layout='constrained')


def png(made: Any) -> bytes:
  """Renders the figure as PNG."""
  buffer = io.BytesIO()
  made.savefig(buffer, format='png', bbox_inches='tight', pad_inches=0.08)
  return buffer.getvalue()


def plain_log_ticks(axis: Any) -> None:
  """Labels the decades of a logarithmic axis with plain numbers."""
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


def end_labels(
  axes: Any, labels: Sequence[tuple[float, str, str]], weight: str = 'bold'
) -> None:
  """Writes labels at the right edge, moved apart; each (y, text, colour)."""
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
