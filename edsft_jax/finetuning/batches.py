"""Batches of examples, determined by the seed alone."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from edsft_jax.models.responses import Example

# numpy when a batch is made, jax inside the loss.
Array = np.ndarray | jax.Array

# Padded lengths of batches; few, so that few programs are compiled.
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def num_steps(num_examples: int, epochs: int, batch_size: int) -> int:
  """Optimizer steps of a cell; the last may have fewer examples."""
  return -(-num_examples * epochs // batch_size)


def order(num_examples: int, epochs: int, seed: int) -> np.ndarray:
  """A permutation of the examples for each epoch, concatenated.

  Depends only on the arguments, not on the devices or on the step that a run
  resumes from.
  """
  key = jax.random.fold_in(jax.random.key(seed), _DATA)
  epoch_keys = [jax.random.fold_in(key, epoch) for epoch in range(epochs)]
  return np.concatenate(
    [np.asarray(jax.random.permutation(k, num_examples)) for k in epoch_keys]
  )


# Separates the random stream of the data order from others of the same seed.
_DATA = 1


class Batch(NamedTuple):
  """Examples padded on the left to one length; padded rows have no tokens.

  Attributes:
    tokens: int32 [B, L].
    num_tokens: int32 [B], tokens of each row without padding.
    num_response: int32 [B], those of them that belong to the response.
  """

  tokens: Array
  num_tokens: Array
  num_response: Array


def pad(examples: Sequence[Example], length: int, num_rows: int) -> Batch:
  """Pads examples on the left to `length`, and to `num_rows` rows."""
  tokens_BxL = np.zeros((num_rows, length), np.int32)
  num_tokens_B = np.zeros(num_rows, np.int32)
  num_response_B = np.zeros(num_rows, np.int32)
  for row, example in enumerate(examples):
    num_tokens_B[row] = len(example.tokens)
    num_response_B[row] = example.num_response
    tokens_BxL[row, length - len(example.tokens) :] = example.tokens
  return Batch(tokens_BxL, num_tokens_B, num_response_B)


def num_targets(examples: Sequence[Example], length: int) -> int:
  """How many last tokens of rows padded to `length` cover every response.

  Rounded up to one of few numbers, so that few programs are compiled. The first
  token of a row is never a target, since nothing predicts it.
  """
  longest = max(example.num_response for example in examples)
  return min(bucket(longest), length - 1)


def make(examples: Sequence[Example], num_rows: int) -> tuple[Batch, int]:
  """Pads examples to one of few shapes.

  Returns:
    The batch, and how many last tokens cover every response.
  """
  length = bucket(max(len(e.tokens) for e in examples))
  return pad(examples, length, num_rows), num_targets(examples, length)


def bucket(length: int) -> int:
  """The padded length for a batch: the next in a short list.

  Depends only on the batch, so a step is the same whatever other cells the
  study has. Above 32, each exceeds the one before by at most half: 16, 32, 48,
  64, 96, 128, 192, ... 512, 768, 1024, 1536, ...
  """
  for size in _LENGTHS:
    if length <= size:
      return size
  size = _LENGTHS[-1]
  while size < length:
    if length <= size * 3 // 2:
      return size * 3 // 2
    size *= 2
  return size
