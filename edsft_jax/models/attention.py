"""Softmax attention, in blocks that save memory and, on a CPU, time."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.masked_attention import masked_attention
from edsft_jax.models.modules import Linear, Norm
from edsft_jax.models.remat import remat
from edsft_jax.models.rope import rotate

# See Attention.max_scores.
MAX_SCORES = 2**26
# Training keeps the scores of rows up to this length for the backward pass.
KEPT_SCORES_LENGTH = 512
# See AttentionInputs.query_block.
QUERY_BLOCK = 128
# Without a query_block, blocks of long prompts grow up to this, since each is
# compiled: SmolLM2-135M reads prompts of 912 tokens at the same rate, and its
# program compiles in half of the time.
_LARGEST_QUERY_BLOCK = 256
# They grow further only if there would be more blocks than this.
_MOST_BLOCKS = 16


def positions(segments_BxL: jax.Array) -> jax.Array:
  """Positions within each packed sequence, int32 [B, L], from segment ids."""
  index_L = jnp.arange(segments_BxL.shape[1])
  before_BxL = jnp.pad(segments_BxL, ((0, 0), (1, 0)))[:, :-1]
  start_BxL = jnp.where(segments_BxL != before_BxL, index_L, 0)
  return index_L - jax.lax.cummax(start_BxL, axis=1)


def lengths(segments_BxL: jax.Array, position_BxL: jax.Array) -> jax.Array:
  """Number of tokens of each token's sequence, int32 [B, L]."""
  same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None, :]
  return jnp.max(jnp.where(same_BxLxL, position_BxL[:, None], 0), axis=-1) + 1


