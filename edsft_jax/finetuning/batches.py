"""Which examples an optimizer step sees, known from the seed alone."""

from collections.abc import Sequence

import jax
import numpy as np

from edsft_jax import models
from edsft_jax.models import responses


def num_steps(num_examples: int, epochs: int, batch_size: int) -> int:
  """Optimizer steps of a cell; the last may have fewer examples."""
  return -(-num_examples * epochs // batch_size)


def order(num_examples: int, epochs: int, seed: int) -> np.ndarray:
  """One permutation of the examples for each epoch, end to end.

  Depends on nothing but the arguments: not on devices, not on the step that a
  run resumes from.
  """
  key = jax.random.fold_in(jax.random.key(seed), _DATA)
  epoch_keys = [jax.random.fold_in(key, epoch) for epoch in range(epochs)]
  return np.concatenate(
    [np.asarray(jax.random.permutation(k, num_examples)) for k in epoch_keys]
  )


# Keeps the stream of the data order apart from others of the same seed.
_DATA = 1


def make(
  examples: Sequence[responses.Example], num_rows: int
) -> tuple[responses.Batch, int]:
  """Pads examples to one of a few shapes.

  Returns:
    The batch, and how many last tokens hold every response.
  """
  length = models.bucket(max(len(e.tokens) for e in examples))
  num_targets = responses.num_targets(examples, length)
  return responses.batch(examples, length, num_rows), num_targets
