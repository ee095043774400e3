"""The decoder's modules without attention: MLP, projections, norms."""

from collections.abc import Callable
from typing import cast

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.split_product import split_product


class LoRAParam(nnx.Param):
  """A low-rank adapter's weight; nnx.split(decoder, LoRAParam, ...)."""


class DropoutKeys(nnx.Variable):
  """A random key for each token, [B, L], for dropout before an adapter."""


def _gelu_tanh(x: jax.Array) -> jax.Array:
  """GELU by tanh, rounded once, as in torch."""
  return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


# Name in transformers -> function.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu_pytorch_tanh': _gelu_tanh,
}


class Mlp(nnx.Module):
  """down(activation(gate(x)) * up(x))."""

  def __init__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs | None
  ):
    def linear(num_in: int, num_out: int) -> Linear:
      return Linear(
        num_in,
        num_out,
        use_bias=config.mlp_bias,
        stddev=config.initializer_range,
        dtype=dtype,
        rngs=rngs,
      )

    self.activation = config.activation
    self.gate_proj = linear(config.width, config.mlp_width)
    self.up_proj = linear(config.width, config.mlp_width)
    self.down_proj = linear(config.mlp_width, config.width)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, D] -> the same."""
    gate_BxLxF = ACTIVATIONS[self.activation](self.gate_proj(x_BxLxD))
    return self.down_proj(gate_BxLxF * self.up_proj(x_BxLxD))


class Linear(nnx.Module):
  """x W + b, plus the scaled x A B of an adapter if there is one.

  Attributes:
    weight: [in, out].
    bias: [out], or None.
    lora_a: [in, R], or None.
    lora_b: [R, out], or None.
    lora_scale: alpha / R, or alpha / sqrt(R) for a rank-stabilised adapter.
    lora_dropout: probability that an input of the adapter is dropped.
    lora_keys: keys of the dropout in this step; None: nothing is dropped.
  """

  def __init__(
    self,
    num_in: int,
    num_out: int,
    *,
    use_bias: bool,
    stddev: float,
    dtype: jnp.dtype,
    rngs: nnx.Rngs | None,
  ):
    self.weight = nnx.Param(_normal(rngs, (num_in, num_out), stddev, dtype))
    self.bias = nnx.Param(jnp.zeros(num_out, dtype)) if use_bias else None
    # nnx.data, since an adapter may replace None later.
    self.lora_a: LoRAParam | None = nnx.data(None)
    self.lora_b: LoRAParam | None = nnx.data(None)
    self.lora_scale = 0.0
    self.lora_dropout = 0.0
    self.lora_keys: DropoutKeys | None = nnx.data(None)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., out]."""
    precision = precision_of(x.dtype)
    # With all tokens on one axis, a weight's gradient is a single matmul,
    # without transposed copies of the activations.
    rows = x.reshape(-1, x.shape[-1])
    y = product(rows, self.weight[...])
    if self.bias is not None:
      y = y + self.bias[...]
    if self.lora_a is not None and self.lora_b is not None:
      a = self.lora_a[...].astype(x.dtype)
      b = self.lora_b[...].astype(x.dtype)
      if self.lora_keys is not None:
        dropped = _dropout(x, self.lora_keys[...], self.lora_dropout)
        rows = dropped.reshape(rows.shape)
      low = _narrow_product(rows, a) * self.lora_scale
      y = y + jnp.matmul(low, b, precision=precision)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _dropout(x_BxLxN: jax.Array, keys_BxL: jax.Array, rate: float) -> jax.Array:
  """Sets entries to zero at random; the mean stays the same.

  A token's mask depends on its own key alone, wherever in a batch it is.
  """

  def keep(key: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, 1 - rate, x_BxLxN.shape[-1:])

  kept_BxLxN = jnp.where(
    jax.vmap(jax.vmap(keep))(keys_BxL), x_BxLxN / (1 - rate), 0
  )
  return kept_BxLxN.astype(x_BxLxN.dtype)


class Embedding(nnx.Module):
  """Looks up each token's row of the table [V, D], and scales it."""

  def __init__(
    self,
    config: DecoderConfig,
    dtype: jnp.dtype,
    activation_dtype: jnp.dtype,
    rngs: nnx.Rngs | None,
  ):
    shape = (config.vocab_size, config.width)
    self.weight = nnx.Param(
      _normal(rngs, shape, config.initializer_range, dtype)
    )
    self.activation_dtype = activation_dtype
    # Gemma's reference code rounds the scale.
    self.scale = float(
      np.asarray(config.embedding_scale).astype(activation_dtype)
    )

  def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
    """[B, L] -> [B, L, D]."""
    x_BxLxD = jnp.take(self.weight[...], tokens_BxL, axis=0)
    return scaled(x_BxLxD.astype(self.activation_dtype), self.scale)


class Norm(nnx.Module):
  """RMSNorm with a scale, computed in float32.

  With config.norm_offset the weight is the scale's offset from one, and the
  product is float32, too.
  """

  def __init__(self, size: int, config: DecoderConfig, dtype: jnp.dtype):
    self.offset = config.norm_offset
    self.weight = nnx.Param(
      (jnp.zeros if self.offset else jnp.ones)(size, dtype)
    )
    self.eps = config.norm_eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., size] -> the same."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    if self.offset:
      return (y * (1.0 + self.weight[...].astype(jnp.float32))).astype(x.dtype)
    return y.astype(x.dtype) * self.weight[...]


def product(
  x: jax.Array, weight: jax.Array, dtype: jnp.dtype | None = None
) -> jax.Array:
  """x W, [..., in] x [in, out].

  Args:
    x: activations.
    weight: in the same dtype, or bfloat16 if the activations are float32.
    dtype: dtype of the result; None: that of the activations.
  """
  if x.dtype == weight.dtype:
    precision = precision_of(x.dtype)
    return jnp.matmul(
      x, weight, precision=precision, preferred_element_type=dtype
    )
  rows = split_product(x.reshape(-1, x.shape[-1]), weight)
  return rows.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _narrow_product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x W, [N, in] x [in, R], for a small R.

  The derivative that JAX has of W reads x by columns. On two CPU cores, this
  one takes a third of the time with R = 16.
  """
  return jnp.matmul(x, weight, precision=precision_of(x.dtype))


def _narrow_forward(
  x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _narrow_product(x, weight), (x, weight)


def _narrow_backward(
  inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, weight = inputs
  precision = precision_of(x.dtype)
  of_x = jnp.matmul(gradient, weight.T, precision=precision)
  # The barriers keep XLA from transposing x instead.
  gradient_RxN = jax.lax.optimization_barrier(gradient.T)
  of_weight_RxI = jax.lax.optimization_barrier(
    jnp.matmul(gradient_RxN, x, precision=precision)
  )
  return of_x, of_weight_RxI.T


_narrow_product.defvjp(_narrow_forward, _narrow_backward)


def scaled(x: jax.Array, factor: float) -> jax.Array:
  """x times a factor, rounded once."""
  if factor == 1.0:
    return x
  return (x.astype(jnp.float32) * factor).astype(x.dtype)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
  """x, smoothly limited to +-cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _normal(
  rngs: nnx.Rngs | None,
  shape: tuple[int, ...],
  stddev: float,
  dtype: jnp.dtype,
) -> jax.Array:
  if rngs is None:
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype))
  return stddev * jax.random.normal(rngs.params(), shape, dtype)


def precision_of(dtype: jnp.dtype) -> str | None:
  """'highest' for float32, whose precision TPUs and GPUs reduce by default."""
  return 'highest' if dtype == jnp.float32 else None
