"""Token statistics and pooled features of a pool; no answer is read."""

from edsft_jax.scoring.stage import check, check_options, run

__all__ = ['check', 'check_options', 'run']
