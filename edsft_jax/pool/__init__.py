"""Reads the pool of prompts: formats, columns, checks, the built-in demo."""

from edsft_jax.pool.stage import check, run

__all__ = ['check', 'run']
