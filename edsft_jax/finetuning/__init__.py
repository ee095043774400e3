"""Finetuning on the selected prompts and their answers, one run per cell."""

from edsft_jax.finetuning.stage import check, check_options, run

__all__ = ['check', 'check_options', 'run']
