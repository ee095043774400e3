"""Token statistics and pooled features of the pool; reads no answers."""

from edsft_jax.scoring.stage import check, check_options, run

__all__ = ['check', 'check_options', 'run']
