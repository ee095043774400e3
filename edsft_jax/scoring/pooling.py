"""Pools the hidden states of a prompt's tokens into one feature vector."""

import jax
import jax.numpy as jnp

POOLINGS = ('mean', 'last', 'weighted')


def pool_features(
  features: jax.Array, mask: jax.Array, pooling: str
) -> jax.Array:
  """Pools [B, L, D] over the tokens of mask [B, L] to float32 [B, D].

  'mean' is what P1 uses. 'last' takes the last token; 'weighted' is a mean
  whose weights grow linearly with the position (1, 2, ... n), as in SGPT.
  Padding never counts, on either side.
  """
  position_BxL = jnp.cumsum(mask, axis=-1) * mask
  num_Bx1 = jnp.sum(mask, axis=-1, keepdims=True)
  weight_BxL = {
    'mean': mask,
    'last': position_BxL == num_Bx1,
    'weighted': position_BxL,
  }[pooling].astype(jnp.float32)
  weight_BxL /= jnp.sum(weight_BxL, axis=-1, keepdims=True)
  return jnp.einsum(
    'bl,bld->bd',
    weight_BxL,
    features.astype(jnp.float32),
    precision='highest',
  )
