"""Selections are compiled as users compile them."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def optimized():
  """Equal picks on any devices is also a matter of what the compiler does."""
  before = jax.config.jax_disable_most_optimizations
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
