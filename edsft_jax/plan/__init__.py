"""The plan command: what a study would cost and could find, before spending."""

from edsft_jax.plan.command import check, run

__all__ = ['check', 'run']
