"""Token statistics and pooled features of a pool, with no answer in sight."""

from edsft_jax.scoring.stage import check, run

__all__ = ['check', 'run']
