"""Evaluates each cell's model on prompts outside the pool."""

from edsft_jax.evaluation.stage import check, run

__all__ = ['check', 'run']
