"""The plots of the report: functions from numbers to figures."""

from edsft_jax.reporting.plots.efficiency import (
  cost_efficiency,
  label_efficiency,
)
from edsft_jax.reporting.plots.forest import Row, forest
from edsft_jax.reporting.plots.gains import gains_by_width, selection_gains
from edsft_jax.reporting.plots.picks import (
  Spread,
  by_budget,
  lengths,
  overlap,
  pool_map,
)
from edsft_jax.reporting.plots.style import REFERENCES, Images, render, spread
from edsft_jax.reporting.plots.tasks import by_task
from edsft_jax.reporting.plots.timing import stage_seconds

__all__ = [
  'REFERENCES',
  'Images',
  'Row',
  'Spread',
  'by_budget',
  'by_task',
  'cost_efficiency',
  'forest',
  'gains_by_width',
  'label_efficiency',
  'lengths',
  'overlap',
  'pool_map',
  'render',
  'selection_gains',
  'spread',
  'stage_seconds',
]
