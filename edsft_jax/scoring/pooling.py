"""Pools the hidden states of a prompt's tokens into one feature vector."""

import jax
import jax.numpy as jnp

POOLINGS = ('mean', 'last', 'weighted')


def pool_features(
  features: jax.Array, mask: jax.Array, pooling: str
) -> jax.Array:
  """Pools [B, L, D] over the tokens of masks [B, S, L] to float32 [B, S, D].

  'mean' is what P1 uses. 'last' takes the last token; 'weighted' is a mean
  whose weights grow linearly with the position (1, 2, ... n), as in SGPT.
  Other tokens of a row never count, whether padding or not. A mask without
  tokens gives 0.
  """
  position_BxSxL = jnp.cumsum(mask, axis=-1) * mask
  num_BxSx1 = jnp.sum(mask, axis=-1, keepdims=True)
  weight_BxSxL = {
    'mean': mask,
    'last': mask & (position_BxSxL == num_BxSx1),
    'weighted': position_BxSxL,
  }[pooling].astype(jnp.float32)
  total_BxSx1 = jnp.sum(weight_BxSxL, axis=-1, keepdims=True)
  return jnp.einsum(
    'bsl,bld->bsd',
    weight_BxSxL / jnp.maximum(total_BxSx1, 1.0),
    features.astype(jnp.float32),
    precision='highest',
  )
