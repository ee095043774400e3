"""Plots the gain of each pick of a selection."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from edsft_jax.reporting.plots import palette, style
from edsft_jax.strategies.registry import STRATEGIES


def gains_by_width(
  widths: Sequence[float],
  curves: Sequence[Sequence[float]],
  remarks: Sequence[str],
  used: float,
) -> Any:
  """Marginal gain of each pick, one line per width; the used one is blue.

  Args:
    widths: the RBF widths.
    curves: the gains at each width.
    remarks: what is wrong with each width, or ''; its line is dashed then.
    used: the width of the study.
  """
  figure = style.figure(3.3)
  axes = figure.subplots()
  top = max(max(curve) for curve in curves) or 1.0
  floor = top * 1e-5
  labels = []
  for width, curve, remark in zip(widths, curves, remarks, strict=True):
    chosen = width == used
    # A logarithmic axis cannot show a gain of zero.
    heights = [gain if gain > 0 else math.nan for gain in curve]
    colour = (
      palette.ACCENT
      if chosen
      else (palette.WARNING if remark else palette.SPINE)
    )
    axes.plot(
      range(1, len(curve) + 1),
      heights,
      color=colour,
      linewidth=2.2 if chosen else 0.9,
      linestyle=(0, (3, 1.5)) if remark else '-',
      zorder=3 if chosen else 2,
    )
    note = f' {remark}' if remark else ''
    labels.append(
      (
        max(curve[-1], floor),
        f'{width:g}{note}{" (used)" if chosen else ""}',
        colour,
      )
    )
  # The suggested width is where the last pick gains 1.
  axes.axhline(1.0, color=palette.SPINE, linewidth=1.0, linestyle=':')
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlim(1, max(len(curve) for curve in curves))
  axes.set_ylim(floor, top * 1.6)
  style.plain_log_ticks(axes.xaxis)
  style.plain_log_ticks(axes.yaxis)
  axes.set_xlabel('position of the pick')
  axes.set_ylabel('marginal gain')
  axes.set_title('Facility location: gain of each pick, by RBF width')
  figure.draw_without_rendering()
  style.end_labels(axes, labels)
  return figure


def selection_gains(
  gains: Mapping[tuple[str, int], Sequence[float | None]],
) -> Any:
  """The gains of each selection, one panel per strategy."""
  strategies = list(dict.fromkeys(strategy for strategy, _ in gains))
  units = {'k_center': 'distance to the chosen set'}
  figure = style.figure(2.6)
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
        linewidth=1.2,
      )
    axes.set_title(strategy, color=STRATEGIES[strategy].colour)
    axes.set_xlabel('position of the pick')
    axes.set_ylabel(units.get(strategy, 'marginal gain'))
    positive = all(g is None or g > 0 for column in drawn for g in column)
    if strategy != 'k_center' and positive:
      axes.set_yscale('log')
      style.plain_log_ticks(axes.yaxis)
    else:
      axes.set_ylim(bottom=0)
  return figure
