"""Rotary position embedding, all kinds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models.config import Rope

# Kinds whose angles depend on the length of the sequence.
LENGTH_KINDS = ('dynamic', 'longrope')


def rotations(
  rope: Rope,
  head_dim: int,
  position_BxL: jax.Array,
  length_BxL: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines for `rotate`, each [B, 1, L, A].

  A is the number of dimensions that rotate. The sines are negative in the first
  half of them. With 'dynamic' and 'longrope', the angles depend on the row's
  present length; cached keys keep the rotation from when the row was shorter.
  'dynamic' does so in transformers' generate, too; DecoderConfig.context keeps
  rows with 'longrope' from outgrowing theirs.
  """
  if rope.kind in ('dynamic', 'longrope'):
    of_rows = (
      dynamic_frequencies if rope.kind == 'dynamic' else longrope_frequencies
    )
    if length_BxL is None:
      length_BxL = jnp.max(position_BxL, axis=1, keepdims=True) + 1
    frequency = of_rows(rope, head_dim, length_BxL)[:, None]
  else:
    frequency = jnp.asarray(frequencies(rope, head_dim))
  angle = position_BxL[:, None, :, None].astype(jnp.float32) * frequency
  cos = rope.attention_factor * jnp.cos(angle)
  sin = rope.attention_factor * jnp.sin(angle)
  both = lambda *halves: jnp.concatenate(halves, axis=-1)
  return both(cos, cos), both(-sin, sin)


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """Radians per position of each pair of dimensions that rotate, float32.

  'llama3' keeps high frequencies, divides low ones by the factor and
  interpolates linearly in between (Llama 3.1's published code). 'yarn' does the
  same, but interpolates over the index of the dimension (Peng et al. 2023,
  arXiv 2309.00071, section 3.2, as in their published code).
  """
  rotary_dim = rope.rotary_dim(head_dim)
  exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(
    rotary_dim
  )
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
      return turns * rotary_dim / 2

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
      low, high = math.floor(low), math.ceil(high)
    # The published code clips the pair's index by the number of dimensions.
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
      high += 1e-3
    share = 1.0 - (np.arange(rotary_dim // 2) - low) / (high - low)
  kept = np.clip(share, 0.0, 1.0)
  return ((1.0 - kept) / rope.factor * frequency + kept * frequency).astype(
    np.float32
  )


def dynamic_frequencies(
  rope: Rope, head_dim: int, length: jax.Array
) -> jax.Array:
  """Radians per position at these lengths, [..., A / 2] float32.

  Theta grows with the row's length beyond the original context.
  """
  length = jnp.maximum(length, rope.original_context).astype(jnp.float32)
  growth = rope.factor * length / rope.original_context - (rope.factor - 1)
  rotary_dim = rope.rotary_dim(head_dim)
  theta = rope.theta * growth ** (rotary_dim / (rotary_dim - 2))
  exponent = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
  return theta[..., None] ** -exponent


def longrope_frequencies(
  rope: Rope, head_dim: int, length: jax.Array
) -> jax.Array:
  """Radians per position at these lengths, [..., A / 2] float32.

  Rows beyond the original context have factors of their own (Ding et al. 2024,
  arXiv 2402.13753).
  """
  unscaled = dataclasses.replace(rope, kind='default')
  frequency = frequencies(unscaled, head_dim)
  short, long = (
    frequency / np.array(factors, np.float32)
    for factors in (rope.short_factors, rope.long_factors)
  )
  is_long = (length > rope.original_context)[..., None]
  return jnp.where(is_long, long, short)


def rotate(
  x_BxHxLxA: jax.Array, rotation: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Rotates each pair (i, i + A / 2) of a head's dimensions by its angle.

  Dimensions after those of the rotation stay as they are. Swaps the halves
  before multiplying, so that XLA fuses everything into one loop; concatenating
  two rotated halves takes another pass over memory.
  """
  cos, sin = rotation
  rotary_dim = cos.shape[-1]
  if rotary_dim < x_BxHxLxA.shape[-1]:
    turned = rotate(x_BxHxLxA[..., :rotary_dim], rotation)
    kept = x_BxHxLxA[..., rotary_dim:]
    return jnp.concatenate((turned, kept), axis=-1)
  y_BxHxLxA = x_BxHxLxA.astype(jnp.float32)
  first, second = jnp.split(y_BxHxLxA, 2, axis=-1)
  partner_BxHxLxA = jnp.concatenate((second, first), axis=-1)
  turned_BxHxLxA = y_BxHxLxA * cos + partner_BxHxLxA * sin
  return turned_BxHxLxA.astype(x_BxHxLxA.dtype)
