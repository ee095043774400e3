"""A causal decoder in Flax NNX: Llama, Mistral, Qwen 2 and 3, OLMo 2.

Modules have the names that Hugging Face uses, so a parameter's path is the name
of its tensor. Matmuls use the dtype of the weights (with true float32 precision
if that is float32); norms, rope and softmax are always float32.
"""

import dataclasses
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.rope import rotate, rotations

# See Attention.max_scores.
MAX_SCORES = 2**26


class LoRAParam(nnx.Param):
  """A low-rank adapter's weight; nnx.split(decoder, LoRAParam, ...)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """Keys and values of the tokens so far.

  Attributes:
    keys: one [B, K, A, S] array per layer.
    values: one [B, K, S, A] array per layer.
    position_BxS: position in its row of each entry's token; -1 for padding and
      empty entries. Entries may be in any order.
    cache_index: the entry to write next, the same for all rows.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  position_BxS: jax.Array
  cache_index: jax.Array

  @property
  def length(self) -> int:
    """Entries per row."""
    return self.position_BxS.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """The result of a forward pass.

  Attributes:
    hidden_BxLxD: hidden states after the final norm, for `Decoder.logits`.
    features_BxLxD: hidden states of the requested layer.
    kv_cache: the cache with the new tokens, or None if none was given.
  """

  hidden_BxLxD: jax.Array
  features_BxLxD: jax.Array
  kv_cache: KVCache | None


class AttentionInputs(NamedTuple):
  """Inputs that the attention of all layers shares.

  Attributes:
    position_BxL: positions of the queries.
    position_BxS: positions of the keys; -1 for padding and empty entries.
    rotation: cosines and sines to rotate queries and keys by.
    cache_index: cache entry of the first new key; 0 without a cache.
    window: number of tokens a query attends to, including itself; None for all.
  """

  position_BxL: jax.Array
  position_BxS: jax.Array
  rotation: tuple[jax.Array, jax.Array]
  cache_index: jax.Array | int
  window: int | None

  def mask(self) -> jax.Array:
    """Bool [B, L, S], true where a query attends to a key."""
    # Positions count tokens, so padding takes up no part of a window.
    back_BxLxS = self.position_BxL[:, :, None] - self.position_BxS[:, None, :]
    mask_BxLxS = (back_BxLxS >= 0) & (self.position_BxS >= 0)[:, None, :]
    if self.window is None:
      return mask_BxLxS
    return mask_BxLxS & (back_BxLxS < self.window)


