"""Prompts in: formats, columns, checks, quarantine, duplicates, the demo."""

from edsft_jax.pool.stage import check, run

__all__ = ['check', 'run']
