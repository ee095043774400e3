"""How good each cell's model is on prompts that nothing was chosen from."""

from edsft_jax.evaluation.stage import check, run

__all__ = ['check', 'run']
