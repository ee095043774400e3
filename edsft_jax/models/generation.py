"""Greedy continuation of a left-padded batch, pure and traceable."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models.decoder import Decoder, Output

# Padded lengths: few, so that few programs are compiled.
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Observe = Callable[[jax.Array, jax.Array], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generation:
  """What `generate` returns.

  Attributes:
    tokens_BxT: new tokens, the end token among them; 0 after it.
    num_tokens_B: how many there are.
    observed: what `observe` returned at each step, [B, T] arrays with 0 after
      a row's end; None without `observe`.
    prompt: the forward pass over the prompt, without its cache.
  """

  tokens_BxT: jax.Array
  num_tokens_B: jax.Array
  observed: Any
  prompt: Output


def generate(
  decoder: Decoder,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  max_new_tokens: int,
  end_ids: Sequence[int],
  observe: Observe | None = None,
  layer: int = -1,
) -> Generation:
  """Continues each row with the likeliest token until it ends.

  A step is one new token; the step that emits an end token counts. The loop
  stops when every row has ended. A row that is padding alone has no steps.

  Args:
    tokens: [B, L] ids, padded on the left (each row's last column is its last
      token).
    mask: [B, L], true where there is a token.
    max_new_tokens: T, at least 1.
    end_ids: ids that end a row.
    observe: called with the float32 logits [B, V] and the chosen token [B] of
      a step; returns a pytree of [B] arrays. No [B, T, V] array ever exists.
    layer: of the prompt's features, see Decoder.__call__.

  The lowest id wins among equal logits.
  """
  batch, length = tokens.shape
  end_ids_E = jnp.asarray(tuple(end_ids), jnp.int32)
  cache = decoder.init_cache(batch, length + max_new_tokens)
  prompt = decoder(tokens, mask, cache=cache, layer=layer)

  def choose(logits_BxV: jax.Array) -> tuple[jax.Array, Any]:
    token_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    return token_B, observe(logits_BxV, token_B) if observe else None

  def record(step, logits_BxV, ended_B, buffers):
    token_B, observed = choose(logits_BxV)
    token_B = jnp.where(ended_B, 0, token_B)
    tokens_BxT, num_tokens_B, observed_BxT = buffers
    buffers = (
      tokens_BxT.at[:, step].set(token_B),
      num_tokens_B + ~ended_B,
      jax.tree.map(
        lambda all_BxT, now_B: all_BxT.at[:, step].set(
          jnp.where(ended_B, 0, now_B)
        ),
        observed_BxT,
        observed,
      ),
    )
    return token_B, ended_B | jnp.isin(token_B, end_ids_E), buffers

  logits_BxV = decoder.logits(prompt.hidden_BxLxD[:, -1])
  observed_shapes = jax.eval_shape(choose, logits_BxV)[1]
  buffers = (
    jnp.zeros((batch, max_new_tokens), jnp.int32),
    jnp.zeros(batch, jnp.int32),
    jax.tree.map(
      lambda s: jnp.zeros((batch, max_new_tokens), s.dtype), observed_shapes
    ),
  )
  ended_B = ~jnp.any(mask.astype(bool), axis=1)
  first = record(0, logits_BxV, ended_B, buffers)

  def unfinished(carry) -> jax.Array:
    step, _, ended_B, *_ = carry
    return (step < max_new_tokens) & ~jnp.all(ended_B)

  def advance(carry):
    step, token_B, ended_B, buffers, cache = carry
    output = decoder(token_B[:, None], ~ended_B[:, None], cache=cache)
    logits_BxV = decoder.logits(output.hidden_BxLxD[:, 0])
    return (
      step + 1,
      *record(step, logits_BxV, ended_B, buffers),
      output.cache,
    )

  carry = jax.lax.while_loop(
    unfinished, advance, (jnp.int32(1), *first, prompt.cache)
  )
  tokens_BxT, num_tokens_B, observed_BxT = carry[3]
  return Generation(
    tokens_BxT,
    num_tokens_B,
    observed_BxT,
    dataclasses.replace(prompt, cache=None),
  )


def bucket(length: int) -> int:
  """The padded length for a row: the next of a short list.

  Steps of at most a half: 16, 32, 48, 64, 96, 128, 192, ... 512, 768, 1024,
  1536, ...
  """
  for size in _BUCKETS:
    if length <= size:
      return size
  size = _BUCKETS[-1]
  while size < length:
    if length <= size * 3 // 2:
      return size * 3 // 2
    size *= 2
  return size


@dataclasses.dataclass(frozen=True)
class Group:
  """Rows that run together, and the shape that they are padded to."""

  indices: list[int]
  length: int
  num_rows: int


def group(
  lengths: Sequence[int],
  *,
  num_new: int,
  batch_tokens: int,
  multiple: int,
  fill: bool = False,
) -> list[Group]:
  """Puts rows of like length together, each once.

  Args:
    lengths: tokens of each row.
    num_new: tokens that a row will have beside them.
    batch_tokens: tokens of a batch, padding included; a batch has at least
      `multiple` rows all the same.
    multiple: what a batch's rows must be divisible by.
    fill: pad the last batch to the rows of a full one too, so that each length
      has one shape however many rows there are.

  Returns:
    Longest first, so that memory peaks early.
  """
  order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
  groups = []
  while order:
    length = bucket(lengths[order[0]])
    most = max(batch_tokens // (length + num_new) // multiple, 1) * multiple
    indices, order = order[:most], order[most:]
    rows = most if fill else -(-len(indices) // multiple) * multiple
    groups.append(Group(indices, length, rows))
  return groups


def pad_left(
  rows: Sequence[Sequence[int]], length: int, num_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids -> tokens [num_rows, length] int32 and mask, padded left.

  Padding and the rows beyond the given ones hold id 0 and a false mask.

  Raises:
    ValueError: a row is longer than `length`, or there are too many rows.
  """
  num_rows = len(rows) if num_rows is None else num_rows
  if len(rows) > num_rows:
    raise ValueError(f'{len(rows)} rows do not fit {num_rows}')
  tokens = np.zeros((num_rows, length), np.int32)
  mask = np.zeros((num_rows, length), bool)
  for number, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'a row of {len(row)} tokens exceeds {length}')
    if row:
      tokens[number, -len(row) :] = row
      mask[number, -len(row) :] = True
  return tokens, mask
