"""Sends selected prompts out to annotators and reads their answers back."""

from edsft_jax.annotation.stage import check, missing, run

__all__ = ['check', 'missing', 'run']
