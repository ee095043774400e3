"""Divides examples into micro-batches that fit into the device's memory."""

from collections.abc import Callable, Iterator, Sequence
import math
import threading
from typing import TypeVar

import jax

from edsft_jax import console, errors, out_of_memory, processes
from edsft_jax.finetuning import batches
from edsft_jax.finetuning.batches import Layout, MicroBatch
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.models.responses import Example

T = TypeVar('T')

# Rows and length of a micro-batch.
Shape = tuple[int, int]


class Fitting:
  """Halves micro-batches that do not fit, once; for several threads."""

  def __init__(
    self, memory: MemoryOptions, mesh: jax.sharding.Mesh, method: str
  ):
    """Starts with micro-batches as the options say.

    Args:
      memory: how a step is divided.
      mesh: the mesh of the weights.
      method: finetuning.method.
    """
    self._memory = memory
    self._layout = memory.layout(mesh, method)
    self._halved = False
    self._lock = threading.Lock()

  def __call__(
    self,
    examples: Sequence[Example],
    compute: Callable[[Iterator[MicroBatch], int], T],
  ) -> T:
    """Computes micro-batches, again with half the tokens if they do not fit.

    Args:
      examples: what to divide.
      compute: (micro-batches, their number) -> result. It takes one only when
        those before are computed or known to fit.

    Raises:
      InputError: they were halved before, cannot be halved, or only some of the
        processes run out of memory.
    """
    while True:
      layout = self._layout
      tried: list[Shape] = []
      try:
        parts = batches.micro_batches(examples, layout)
        return compute(_noted(parts, tried), len(parts))
      except out_of_memory.ERRORS as error:
        # Smaller micro-batches do not help if none was begun.
        if not tried or not out_of_memory.is_meant_by(error):
          raise
        if not out_of_memory.is_everywhere():
          raise errors.InputError(
            f'only process {processes.index()} runs out of memory: use hosts '
            'with the same devices, or a lower finetuning.micro_batch_size'
          ) from error
      # Here the error is gone, and with it the arrays that it kept in memory.
      self._halve(examples, layout, tried[-1])

  def _halve(
    self, examples: Sequence[Example], layout: Layout, shape: Shape
  ) -> None:
    """Halves micro-batches, if that was not done before.

    Args:
      examples: those of the step.
      layout: how they were divided.
      shape: the micro-batch that did not fit.

    Raises:
      InputError: it was, or there is only one row per device.
    """
    with self._lock:
      if self._layout != layout:
        return  # Another thread has halved them.
      rows, length = shape
      halved = layout.halved(shape, max(len(e.tokens) for e in examples))
      if self._halved or halved is None:
        raise self._too_large(shape, halved is not None)
      self._layout, self._halved = halved, True
    largest = max(
      (batch.shape for batch in batches.micro_batches(examples, halved)),
      key=math.prod,
    )
    console.say(
      'finetune',
      f'out of memory with a micro-batch of {rows} x {length:,} tokens: '
      f'continuing with {largest[0]} x {largest[1]:,}',
    )

  def _too_large(self, shape: Shape, can_be_halved: bool) -> errors.InputError:
    """The error for a micro-batch that does not fit."""
    rows, length = shape
    # Not if that would be the same micro-batch again.
    fewer = f'finetuning.micro_batch_size={max(rows // 2, 1)}'
    remedies = self._memory.remedies(fewer if can_be_halved else '')
    # Cells depend on the length, so that a study cannot continue with another.
    shorter = ', or remove all cells and use a lower finetuning.max_length'
    return errors.InputError(
      f'finetuning runs out of memory with {console.count(rows, "row")} of '
      f'{length:,} tokens at a time: use {" or ".join(remedies)}'
      f'{"" if can_be_halved else shorter}'
    )


def _noted(
  parts: Sequence[MicroBatch], tried: list[Shape]
) -> Iterator[MicroBatch]:
  """Yields micro-batches, and appends the shape of each to `tried` before."""
  for part in parts:
    tried.append(part.shape)
    yield part
