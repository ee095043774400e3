"""Plots the differences of strategies from random as a forest plot."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies.registry import STRATEGIES


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a forest plot.

  Attributes:
    label: on the left.
    strategy: its colour and marker are used.
    mean: the difference.
    low: lower end of its interval; None if it was not tested.
    high: upper end.
    text: on the right.
  """

  label: str
  strategy: str
  mean: float
  low: float | None
  high: float | None
  text: str


def forest(rows: Sequence[Row], xlabel: str, larger_is_better: bool) -> Any:
  """A row per comparison, with a vertical line at zero.

  Args:
    rows: from top to bottom.
    xlabel: what the differences are.
    larger_is_better: whether differences on the right are better.
  """
  figure = style.figure(0.8 + 0.27 * len(rows))
  axes = figure.subplots()
  axes.axvline(0, color=palette.INK, linewidth=0.8)
  for place, row in enumerate(rows):
    look = STRATEGIES[row.strategy]
    if row.low is not None:
      axes.plot([row.low, row.high], [place, place], color=look.colour)
    axes.plot(
      [row.mean],
      [place],
      color=look.colour,
      marker=look.marker,
      markersize=5,
      markeredgecolor=palette.PAPER,
      markeredgewidth=0.5,
    )
    axes.text(
      1.02,
      place,
      row.text,
      transform=axes.get_yaxis_transform(),
      va='center',
      fontsize=7,
    )
  axes.set_yticks(range(len(rows)), [row.label for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  ends = [x for r in rows for x in (r.mean, r.low, r.high) if x is not None]
  reach = 1.1 * max(map(abs, ends)) or 1.0
  axes.set_xlim(-reach, reach)
  axes.set_xlabel(xlabel)
  axes.grid(axis='y', visible=False)
  for x, side in ((0.0, 'left'), (1.0, 'right')):
    word = 'better' if (side == 'right') == larger_is_better else 'worse'
    arrow = f'{word} →' if side == 'right' else f'← {word}'
    axes.text(
      x,
      1.01,
      arrow,
      transform=axes.transAxes,
      ha=side,
      va='bottom',
      fontsize=7,
      color=palette.MUTED,
    )
  return figure
