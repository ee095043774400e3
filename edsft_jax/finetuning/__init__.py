"""Finetuning on the selected prompts and their answers, one run per cell."""

from edsft_jax.finetuning.options import check_options
from edsft_jax.finetuning.stage import check, run

__all__ = ['check', 'check_options', 'run']
