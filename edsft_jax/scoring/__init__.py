"""Token statistics and pooled features of a pool, with no answer in sight."""

from edsft_jax.scoring.stage import check, check_options, run

__all__ = ['check', 'check_options', 'run']
