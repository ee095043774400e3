"""Greedy continuation of a left-padded batch, pure and traceable."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models.decoder import Cache, Decoder, Output

# Padded lengths: few, so that few programs are compiled.
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Observe = Callable[[jax.Array, jax.Array], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows that are being continued, in B places; a place may be empty.

  A prompt lies in the first slots of the cache, padded on the left. The last T
  are a ring: each decode step writes one of them, the same for all rows, and
  after the last comes the first again. No row lives for more than T steps, so
  none writes over itself, whenever it came in.

  Attributes:
    cache: keys, values and positions; its index is the next slot of the ring.
    last_B: each row's newest token, which is not in the cache yet.
    live_B: rows that have not ended.
    num_tokens_B: new tokens, the end token among them.
    tokens_BxT: the new tokens; 0 behind them.
    observed: what `observe` returned, [B, T] arrays with 0 after a row's end;
      None without `observe`.
  """

  cache: Cache
  last_B: jax.Array
  live_B: jax.Array
  num_tokens_B: jax.Array
  tokens_BxT: jax.Array
  observed: Any


@dataclasses.dataclass(frozen=True)
class Generator:
  """How rows are continued: with the likeliest token, until they end.

  Pure and traceable. The lowest id wins among equal logits.

  Attributes:
    max_new_tokens: T, at least 1.
    end_ids: ids that end a row; the step that emits one counts.
    observe: called with the float32 logits [B, V] and the chosen token [B] of
      a step; returns a pytree of [B] arrays. No [B, T, V] array ever exists.
    layer: of the prompt's features, see Decoder.__call__.
  """

  max_new_tokens: int
  end_ids: Sequence[int]
  observe: Observe | None = None
  layer: int = -1

  def start(
    self, decoder: Decoder, tokens: jax.Array, mask: jax.Array
  ) -> tuple[Rows, Output]:
    """Reads prompts and chooses each one's first new token.

    Args:
      decoder: the model.
      tokens: [B, L] ids, padded on the left (each row's last column is its
        last token).
      mask: [B, L], true where there is a token. A row that is padding alone
        ends before its first token.

    Returns:
      Rows with L slots and no ring yet, and the pass over the prompts without
      its cache.
    """
    batch, length = tokens.shape
    cache = decoder.init_cache(batch, length)
    prompt = decoder(tokens, mask, cache=cache, layer=self.layer)
    logits_BxV = decoder.logits(prompt.hidden_BxLxD[:, -1])
    shape = (batch, self.max_new_tokens)
    observed = jax.eval_shape(self._choose, logits_BxV)[1]
    rows = Rows(
      cache=prompt.cache,
      last_B=jnp.zeros(batch, jnp.int32),
      live_B=jnp.any(mask.astype(bool), axis=1),
      num_tokens_B=jnp.zeros(batch, jnp.int32),
      tokens_BxT=jnp.zeros(shape, jnp.int32),
      observed=jax.tree.map(lambda x: jnp.zeros(shape, x.dtype), observed),
    )
    return (
      self._append(rows, logits_BxV),
      dataclasses.replace(prompt, cache=None),
    )

  def empty(self, decoder: Decoder, batch: int, length: int) -> Rows:
    """No rows, with room for `batch` of up to `length` prompt tokens."""
    none = jnp.zeros((batch, length), jnp.int32)
    like = jax.eval_shape(lambda: self.start(decoder, none, none)[0])
    rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    cache = decoder.init_cache(batch, length + self.max_new_tokens)
    cache = dataclasses.replace(cache, index=jnp.int32(length))
    return dataclasses.replace(rows, cache=cache)

  def admit(self, rows: Rows, new: Rows, place_P: jax.Array) -> Rows:
    """Puts rows from `start` into places, whatever was there before.

    Args:
      rows: with at least as many slots before the ring as `new` has.
      new: P rows.
      place_P: where each goes; one beyond the last place leaves a row out.
    """
    cache = rows.cache
    num_slots = new.cache.position_BxS.shape[1]
    none_PxS = jnp.full((len(place_P), cache.position_BxS.shape[1]), -1)
    position_PxS = none_PxS.at[:, :num_slots].set(new.cache.position_BxS)

    def put(old_Bx, new_Px):
      return old_Bx.at[place_P].set(new_Px, mode='drop')

    def put_keys(old_BxKxAxS, new_PxKxAxS):
      here = old_BxKxAxS.at[place_P, :, :, :num_slots]
      return here.set(new_PxKxAxS, mode='drop')

    def put_values(old_BxKxSxA, new_PxKxSxA):
      here = old_BxKxSxA.at[place_P, :, :num_slots]
      return here.set(new_PxKxSxA, mode='drop')

    old = dataclasses.replace(rows, cache=None)
    return dataclasses.replace(
      jax.tree.map(put, old, dataclasses.replace(new, cache=None)),
      cache=Cache(
        keys=jax.tree.map(put_keys, cache.keys, new.cache.keys),
        values=jax.tree.map(put_values, cache.values, new.cache.values),
        position_BxS=put(cache.position_BxS, position_PxS),
        index=cache.index,
      ),
    )

  def move(self, rows: Rows, place_M: jax.Array, length: int) -> Rows:
    """Rows with other places and more slots.

    Args:
      rows: where they are now.
      place_M: which of them the new places hold; a negative number leaves a
        place empty.
      length: slots before the ring, no fewer than there are.
    """
    ring = self.max_new_tokens
    more = length - (rows.cache.position_BxS.shape[1] - ring)

    def take(x_Bx):
      return jnp.take(x_Bx, jnp.maximum(place_M, 0), axis=0)

    def widen(x_Bx, axis, fill=0):
      """Room for more between the prompt's slots and the ring."""
      prompt, new = jnp.split(take(x_Bx), [x_Bx.shape[axis] - ring], axis)
      shape = (*prompt.shape[:axis], more, *prompt.shape[axis + 1 :])
      return jnp.concatenate(
        [prompt, jnp.full(shape, fill, x_Bx.dtype), new], axis
      )

    taken = jax.tree.map(take, dataclasses.replace(rows, cache=None))
    return dataclasses.replace(
      taken,
      live_B=taken.live_B & (place_M >= 0),
      cache=Cache(
        keys=tuple(widen(x, 3) for x in rows.cache.keys),
        values=tuple(widen(x, 2) for x in rows.cache.values),
        position_BxS=jnp.where(
          (place_M >= 0)[:, None], widen(rows.cache.position_BxS, 1, -1), -1
        ),
        index=rows.cache.index + more,
      ),
    )

  def advance(
    self, decoder: Decoder, rows: Rows, until: jax.Array | int = 0
  ) -> tuple[Rows, jax.Array]:
    """Decodes until no more than `until` rows are live; counts the steps."""
    return jax.lax.while_loop(
      lambda carry: jnp.sum(carry[0].live_B) > until,
      lambda carry: (self._step(decoder, carry[0]), carry[1] + 1),
      (rows, jnp.int32(0)),
    )

  def _step(self, decoder: Decoder, rows: Rows) -> Rows:
    output = decoder(
      rows.last_B[:, None], rows.live_B[:, None], cache=rows.cache
    )
    num_slots = rows.cache.position_BxS.shape[1]
    index = jnp.where(
      output.cache.index == num_slots,
      num_slots - self.max_new_tokens,
      output.cache.index,
    )
    cache = dataclasses.replace(output.cache, index=index)
    logits_BxV = decoder.logits(output.hidden_BxLxD[:, 0])
    return self._append(dataclasses.replace(rows, cache=cache), logits_BxV)

  def _choose(self, logits_BxV: jax.Array) -> tuple[jax.Array, Any]:
    token_B = likeliest(logits_BxV)
    return token_B, self.observe(logits_BxV, token_B) if self.observe else None

  def _append(self, rows: Rows, logits_BxV: jax.Array) -> Rows:
    """Gives each live row its next token."""
    token_B, observed = self._choose(logits_BxV)
    step_T = jnp.arange(self.max_new_tokens)
    now_BxT = (step_T == rows.num_tokens_B[:, None]) & rows.live_B[:, None]

    def note(all_BxT, now_B):
      return jnp.where(now_BxT, now_B[:, None], all_BxT)

    num_tokens_B = rows.num_tokens_B + rows.live_B
    ended_B = jnp.isin(token_B, jnp.asarray(self.end_ids, jnp.int32))
    return Rows(
      cache=rows.cache,
      last_B=token_B,
      live_B=rows.live_B & ~ended_B & (num_tokens_B < self.max_new_tokens),
      num_tokens_B=num_tokens_B,
      tokens_BxT=note(rows.tokens_BxT, token_B),
      observed=jax.tree.map(note, rows.observed, observed),
    )


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
  """Continues the rows of one batch until all have ended.

  A row that is padding alone has no steps. The arguments are those of
  `Generator` and of its `start`.
  """
  generator = Generator(max_new_tokens, end_ids, observe, layer)
  batch, length = tokens.shape
  new, prompt = generator.start(decoder, tokens, mask)
  rows = generator.empty(decoder, batch, length)
  rows = generator.admit(rows, new, jnp.arange(batch))
  rows, _ = generator.advance(decoder, rows)
  return Generation(rows.tokens_BxT, rows.num_tokens_B, rows.observed, prompt)


def likeliest(logits: jax.Array) -> jax.Array:
  """The lowest index of the largest, [..., V] -> int32 [...].

  What jnp.argmax gives, in two reductions that compilers make wide; on a CPU
  that takes a seventh of the time.
  """
  max_x1 = jnp.max(logits, axis=-1, keepdims=True)
  # Exact in float32 up to 2^24, which no vocabulary reaches.
  index_V = jnp.arange(logits.shape[-1], dtype=jnp.float32)
  index_xV = jnp.where(logits == max_x1, index_V, logits.shape[-1] - 1)
  return jnp.min(index_xV, axis=-1).astype(jnp.int32)


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
    if len(row):
      tokens[number, -len(row) :] = row
      mask[number, -len(row) :] = True
  return tokens, mask
