"""Attention and its gradient are those of softmax, as JAX derives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax.models.masked_attention import masked_attention

# Rows, key heads, queries, size of a head, keys.
B, K, L, A, S = 2, 3, 5, 8, 7
DIVISOR = 2.5


def _plain(q, k, v, mask, cap):
  score = jnp.einsum('bkla,bkas->bkls', q, k, precision='highest') / DIVISOR
  if cap is not None:
    score = cap * jnp.tanh(score / cap)
  share = jax.nn.softmax(jnp.where(mask, score, -1e30))
  return jnp.einsum('bkls,bksa->bkla', share, v, precision='highest')


def _inputs():
  rng = np.random.default_rng(0)
  shapes = (B, K, L, A), (B, K, A, S), (B, K, S, A)
  q, k, v = (2 * rng.normal(size=shape) for shape in shapes)
  mask = rng.random((B, 1, L, S)) < 0.6
  mask[..., 0] = True
  weight = rng.normal(size=(B, K, L, A))
  return [jnp.asarray(x, jnp.float32) for x in (q, k, v)], mask, weight


@pytest.mark.parametrize('cap', [None, 1.5])
def test_values_and_gradients_are_those_of_softmax(cap):
  arrays, mask, weight = _inputs()

  def gradients(attend):
    loss = lambda q, k, v: jnp.sum(weight * attend(q, k, v))
    return attend(*arrays), *jax.grad(loss, (0, 1, 2))(*arrays)

  found = gradients(
    lambda q, k, v: masked_attention(q, k, v, mask, DIVISOR, cap)
  )
  expected = gradients(lambda q, k, v: _plain(q, k, v, mask, cap))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_half_precision_has_its_dtypes_and_nearly_the_same_gradients():
  arrays, mask, weight = _inputs()
  half = [x.astype(jnp.bfloat16) for x in arrays]

  def loss(q, k, v):
    attended = masked_attention(q, k, v, mask, DIVISOR, None)
    assert attended.dtype == v.dtype
    return jnp.sum(weight * attended.astype(jnp.float32))

  found = jax.grad(loss, (0, 1, 2))(*half)
  rounded = [x.astype(jnp.float32) for x in half]
  for a, b in zip(found, jax.grad(loss, (0, 1, 2))(*rounded), strict=True):
    assert a.dtype == jnp.bfloat16
    error = np.abs(a.astype(jnp.float32) - b).max()
    assert 0 < error < 0.02 * np.abs(b).max()


def test_a_query_without_keys_is_finite():
  arrays, mask, weight = _inputs()
  mask[1, 0, 2] = False

  def loss(q, k, v):
    return jnp.sum(weight * masked_attention(q, k, v, mask, DIVISOR, None))

  value, gradients = jax.value_and_grad(loss, (0, 1, 2))(*arrays)
  assert np.isfinite(value)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
