"""Rotary position embedding, all kinds."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models.config import Rope


def rotations(
  rope: Rope, head_dim: int, position_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines for `rotate`, each [B, 1, L, A].

  The sines are negative in the first half of the dimensions. With 'dynamic',
  the angles depend on the row's present length; cached keys keep the rotation
  from when the row was shorter, as in transformers' generate.
  """
  if rope.kind == 'dynamic':
    length_B = jnp.max(position_BxL, axis=1) + 1
    frequency = dynamic_frequencies(rope, head_dim, length_B)[:, None, None]
  else:
    frequency = jnp.asarray(frequencies(rope, head_dim))
  angle = position_BxL[:, None, :, None].astype(jnp.float32) * frequency
  cos = rope.attention_factor * jnp.cos(angle)
  sin = rope.attention_factor * jnp.sin(angle)
  both = lambda *halves: jnp.concatenate(halves, axis=-1)
  return both(cos, cos), both(-sin, sin)


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """Radians per position of each pair of dimensions, [A / 2] float32.

  'llama3' keeps high frequencies, divides low ones by the factor and
  interpolates linearly in between (Llama 3.1's published code). 'yarn' does the
  same, but interpolates over the index of the dimension (Peng et al. 2023,
  arXiv 2309.00071, section 3.2, as in their published code).
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequency = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
  if rope.kind == 'default':
    return frequency
  if rope.kind == 'linear':
    return frequency / np.float32(rope.factor)
  if rope.kind == 'llama3':
    turns = rope.original_context * frequency / np.float32(2 * np.pi)
    share = (turns - rope.low_freq_factor) / (
      rope.high_freq_factor - rope.low_freq_factor
    )
  else:
    assert rope.kind == 'yarn', rope.kind

    def pair_turning(times: float) -> float:
      wavelength = rope.original_context / times
      turns = math.log(wavelength / (2 * math.pi)) / math.log(rope.theta)
      return turns * head_dim / 2

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
      low, high = math.floor(low), math.ceil(high)
    # The published code clips the pair's index by the number of dimensions.
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
      high += 1e-3
    share = 1.0 - (np.arange(head_dim // 2) - low) / (high - low)
  kept = np.clip(share, 0.0, 1.0)
  return ((1.0 - kept) / rope.factor * frequency + kept * frequency).astype(
    np.float32
  )


def dynamic_frequencies(
  rope: Rope, head_dim: int, length_B: jax.Array
) -> jax.Array:
  """Radians per position for rows of these lengths, [B, A / 2] float32.

  Theta grows with the row's length beyond the original context.
  """
  length_B = jnp.maximum(length_B, rope.original_context).astype(jnp.float32)
  growth_B = rope.factor * length_B / rope.original_context - (rope.factor - 1)
  theta_B = rope.theta * growth_B ** (head_dim / (head_dim - 2))
  exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  return theta_B[:, None] ** -exponent


def rotate(
  x_BxHxLxA: jax.Array, rotation: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Rotates each pair (i, i + A / 2) of a head's dimensions by its angle.

  Swaps the halves before multiplying, so that XLA fuses everything into one
  loop; concatenating two rotated halves takes another pass over memory.
  """
  cos, sin = rotation
  y_BxHxLxA = x_BxHxLxA.astype(jnp.float32)
  first, second = jnp.split(y_BxHxLxA, 2, axis=-1)
  partner_BxHxLxA = jnp.concatenate((second, first), axis=-1)
  turned_BxHxLxA = y_BxHxLxA * cos + partner_BxHxLxA * sin
  return turned_BxHxLxA.astype(x_BxHxLxA.dtype)
