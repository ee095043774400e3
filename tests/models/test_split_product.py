"""Products of float32 activations and bfloat16 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax.models import split_product as lib
from edsft_jax.models.split_product import split_product

# The error of two parts: a float32 has 24 bits, they have 16 or more.
TOLERANCE = 2.0**-16


@pytest.fixture
def inputs() -> tuple[jax.Array, jax.Array]:
  rng = np.random.default_rng(0)
  x = rng.normal(size=(9, 64)) * 10.0 ** rng.integers(-20, 20, (9, 1))
  weight = jnp.asarray(rng.normal(size=(64, 5)), jnp.bfloat16)
  return jnp.asarray(x, jnp.float32), weight


def assert_near(result, x, weight):
  """The error is small relative to the sum of the products' magnitudes."""
  x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
  scale = np.abs(x) @ np.abs(weight)
  error = np.abs(result - x @ weight)
  assert (error <= TOLERANCE * scale).all()


def test_products_are_those_of_float32(inputs):
  x, weight = inputs
  result = jax.jit(split_product)(x, weight)
  assert result.dtype == jnp.float32
  assert_near(result, x, weight)


def test_other_platforms_get_the_same_product(inputs):
  x, weight = inputs
  together = jax.jit(lambda x: lib.product_of_stack(lib.parts(x), weight))
  assert_near(together(x), x, weight)


def test_the_program_for_a_gpu_reads_the_weights_once(inputs):
  lowered = jax.jit(split_product).trace(*inputs).lower
  text = lowered(lowering_platforms=('cuda',)).as_text()
  assert text.count('dot_general') == 1
  assert lowered().as_text().count('dot_general') == lib.NUM_PARTS


def test_gradients_are_not_rounded_to_bfloat16(inputs):
  x, weight = inputs
  gradient = jnp.asarray(
    np.random.default_rng(1).normal(size=(9, 5)), jnp.float32
  )
  _, pull_back = jax.vjp(split_product, x, weight)
  of_x, of_weight = pull_back(gradient)
  assert_near(of_x, gradient, weight.T)
  # As any weight's gradient, in the weight's dtype.
  expected = x.T @ gradient
  np.testing.assert_array_equal(of_weight, expected.astype(jnp.bfloat16))