class Decoder(nnx.Module):
  """Embedding, layers, final norm and output layer, randomly initialised.

  `models.load_decoder` makes one from a checkpoint.
  """

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype: jax.typing.DTypeLike = jnp.float32,
  ):
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.embed_tokens = Embedding(config, self.dtype, rngs)
    self.layers = nnx.List(
      [Layer(config, self.dtype, rngs) for _ in range(config.num_layers)]
    )
    self.norm = Norm(config.width, config, self.dtype)
    self.lm_head = (
      None
      if config.tied
      else Linear(
        config.width,
        config.vocab_size,
        use_bias=False,
        stddev=config.initializer_range,
        dtype=self.dtype,
        rngs=rngs,
      )
    )

  def __call__(
    self,
    tokens: jax.Array,
    mask: jax.Array,
    cache: KVCache | None = None,
    layer: int = -1,
  ) -> Output:
    """Runs the layers.

    Positions do not count padding, so padding on either side changes nothing.
    Hidden states at padding are finite but meaningless.

    Args:
      tokens: [B, L] ids; any id may be used for padding.
      mask: [B, L], true at tokens, false at padding.
      cache: keys and values of earlier tokens, with L free entries.
      layer: the layer whose hidden states become the features, numbered as in
        transformers' hidden_states: 0 is the embedding, num_layers (or -1) the
        last layer after the final norm.

    Raises:
      ValueError: the model does not have this layer.
    """
    num_states = self.config.num_layers + 1
    if not -num_states <= layer < num_states:
      raise ValueError(
        f'layer is {layer}: this model has {-num_states} to {num_states - 1}'
      )
    layer %= num_states
    inputs = self._attention_inputs(mask.astype(bool), cache)
    x_BxLxD = self.embed_tokens(tokens)
    features_BxLxD = x_BxLxD
    keys, values = [], []
    for number, block in enumerate(self.layers):
      kv_cache = None
      if cache is not None:
        kv_cache = (cache.keys[number], cache.values[number])
      is_full = number in self.config.full_layers
      x_BxLxD, k_BxKxAxS, v_BxKxSxA = block(
        x_BxLxD, inputs._replace(window=None) if is_full else inputs, kv_cache
      )
      keys.append(k_BxKxAxS)
      values.append(v_BxKxSxA)
      if number + 1 == layer:
        features_BxLxD = x_BxLxD
    hidden_BxLxD = self.norm(x_BxLxD)
    if layer == self.config.num_layers:
      features_BxLxD = hidden_BxLxD
    if cache is not None:
      cache = KVCache(
        tuple(keys),
        tuple(values),
        inputs.position_BxS,
        cache.cache_index + tokens.shape[1],
      )
    return Output(hidden_BxLxD, features_BxLxD, cache)

  def _attention_inputs(
    self, mask_BxL: jax.Array, cache: KVCache | None
  ) -> AttentionInputs:
    cache_index: jax.Array | int = 0
    num_before_B = jnp.zeros(mask_BxL.shape[0], jnp.int32)
    if cache is not None:
      cache_index = cache.cache_index
      num_before_B = jnp.max(cache.position_BxS, axis=1) + 1
    position_BxL = jnp.maximum(
      num_before_B[:, None] + jnp.cumsum(mask_BxL, axis=1) - 1, 0
    )
    position_BxS = jnp.where(mask_BxL, position_BxL, -1)
    if cache is not None:
      position_BxS = jax.lax.dynamic_update_slice(
        cache.position_BxS, position_BxS, (0, cache_index)
      )
    return AttentionInputs(
      position_BxL=position_BxL,
      position_BxS=position_BxS,
      rotation=rotations(self.config.rope, self.config.head_dim, position_BxL),
      cache_index=cache_index,
      window=self.config.window,
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Logits over the vocabulary, float32: [..., D] -> [..., V]."""
    if self.lm_head is None:
      weight_DxV = self.embed_tokens.weight[...].T
    else:
      weight_DxV = self.lm_head.weight[...]
    return jnp.matmul(
      hidden,
      weight_DxV,
      precision=_precision(self.dtype),
      preferred_element_type=jnp.float32,
    )

  def init_cache(self, batch: int, length: int) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens and padding.

    Keys are [..., A, S] but values [..., S, A], so that both products of a
    decode step read memory contiguously.
    """
    config = self.config
    rows = (batch, config.num_kv_heads)
    key_shape = (*rows, config.head_dim, length)
    value_shape = (*rows, length, config.head_dim)
    return KVCache(
      keys=tuple(jnp.zeros(key_shape, self.dtype) for _ in self.layers),
      values=tuple(jnp.zeros(value_shape, self.dtype) for _ in self.layers),
      position_BxS=jnp.full((batch, length), -1, jnp.int32),
      cache_index=jnp.zeros((), jnp.int32),
    )


class Layer(nnx.Module):
  """Attention and gated MLP, each with a norm and a residual connection.

  Norms come before attention and MLP or, with norm_last, after them. In both
  cases checkpoints call the norm between the two post_attention_layernorm.
  """

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.norm_last = config.norm_last
    self.self_attn = Attention(config, dtype, rngs)
    self.post_attention_layernorm = Norm(config.width, config, dtype)
    self.mlp = Mlp(config, dtype, rngs)
    outer = Norm(config.width, config, dtype)
    if config.norm_last:
      self.post_feedforward_layernorm = outer
    else:
      self.input_layernorm = outer

  def __call__(
    self,
    x_BxLxD: jax.Array,
    inputs: AttentionInputs,
    kv_cache: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the new hidden states, and all keys and values.

    Args:
      x_BxLxD: hidden states.
      inputs: the inputs shared by all layers.
      kv_cache: this layer's keys and values of earlier tokens, if any.
    """
    y_BxLxD = x_BxLxD if self.norm_last else self.input_layernorm(x_BxLxD)
    y_BxLxD, k_BxKxAxS, v_BxKxSxA = self.self_attn(y_BxLxD, inputs, kv_cache)
    if self.norm_last:
      x_BxLxD = x_BxLxD + self.post_attention_layernorm(y_BxLxD)
      y_BxLxD = self.post_feedforward_layernorm(self.mlp(x_BxLxD))
    else:
      x_BxLxD = x_BxLxD + y_BxLxD
      y_BxLxD = self.mlp(self.post_attention_layernorm(x_BxLxD))
    return x_BxLxD + y_BxLxD, k_BxKxAxS, v_BxKxSxA


class Attention(nnx.Module):
  """Causal grouped-query attention.

  Attributes:
    max_scores: limit on the attention scores held at once, over all rows and
      heads, in floats; without it, memory would grow with the square of a
      prompt's length.
  """

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.head_dim = config.head_dim
    self.num_kv_heads = config.num_kv_heads
    self.max_scores = MAX_SCORES
    self.qk_norm = config.qk_norm

    def linear(num_in: int, num_out: int, use_bias: bool) -> Linear:
      return Linear(
        num_in,
        num_out,
        use_bias=use_bias,
        stddev=config.initializer_range,
        dtype=dtype,
        rngs=rngs,
      )

    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    self.q_proj = linear(config.width, q_width, config.qkv_bias)
    self.k_proj = linear(config.width, kv_width, config.qkv_bias)
    self.v_proj = linear(config.width, kv_width, config.qkv_bias)
    self.o_proj = linear(q_width, config.width, config.output_bias)
    if config.qk_norm == 'head':
      self.q_norm = Norm(config.head_dim, config, dtype)
      self.k_norm = Norm(config.head_dim, config, dtype)
    elif config.qk_norm == 'all':
      self.q_norm = Norm(q_width, config, dtype)
      self.k_norm = Norm(kv_width, config, dtype)

  def __call__(
    self,
    x_BxLxD: jax.Array,
    inputs: AttentionInputs,
    kv_cache: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes and returns the same as `Layer.__call__`."""
    q_BxLxHA, k_BxLxKA = self.q_proj(x_BxLxD), self.k_proj(x_BxLxD)
    if self.qk_norm == 'all':
      q_BxLxHA, k_BxLxKA = self.q_norm(q_BxLxHA), self.k_norm(k_BxLxKA)
    q_BxHxLxA, k_BxKxLxA = self._heads(q_BxLxHA), self._heads(k_BxLxKA)
    if self.qk_norm == 'head':
      q_BxHxLxA, k_BxKxLxA = self.q_norm(q_BxHxLxA), self.k_norm(k_BxKxLxA)
    q_BxHxLxA = rotate(q_BxHxLxA, inputs.rotation)
    k_BxKxAxS = rotate(k_BxKxLxA, inputs.rotation).swapaxes(2, 3)
    v_BxKxSxA = self._heads(self.v_proj(x_BxLxD))
    if kv_cache is not None:
      update, index = jax.lax.dynamic_update_slice, inputs.cache_index
      k_BxKxAxS = update(kv_cache[0], k_BxKxAxS, (0, 0, 0, index))
      v_BxKxSxA = update(kv_cache[1], v_BxKxSxA, (0, 0, index, 0))

    batch, _, length, head_dim = q_BxHxLxA.shape
    # G query heads share a key head.
    q_BxKxGxLxA = q_BxHxLxA.reshape(
      batch, self.num_kv_heads, -1, length, head_dim
    )
    attended_BxKxGxLxA = _attend(
      q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs, self.max_scores
    )
    merged_BxLxHA = (
      attended_BxKxGxLxA.reshape(batch, -1, length, head_dim)
      .swapaxes(1, 2)
      .reshape(batch, length, -1)
    )
    return self.o_proj(merged_BxLxHA), k_BxKxAxS, v_BxKxSxA

  def _heads(self, x_BxLxHA: jax.Array) -> jax.Array:
    """[B, L, H * A] -> [B, H, L, A]."""
    batch, length, _ = x_BxLxHA.shape
    return x_BxLxHA.reshape(batch, length, -1, self.head_dim).swapaxes(1, 2)


def _attend(
  q_BxKxGxLxA: jax.Array,
  k_BxKxAxS: jax.Array,
  v_BxKxSxA: jax.Array,
  inputs: AttentionInputs,
  max_scores: int,
) -> jax.Array:
  """Softmax attention, [B, K, G, L, A].

  Works in blocks of queries if there would be more than `max_scores` scores.
  """
  *heads, length, head_dim = q_BxKxGxLxA.shape
  most = max(max_scores // (math.prod(heads) * k_BxKxAxS.shape[-1]), 1)
  if length <= most:
    return _attend_block(q_BxKxGxLxA, k_BxKxAxS, v_BxKxSxA, inputs)
  size = next(n for n in range(most, 0, -1) if length % n == 0)

  # The backward pass recomputes scores instead of keeping them.
  @jax.checkpoint
  def attend_block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
    q_BxKxGxPxA, position_BxP = part
    block = inputs._replace(position_BxL=position_BxP)
    return _attend_block(q_BxKxGxPxA, k_BxKxAxS, v_BxKxSxA, block)

  q_BxKxGxNxPxA = q_BxKxGxLxA.reshape(*heads, -1, size, head_dim)
  position_BxNxP = inputs.position_BxL.reshape(heads[0], -1, size)
  attended_NxBxKxGxPxA = jax.lax.map(
    attend_block,
    (jnp.moveaxis(q_BxKxGxNxPxA, 3, 0), position_BxNxP.swapaxes(0, 1)),
  )
  return jnp.moveaxis(attended_NxBxKxGxPxA, 0, 3).reshape(q_BxKxGxLxA.shape)


def _attend_block(
  q_BxKxGxLxA: jax.Array,
  k_BxKxAxS: jax.Array,
  v_BxKxSxA: jax.Array,
  inputs: AttentionInputs,
) -> jax.Array:
  precision = _precision(q_BxKxGxLxA.dtype)
  score_BxKxGxLxS = jnp.einsum(
    'bkgla,bkas->bkgls',
    q_BxKxGxLxA,
    k_BxKxAxS,
    precision=precision,
    preferred_element_type=jnp.float32,
  ) / math.sqrt(q_BxKxGxLxA.shape[-1])
  # A finite value, so that a row of padding alone gives no NaN.
  score_BxKxGxLxS = jnp.where(
    inputs.mask()[:, None, None],
    score_BxKxGxLxS,
    jnp.finfo(jnp.float32).min,
  )
  return jnp.einsum(
    'bkgls,bksa->bkgla',
    jax.nn.softmax(score_BxKxGxLxS).astype(v_BxKxSxA.dtype),
    v_BxKxSxA,
    precision=precision,
  )


class Mlp(nnx.Module):
  """down(silu(gate(x)) * up(x))."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    def linear(num_in: int, num_out: int) -> Linear:
      return Linear(
        num_in,
        num_out,
        use_bias=config.mlp_bias,
        stddev=config.initializer_range,
        dtype=dtype,
        rngs=rngs,
      )

    self.gate_proj = linear(config.width, config.mlp_width)
    self.up_proj = linear(config.width, config.mlp_width)
    self.down_proj = linear(config.mlp_width, config.width)

  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, D] -> the same."""
    gate_BxLxF = jax.nn.silu(self.gate_proj(x_BxLxD))
    return self.down_proj(gate_BxLxF * self.up_proj(x_BxLxD))


class Linear(nnx.Module):
  """x W + b, plus the scaled x A B of an adapter if there is one.

  Attributes:
    weight: [in, out].
    bias: [out], or None.
    lora_a: [in, R], or None.
    lora_b: [R, out], or None.
    lora_scale: alpha / R.
  """

  def __init__(
    self,
    num_in: int,
    num_out: int,
    *,
    use_bias: bool,
    stddev: float,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.weight = nnx.Param(_normal(rngs, (num_in, num_out), stddev, dtype))
    self.bias = nnx.Param(jnp.zeros(num_out, dtype)) if use_bias else None
    # nnx.data, since an adapter may replace None later.
    self.lora_a: LoRAParam | None = nnx.data(None)
    self.lora_b: LoRAParam | None = nnx.data(None)
    self.lora_scale = 0.0

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., out]."""
    precision = _precision(x.dtype)
    # With all tokens on one axis, a weight's gradient is a single matmul,
    # without transposed copies of the activations.
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.matmul(rows, self.weight[...], precision=precision)
    if self.bias is not None:
      y = y + self.bias[...]
    if self.lora_a is not None and self.lora_b is not None:
      a = self.lora_a[...].astype(x.dtype)
      b = self.lora_b[...].astype(x.dtype)
      low = jnp.matmul(rows, a, precision=precision) * self.lora_scale
      y = y + jnp.matmul(low, b, precision=precision)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class Embedding(nnx.Module):
  """Looks up each token's row of the table [V, D]."""

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
    shape = (config.vocab_size, config.width)
    self.weight = nnx.Param(
      _normal(rngs, shape, config.initializer_range, dtype)
    )

  def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
    """[B, L] -> [B, L, D]."""
    return jnp.take(self.weight[...], tokens_BxL, axis=0)


class Norm(nnx.Module):
  """RMSNorm with a scale, computed in float32."""

  def __init__(self, size: int, config: DecoderConfig, dtype: jnp.dtype):
    self.weight = nnx.Param(jnp.ones(size, dtype))
    self.eps = config.norm_eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., size] -> the same."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * self.weight[...]


def _normal(
  rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float, dtype: jnp.dtype
) -> jax.Array:
  return stddev * jax.random.normal(rngs.params(), shape, dtype)


def _precision(dtype: jnp.dtype) -> str | None:
  """'highest' for float32, whose precision TPUs and GPUs reduce by default."""
  return 'highest' if dtype == jnp.float32 else None
