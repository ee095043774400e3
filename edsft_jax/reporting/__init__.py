"""The report stage: results over seeds as a page, plots and tables."""

from edsft_jax.reporting.differences import differences
from edsft_jax.reporting.stage import check, run
from edsft_jax.reporting.tables import Tables, load
from edsft_jax.reporting.terminal import summary

__all__ = ['Tables', 'check', 'differences', 'load', 'run', 'summary']
