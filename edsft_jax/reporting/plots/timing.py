"""Plots the time of each stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from edsft_jax.reporting.plots import palette, style


def stage_seconds(
  seconds: Mapping[str, float], selection_stages: Sequence[str]
) -> Any:
  """Wall seconds of each stage; the selection stages are blue."""
  figure = style.figure(0.7 + 0.24 * len(seconds))
  axes = figure.subplots()
  bars = axes.barh(
    list(seconds),
    list(seconds.values()),
    height=0.66,
    color=[
      palette.ACCENT if name in selection_stages else palette.FAINT
      for name in seconds
    ],
  )
  total = sum(seconds.values()) or 1.0
  axes.bar_label(
    bars,
    [f'{value:,.1f} s  ({value / total:.1%})' for value in seconds.values()],
    padding=5,
    fontsize=7,
  )
  axes.invert_yaxis()
  axes.margins(x=0.16)
  axes.set_xlabel('wall seconds')
  axes.grid(axis='y', visible=False)
  return figure
