"""Errors about too little memory, of a device or of the host."""

import jax

from edsft_jax import processes

# What is raised when there is too little memory, among other errors: a
# JaxRuntimeError by programs, a ValueError by operations on their own, and a
# MemoryError by the host.
ERRORS = (jax.errors.JaxRuntimeError, ValueError, MemoryError)
# Processes run out of memory at nearly the same time: how long to wait for the
# others before treating it as one process's problem.
_SECONDS = 20.0


def is_meant_by(error: Exception) -> bool:
  """Whether this was raised because there is too little memory."""
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def is_everywhere() -> bool:
  """Whether all processes ran out of memory; each that did must call this.

  If only some did, the others wait for their part of a computation, and never
  get here.
  """
  return processes.barrier_within('no memory', _SECONDS)
