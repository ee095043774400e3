"""Plots what was picked: coverage, lengths, overlap, and the pool's map."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies.registry import RANDOM, STRATEGIES

# Picks in a panel of the map that are vectors; more of them are an image.
_MAX_VECTORS = 500


def by_budget(
  panels: Mapping[str, Mapping[str, Sequence[float]]], budgets: Sequence[int]
) -> Any:
  """One panel per quantity, a line per strategy.

  Args:
    panels: quantity -> strategy -> its value at each budget.
    budgets: ascending.
  """
  figure = style.figure(2.7)
  row = figure.subplots(1, len(panels), squeeze=False)[0]
  names = dict.fromkeys(name for lines in panels.values() for name in lines)
  for axes, (title, lines) in zip(row, panels.items(), strict=True):
    for name, values in lines.items():
      style.curve(axes, name, budgets, values)
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.set_xlabel('answers bought')
    style.budget_axis(axes, budgets)
  style.legend(figure, list(names))
  return figure


@dataclasses.dataclass(frozen=True)
class Spread:
  """How some numbers are spread.

  Attributes:
    mean: their mean.
    quantiles: 5%, 25%, 50%, 75% and 95%.
  """

  mean: float
  quantiles: Sequence[float]


def lengths(
  panels: Mapping[str, Mapping[str, Spread]], colours: Mapping[str, str]
) -> Any:
  """A panel per kind of text, a row per group: median, quartiles and mean.

  Args:
    panels: kind of text -> group -> its lengths.
    colours: group -> its colour.
  """
  groups = list(next(iter(panels.values())))
  figure = style.figure(0.6 + 0.22 * len(groups))
  row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
  for axes, (title, spreads) in zip(row, panels.items(), strict=True):
    for place, group in enumerate(groups):
      if group not in spreads:
        continue
      colour, spread = colours[group], spreads[group]
      low, first, median, third, high = spread.quantiles
      axes.hlines(place, low, high, color=colour, linewidth=0.9)
      axes.hlines(place, first, third, color=colour, linewidth=5, alpha=0.55)
      axes.plot([median], [place], marker='|', color=palette.INK, markersize=7)
      axes.plot(
        [spread.mean],
        [place],
        marker='D',
        color=palette.PAPER,
        markeredgecolor=palette.INK,
        markeredgewidth=0.8,
        markersize=3.5,
      )
    axes.set_title(title)
    axes.set_xlim(left=0)
    axes.set_xlabel('words')
    axes.grid(axis='y', visible=False)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
  return figure


def overlap(names: Sequence[str], shares: np.ndarray) -> Any:
  """A matrix of shares in percent; darker squares are larger.

  Args:
    names: the strategies.
    shares: [S, S], NaN where there is none.
  """
  from matplotlib import patches

  count = len(names)
  side = min(0.42 * count, 4.6)
  figure = style.figure(side + 1.3)
  axes = figure.subplots()
  for i, j in np.ndindex(count, count):
    share = shares[i, j]
    if math.isnan(share):
      continue
    axes.add_patch(
      patches.Rectangle(
        (j - 0.5, i - 0.5),
        1,
        1,
        facecolor=palette.ACCENT,
        # Text stays legible on the darkest square.
        alpha=0.03 + 0.5 * share,
        linewidth=0,
      )
    )
    text = f'{100 * share:.0f}'
    axes.text(j, i, text, ha='center', va='center', fontsize=7)
  axes.set_xticks(range(count), names, rotation=45, ha='right')
  axes.set_yticks(range(count), names)
  axes.set_xlim(-0.5, count - 0.5)
  axes.set_ylim(count - 0.5, -0.5)
  axes.set_aspect('equal')
  axes.grid(visible=False)
  return figure


def pool_map(
  points: np.ndarray, picks: Mapping[str, np.ndarray], title: str
) -> Any:
  """The pool in grey, and the picks of each strategy in a separate panel.

  Args:
    points: [N, 2].
    picks: strategy -> positions of its picks.
    title: what the axes are.
  """
  num_columns = min(len(picks), 4)
  figure, grid = style.grid(len(picks), num_columns, 1.75, margin=0.35)
  for axes, (name, chosen) in zip(grid, picks.items(), strict=True):
    # Thousands of points are an image within the vector graphics.
    axes.scatter(
      *points.T, s=2, color=palette.SPINE, alpha=0.35, lw=0, rasterized=True
    )
    # Random's own grey would not stand out.
    colour = palette.MUTED if name == RANDOM else STRATEGIES[name].colour
    is_image = len(chosen) > _MAX_VECTORS
    # An image has the same colours on dark screens.
    axes.scatter(
      *points[chosen].T,
      s=5,
      color=palette.on_dark(colour) if is_image else colour,
      lw=0,
      rasterized=is_image,
    )
    axes.set_title(name, color=STRATEGIES[name].colour, fontsize=7.5)
    axes.set_xticks([])
    axes.set_yticks([])
  figure.supxlabel(title, fontsize=7.5)
  return figure
