"""Counts the device memory that scoring needs, from the shapes of its arrays.

A calculation, not a measurement: it leaves out what the compiler adds and the
programs themselves.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax

from edsft_jax.inference.logits import MAX_LOGITS
from edsft_jax.inference.shapes import BatchSizes
from edsft_jax.models import Decoder, DecoderConfig, parse_dtype
from edsft_jax.models.attention import MAX_SCORES
from edsft_jax.models.split_product import NUM_PARTS


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device that holds the whole model.

  Attributes:
    weights: the decoder's.
    cache: keys and values of the rows that are decoded, and of those that are
      prefilled to join them.
    activations: the largest of a layer, while prompts are read.
    logits: of a decode step, or of a block of prompt tokens.
  """

  weights: int
  cache: int
  activations: int
  logits: int

  @property
  def total(self) -> int:
    """The sum."""
    return sum(dataclasses.astuple(self))


def count(
  config: DecoderConfig,
  dtype: str,
  *,
  batch_tokens: int,
  prompt_length: int,
  num_new: int,
  read_tokens: int = 4096,
  row_length: int = 512,
) -> Memory:
  """Counts for prompts that all have the same length.

  Args:
    config: the model.
    dtype: model.dtype.
    batch_tokens: scoring.batch_tokens.
    prompt_length: tokens of each prompt.
    num_new: scoring.max_new_tokens.
    read_tokens: prompt tokens per call; 4,096 on accelerators.
    row_length: tokens of the shortest packed rows; 512 on accelerators.
  """
  decoder = _abstract(config, dtype)
  sizes = BatchSizes(batch_tokens, num_new, 1, batch_tokens, read_tokens)
  slots = sizes.num_slots(prompt_length)
  length = max(prompt_length, row_length)
  rows = sizes.to_pack(length, batch_tokens)
  caches = jax.eval_shape(
    lambda: (
      decoder.init_cache(slots, prompt_length + num_new),
      decoder.init_cache(rows, length),
    )
  )
  return Memory(
    weights=_weights(config, dtype),
    cache=_num_bytes(jax.tree.leaves(caches)),
    activations=_activations(decoder, rows, length),
    logits=4 * max(_products(decoder) * slots * config.vocab_size, MAX_LOGITS),
  )


@functools.cache
def _abstract(config: DecoderConfig, dtype: str) -> Decoder:
  """A decoder of shapes; building many layers takes a second."""
  weight_dtype, activation_dtype = parse_dtype(dtype)
  return Decoder(
    config, rngs=None, dtype=weight_dtype, activation_dtype=activation_dtype
  )


@functools.cache
def _weights(config: DecoderConfig, dtype: str) -> int:
  """Bytes of the weights."""
  weights = nnx.state(_abstract(config, dtype), nnx.Param)
  return _num_bytes(jax.tree.leaves(weights))


def _num_bytes(arrays: Sequence[Any]) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def _products(decoder: Decoder) -> int:
  """Arrays that a product with a weight fills, the result included."""
  split = decoder.activation_dtype != decoder.dtype
  return 1 + NUM_PARTS if split else 1


def _activations(decoder: Decoder, rows: int, length: int) -> int:
  """Bytes of a layer's largest arrays while rows of this length are read."""
  c, item = decoder.config, decoder.activation_dtype.itemsize
  num = rows * length
  # Scores and probabilities, in float32.
  scores = 2 * 4 * min(rows * c.num_heads * length**2, MAX_SCORES)
  heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  attention = num * heads * item + scores
  # The results of gate and up, with the parts of the one that is computed last.
  mlp = num * c.mlp_width * item * (1 + _products(decoder))
  residual = 2 * num * c.width * item
  return residual + max(attention, mlp)
