"""The plots of the report: functions from numbers to PNG images."""

from edsft_jax.reporting.plots.efficiency import label_efficiency
from edsft_jax.reporting.plots.gains import gains_by_width, selection_gains
from edsft_jax.reporting.plots.style import REFERENCES, spread
from edsft_jax.reporting.plots.tasks import by_task
from edsft_jax.reporting.plots.timing import stage_seconds

__all__ = [
  'REFERENCES',
  'by_task',
  'gains_by_width',
  'label_efficiency',
  'selection_gains',
  'spread',
  'stage_seconds',
]
