"""The exhibits of the page: plots with their data."""

from edsft_jax.reporting.exhibits.efficiency import (
  cost_efficiency,
  forest,
  label_efficiency,
)
from edsft_jax.reporting.exhibits.exhibit import Exhibit
from edsft_jax.reporting.exhibits.gains import gains_by_width, selection_gains
from edsft_jax.reporting.exhibits.picks import (
  coverage,
  lengths,
  overlap,
  pool_map,
)
from edsft_jax.reporting.exhibits.tasks import task_allocation, task_quality
from edsft_jax.reporting.exhibits.time import stage_seconds

__all__ = [
  'Exhibit',
  'cost_efficiency',
  'coverage',
  'forest',
  'gains_by_width',
  'label_efficiency',
  'lengths',
  'overlap',
  'pool_map',
  'selection_gains',
  'stage_seconds',
  'task_allocation',
  'task_quality',
]
