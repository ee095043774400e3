"""Functions of logits of many tokens, which never exist all at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edsft_jax.models import Decoder

# Most logits held at once while given tokens are scored, in floats.
MAX_LOGITS = 2**22


def map_tokens(
  decoder: Decoder, function: Callable[[Any], Any], tree_BxNx: Any
) -> Any:
  """Applies a function of logits to tokens of each row, in blocks.

  Args:
    decoder: the model whose logits the function computes.
    function: pytree of [B, ...] arrays, for one token per row -> pytree of
      [B, ...] arrays.
    tree_BxNx: pytree of [B, N, ...] arrays.

  Returns:
    A pytree of [B, N, ...] arrays.
  """
  batch, num_tokens = jax.tree.leaves(tree_BxNx)[0].shape[:2]
  most = max(MAX_LOGITS // (batch * decoder.config.vocab_size), 1)
  found_NxBx = jax.lax.map(
    function,
    jax.tree.map(lambda x_BxNx: x_BxNx.swapaxes(0, 1), tree_BxNx),
    batch_size=max(min(most, num_tokens), 1),
  )
  return jax.tree.map(lambda x_NxBx: x_NxBx.swapaxes(0, 1), found_NxBx)


def target_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  is_target_BxL: jax.Array,
  max_logits: int = MAX_LOGITS,
) -> dict[str, jax.Array]:
  """Scores tokens, given those before them.

  Logits are computed for a block of each row's targets at a time, until every
  target is scored: [B, L, V] never exists.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows.
    is_target_BxL: the tokens to score; not the first one of a sequence, which
      nothing predicts.
    max_logits: limit on the logits held at once, in floats.

  Returns:
    nll: float32 [B, L], the negative log-likelihood of each target in nats, 0
      for other tokens.
    is_greedy: bool [B, L], whether a target is the likeliest token; true for
      other tokens.
  """
  batch, length = tokens_BxL.shape
  size = min(max(max_logits // (batch * decoder.config.vocab_size), 1), length)
  num_blocks = -(-jnp.max(jnp.sum(is_target_BxL, axis=1)) // size)
  # Each row's targets, then its other tokens, in blocks of one size.
  place_BxL = jnp.argsort(~is_target_BxL, axis=1, stable=True)
  place_BxT = jnp.pad(place_BxL, ((0, 0), (0, -length % size)), mode='edge')
  row_Bx1 = jnp.arange(batch)[:, None]

  def add_block(
    block: jax.Array, found: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    nll_BxL, is_greedy_BxL = found
    place_BxP = jax.lax.dynamic_slice_in_dim(
      place_BxT, block * size, size, axis=1
    )
    # The token before a target predicts it.
    before_BxPx1 = jnp.maximum(place_BxP - 1, 0)[..., None]
    logits_BxPxV = decoder.logits(
      jnp.take_along_axis(hidden_BxLxD, before_BxPx1, axis=1)
    )
    token_BxP = jnp.take_along_axis(tokens_BxL, place_BxP, axis=1)
    nll_BxP, is_best_BxP = _likelihood(logits_BxPxV, token_BxP[..., None])
    return (
      nll_BxL.at[row_Bx1, place_BxP].set(nll_BxP[..., 0]),
      is_greedy_BxL.at[row_Bx1, place_BxP].set(is_best_BxP[..., 0]),
    )

  nothing = jnp.zeros(place_BxL.shape), jnp.ones(place_BxL.shape, bool)
  nll_BxL, is_greedy_BxL = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
  return {
    'nll': jnp.where(is_target_BxL, nll_BxL, 0.0),
    'is_greedy': is_greedy_BxL | ~is_target_BxL,
  }


def row_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  mask_BxSxL: jax.Array,
  num_scored_BxS: jax.Array,
  last_BxSxC: jax.Array,
) -> dict[str, jax.Array]:
  """Scores each sequence's last tokens, followed by each of C tokens.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows.
    mask_BxSxL: the tokens of each sequence, which follow each other.
    num_scored_BxS: how many last tokens of each sequence to score; fewer than
      all.
    last_BxSxC: tokens that may follow the sequence.

  Returns:
    nll: float32 [B, S, C], in nats.
    is_greedy: bool [B, S, C], whether each token is the likeliest one.
  """
  position_L = jnp.arange(tokens_BxL.shape[1])
  end_BxSx1 = jnp.max(
    jnp.where(mask_BxSxL, position_L, 0), axis=-1, keepdims=True
  )

  def score_last(
    ends: tuple[jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array]:
    hidden_BxD, last_BxC = ends
    return _likelihood(decoder.logits(hidden_BxD), last_BxC)

  ends_BxSxD = jnp.take_along_axis(hidden_BxLxD, end_BxSx1, axis=1)
  nll_BxSxC, is_best_BxSxC = map_tokens(
    decoder, score_last, (ends_BxSxD, last_BxSxC)
  )
  is_target_BxSxL = mask_BxSxL & (
    position_L > end_BxSx1 - num_scored_BxS[..., None]
  )
  before = target_likelihood(
    decoder, hidden_BxLxD, tokens_BxL, jnp.any(is_target_BxSxL, axis=1)
  )
  nll_BxSx1 = jnp.sum(
    jnp.where(is_target_BxSxL, before['nll'][:, None], 0.0),
    axis=-1,
    keepdims=True,
  )
  is_greedy_BxSx1 = jnp.all(
    before['is_greedy'][:, None] | ~is_target_BxSxL, axis=-1, keepdims=True
  )
  return {
    'nll': nll_BxSx1 + nll_BxSxC,
    'is_greedy': is_greedy_BxSx1 & is_best_BxSxC,
  }


def _likelihood(
  logits_xV: jax.Array, tokens_xC: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Of each token, [..., C]: nats, and whether none is likelier."""
  chosen_xC = jnp.take_along_axis(logits_xV, tokens_xC, axis=-1)
  total_x1 = jax.nn.logsumexp(logits_xV, axis=-1, keepdims=True)
  return total_x1 - chosen_xC, chosen_xC >= jnp.max(
    logits_xV, axis=-1, keepdims=True
  )
