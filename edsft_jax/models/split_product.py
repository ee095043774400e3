"""Products of float32 activations and bfloat16 weights.

The activations are split into bfloat16 parts that add up to them, so that the
product is a few bfloat16 products, accumulated in float32. Matrix units run
these at full speed, and no float32 copy of the weights is made.
"""

import jax
import jax.numpy as jnp

# Two parts hold 16 of a float32's 24 bits.
NUM_PARTS = 2


@jax.custom_vjp
def split_product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x W: [N, in] float32, [in, out] bfloat16 -> [N, out] float32."""
  # Each platform gets only its own product in the program.
  return jax.lax.platform_dependent(
    parts(x), weight, cpu=_product_of_each, default=product_of_stack
  )


def parts(x: jax.Array) -> list[jax.Array]:
  """bfloat16 arrays whose sum is nearly x, the largest first."""
  result, rest = [], x
  for _ in range(NUM_PARTS):
    # XLA drops a conversion to bfloat16 and back as superfluous, and the second
    # part would be zero.
    part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
    result.append(part.astype(jnp.bfloat16))
    rest = rest - part
  return result


def product_of_stack(parts: list[jax.Array], weight: jax.Array) -> jax.Array:
  """Multiplies all parts at once, so that the weights are read once."""
  return jnp.sum(_product(jnp.stack(parts), weight), axis=0)


def _product_of_each(parts: list[jax.Array], weight: jax.Array) -> jax.Array:
  """Multiplies each alone: XLA's fast product on CPUs is for matrices only."""
  first, *others = (_product(part, weight) for part in parts)
  return sum(others, first)


def _product(part: jax.Array, weight: jax.Array) -> jax.Array:
  return jnp.matmul(part, weight, preferred_element_type=jnp.float32)


def _forward(
  x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return split_product(x, weight), (x, weight)


def _backward(
  inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  # The derivatives of the parts would be bfloat16.
  x, weight = inputs
  of_weight = jnp.matmul(x.T, gradient, precision='highest')
  return split_product(gradient, weight.T), of_weight.astype(weight.dtype)


split_product.defvjp(_forward, _backward)