def _static() -> Any:
  """A field that is part of a compiled program."""
  return dataclasses.field(metadata={'static': True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
  """Inputs that the attention of all layers of a kind shares.

  Attributes:
    position_BxL: positions of the queries.
    position_BxS: positions of the keys; -1 for padding and empty entries.
    rotation: cosines and sines to rotate queries and keys by; None: no rope.
    cache_index: cache entry of the first new key; 0 without a cache.
    segment_BxL: the sequence of each query, from 1; None: a row is a sequence.
    segment_BxS: the sequence of each key; 0 for those that all share.
    window: number of tokens a query attends to, including itself; None for all.
    score_divisor: divisor of the scores.
    score_cap: soft cap of the scores after that, if any.
    query_block: queries per block of which each attends only to keys up to its
      own end, for keys in the order of the queries; None: `attend` decides.
  """

  position_BxL: jax.Array
  position_BxS: jax.Array
  rotation: tuple[jax.Array, jax.Array] | None
  cache_index: jax.Array | int
  segment_BxL: jax.Array | None
  segment_BxS: jax.Array | None
  window: int | None = _static()
  score_divisor: float = _static()
  score_cap: float | None = _static()
  query_block: int | None = _static()

  def mask(self) -> jax.Array:
    """Bool [B, L, S], true where a query attends to a key."""
    # Positions count tokens, so padding takes up no part of a window.
    back_BxLxS = self.position_BxL[:, :, None] - self.position_BxS[:, None, :]
    mask_BxLxS = (back_BxLxS >= 0) & (self.position_BxS >= 0)[:, None, :]
    if self.segment_BxL is not None and self.segment_BxS is not None:
      of_key_Bx1xS = self.segment_BxS[:, None, :]
      mask_BxLxS &= (of_key_Bx1xS == self.segment_BxL[:, :, None]) | (
        of_key_Bx1xS == 0
      )
    if self.window is None:
      return mask_BxLxS
    return mask_BxLxS & (back_BxLxS < self.window)

  def of_queries(
    self, start: int, end: int, num_keys: int
  ) -> 'AttentionInputs':
    """For the queries from `start` to `end`, and the first keys."""
    part = dataclasses.replace(
      self,
      position_BxL=self.position_BxL[:, start:end],
      position_BxS=self.position_BxS[:, :num_keys],
    )
    if self.segment_BxL is None or self.segment_BxS is None:
      return part
    return dataclasses.replace(
      part,
      segment_BxL=self.segment_BxL[:, start:end],
      segment_BxS=self.segment_BxS[:, :num_keys],
    )


class Attention(nnx.Module):
  """Causal grouped-query attention.

  Attributes:
    max_scores: limit on the attention scores held at once, over all rows and
      heads, in floats; without it, memory would grow with the square of a
      prompt's length.
  """

  def __init__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs | None
  ):
    self.head_dim = config.head_dim
    self.num_kv_heads = config.num_kv_heads
    self.max_scores = MAX_SCORES
    self.qk_norm = config.qk_norm

    def linear(num_in: int, num_out: int, use_bias: bool) -> Linear:
      return Linear(
        num_in,
        num_out,
        use_bias=use_bias,
        stddev=config.initializer_range,
        dtype=dtype,
        rngs=rngs,
      )

    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    self.q_proj = linear(config.width, q_width, config.qkv_bias)
    self.k_proj = linear(config.width, kv_width, config.qkv_bias)
    self.v_proj = linear(config.width, kv_width, config.qkv_bias)
    self.o_proj = linear(q_width, config.width, config.output_bias)
    if config.qk_norm == 'head':
      self.q_norm = Norm(config.head_dim, config, dtype)
      self.k_norm = Norm(config.head_dim, config, dtype)
    elif config.qk_norm == 'all':
      self.q_norm = Norm(q_width, config, dtype)
      self.k_norm = Norm(kv_width, config, dtype)

  def __call__(
    self,
    x_BxLxD: jax.Array,
    inputs: AttentionInputs,
    kv_cache: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes and returns the same as `Layer.__call__`."""
    q_BxLxHA, k_BxLxKA = self.q_proj(x_BxLxD), self.k_proj(x_BxLxD)
    if self.qk_norm == 'all':
      q_BxLxHA, k_BxLxKA = self.q_norm(q_BxLxHA), self.k_norm(k_BxLxKA)
    q_BxHxLxA, k_BxKxLxA = self._heads(q_BxLxHA), self._heads(k_BxLxKA)
    if self.qk_norm == 'head':
      q_BxHxLxA, k_BxKxLxA = self.q_norm(q_BxHxLxA), self.k_norm(k_BxKxLxA)
    if inputs.rotation is not None:
      q_BxHxLxA = rotate(q_BxHxLxA, inputs.rotation)
      k_BxKxLxA = rotate(k_BxKxLxA, inputs.rotation)
    k_BxKxAxS = k_BxKxLxA.swapaxes(2, 3)
    v_BxKxSxA = self._heads(self.v_proj(x_BxLxD))
    if kv_cache is not None:
      update, index = jax.lax.dynamic_update_slice, inputs.cache_index
      k_BxKxAxS = update(kv_cache[0], k_BxKxAxS, (0, 0, 0, index))
      v_BxKxSxA = update(kv_cache[1], v_BxKxSxA, (0, 0, index, 0))

    batch, _, length, head_dim = q_BxHxLxA.shape
    # G query heads share a key head.
    q_BxKxGxLxA = q_BxHxLxA.reshape(
      batch, self.num_kv_heads, -1, length, head_dim
    )
    attended_BxKxGxLxA = attend(
      q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs, self.max_scores
    )
    merged_BxLxHA = (
      attended_BxKxGxLxA.reshape(batch, -1, length, head_dim)
      .swapaxes(1, 2)
      .reshape(batch, length, -1)
    )
    return self.o_proj(merged_BxLxHA), k_BxKxAxS, v_BxKxSxA

  def _heads(self, x_BxLxHA: jax.Array) -> jax.Array:
    """[B, L, H * A] -> [B, H, L, A]."""
    batch, length, _ = x_BxLxHA.shape
    return x_BxLxHA.reshape(batch, length, -1, self.head_dim).swapaxes(1, 2)


def attend(
  q_BxKxGxLxA: jax.Array,
  k_BxKxAxS: jax.Array,
  v_BxKxSxA: jax.Array,
  inputs: AttentionInputs,
  max_scores: int,
) -> jax.Array:
  """Softmax attention, [B, K, G, L, A].

  Works in blocks of queries if there would be more than `max_scores` scores. On
  a CPU it also does for more than QUERY_BLOCK queries, where each block reads
  only the keys up to its own end: the queries' own keys must come last, in the
  same order.
  """
  if inputs.query_block is not None:
    return _attend_causally(
      q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs, inputs.query_block
    )
  *heads, length, head_dim = q_BxKxGxLxA.shape
  most = max(max_scores // (math.prod(heads) * k_BxKxAxS.shape[-1]), 1)
  if length <= most:
    on_cpu = jax.default_backend() == 'cpu'
    size = _query_block(length) if on_cpu else length
    return _attend_causally(q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs, size)
  size = next(n for n in range(most, 0, -1) if length % n == 0)

  # The backward pass recomputes scores instead of keeping them.
  @jax.checkpoint
  def attend_block(part: tuple[jax.Array, Any]) -> jax.Array:
    q_BxKxGxPxA, (position_BxP, segment_BxP) = part
    block = dataclasses.replace(
      inputs, position_BxL=position_BxP, segment_BxL=segment_BxP
    )
    return _attend_block(q_BxKxGxPxA, k_BxKxAxS, v_BxKxSxA, block)

  def blocks(x_BxL: jax.Array) -> jax.Array:
    return x_BxL.reshape(heads[0], -1, size).swapaxes(0, 1)

  q_BxKxGxNxPxA = q_BxKxGxLxA.reshape(*heads, -1, size, head_dim)
  attended_NxBxKxGxPxA = jax.lax.map(
    attend_block,
    (
      jnp.moveaxis(q_BxKxGxNxPxA, 3, 0),
      jax.tree.map(blocks, (inputs.position_BxL, inputs.segment_BxL)),
    ),
  )
  return jnp.moveaxis(attended_NxBxKxGxPxA, 0, 3).reshape(q_BxKxGxLxA.shape)


def _query_block(length: int) -> int:
  """Queries per block of this many, on a CPU."""
  size = min(max(-(-length // 4), QUERY_BLOCK), _LARGEST_QUERY_BLOCK)
  return max(size, -(-length // _MOST_BLOCKS))


def _attend_causally(
  q_BxKxGxLxA: jax.Array,
  k_BxKxAxS: jax.Array,
  v_BxKxSxA: jax.Array,
  inputs: AttentionInputs,
  size: int,
) -> jax.Array:
  """Attention in blocks of queries, each without the keys that follow it.

  Nearly half of the scores are never computed, and XLA runs the blocks, which
  do not depend on each other, on several CPU cores: it gives each batch of
  small products only one.

  A cache has the queries' own keys last, except for free entries. Blocks then
  include a few keys that are masked.
  """
  length = q_BxKxGxLxA.shape[3]
  if length <= size:
    return _attend_block(q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs)
  num_before = k_BxKxAxS.shape[-1] - length
  attended = []
  for start in range(0, length, size):
    end = min(start + size, length)
    last = num_before + end
    run: Callable[..., jax.Array] = _attend_block
    if length > KEPT_SCORES_LENGTH:
      # The backward pass recomputes scores instead of keeping them.
      run = functools.partial(remat, _attend_block)
    attended.append(
      run(
        q_BxKxGxLxA[:, :, :, start:end],
        k_BxKxAxS[..., :last],
        v_BxKxSxA[:, :, :last],
        inputs.of_queries(start, end, last),
      )
    )
  return jnp.concatenate(attended, axis=3)


def _attend_block(
  q_BxKxGxLxA: jax.Array,
  k_BxKxAxS: jax.Array,
  v_BxKxSxA: jax.Array,
  inputs: AttentionInputs,
) -> jax.Array:
  batch, num_kv_heads, num_groups, _, head_dim = q_BxKxGxLxA.shape
  mask_Bx1xGLxS = jnp.tile(inputs.mask()[:, None], (1, 1, num_groups, 1))
  attended_BxKxGLxA = masked_attention(
    q_BxKxGxLxA.reshape(batch, num_kv_heads, -1, head_dim),
    k_BxKxAxS,
    v_BxKxSxA,
    mask_Bx1xGLxS,
    inputs.score_divisor,
    inputs.score_cap,
  )
  return attended_BxKxGLxA.reshape(q_BxKxGxLxA.shape)
