"""A causal decoder in Flax NNX, for every family of families.FAMILIES.

Modules have the names that Hugging Face uses, so a parameter's path is the name
of its tensor. Matmuls use the dtype of the activations (with true float32
precision if that is float32), which is that of the weights, or float32 over
bfloat16 weights. Norms, rope and softmax are always float32.
"""

from collections.abc import Sequence
import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from edsft_jax.models import layer_loop
from edsft_jax.models.attention import (
  QUERY_BLOCK,
  Attention,
  AttentionInputs,
  lengths,
  positions,
)
from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.modules import (
  Embedding,
  Linear,
  Mlp,
  Norm,
  capped,
  product,
  scaled,
)
from edsft_jax.models.rope import LENGTH_KINDS, rotations


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


class Decoder(nnx.Module):
  """Embedding, layers, final norm and output layer, randomly initialised.

  `models.load_decoder` makes one from a checkpoint.
  """

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs | None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    activation_dtype: jax.typing.DTypeLike | None = None,
  ):
    """Initialises the weights.

    Args:
      config: the architecture.
      rngs: for the weights; None leaves shapes in their place, to be replaced.
      dtype: dtype of the weights.
      activation_dtype: dtype of activations, cache and matmuls; None: that of
        the weights. Another one must be float32, over bfloat16 weights.
    """
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.activation_dtype = jnp.dtype(activation_dtype or dtype)
    self.embed_tokens = Embedding(
      config, self.dtype, self.activation_dtype, rngs
    )
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

  @property
  def dtype_name(self) -> str:
    """The dtypes as the option model.dtype spells them."""
    same = self.activation_dtype == self.dtype
    return self.dtype.name if same else f'{self.dtype.name}_weights'

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
    inputs = self._attention_inputs(mask.astype(bool), cache)
    return self._run(tokens, self._inputs_of_layers(inputs), cache, layer)

  def packed(
    self,
    tokens: jax.Array,
    segments: jax.Array,
    cache: KVCache | None = None,
    layer: int = -1,
  ) -> Output:
    """Runs the layers on rows of several sequences.

    No token attends to another sequence, and positions count from the start of
    each, so that a sequence has the hidden states that it has alone.

    Args:
      tokens: [B, L] ids.
      segments: int32 [B, L], the number of the sequence of each token, from 1
        and rising; 0: padding, before the first or after the last.
      cache: keys and values of what all sequences of a row start with, with L
        free entries at its end; None: nothing.
      layer: see `__call__`.

    Returns:
      The output. Its cache has the sequences of a row one after the other, and
      is not for further tokens.

    Raises:
      ValueError: the model does not have this layer.
    """
    inputs, length_BxL = self._packed_inputs(segments, cache)
    inputs_of_layers = self._inputs_of_layers(inputs, length_BxL)
    return self._run(tokens, inputs_of_layers, cache, layer)

  def hidden_of_packed(
    self, tokens: jax.Array, segments: jax.Array, remat: bool
  ) -> jax.Array:
    """The hidden states of `packed` after the final norm, [B, L, D].

    Args:
      tokens: [B, L] ids.
      segments: see `packed`.
      remat: keep only the inputs of layers for the backward pass, which then
        computes them again.
    """
    inputs, length_BxL = self._packed_inputs(segments, None)
    inputs = dataclasses.replace(inputs, query_block=QUERY_BLOCK)
    x_BxLxD = layer_loop.run(
      self.layers,
      self._inputs_of_layers(inputs, length_BxL),
      self.embed_tokens(tokens),
      remat,
    )
    return self.norm(x_BxLxD)

  def _run(
    self,
    tokens: jax.Array,
    inputs_of_layers: Sequence[AttentionInputs],
    cache: KVCache | None,
    layer: int,
  ) -> Output:
    """Runs the layers; see `__call__`."""
    num_states = self.config.num_layers + 1
    if not -num_states <= layer < num_states:
      raise ValueError(
        f'layer is {layer}: this model has {-num_states} to {num_states - 1}'
      )
    layer %= num_states
    x_BxLxD = self.embed_tokens(tokens)
    features_BxLxD = x_BxLxD
    keys, values = [], []
    for number, block in enumerate(self.layers):
      kv_cache = None
      if cache is not None:
        kv_cache = (cache.keys[number], cache.values[number])
      x_BxLxD, k_BxKxAxS, v_BxKxSxA = layer_loop.run_layer(
        *nnx.split(block), x_BxLxD, inputs_of_layers[number], kv_cache
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
        inputs_of_layers[0].position_BxS,
        cache.cache_index + tokens.shape[1],
      )
    return Output(hidden_BxLxD, features_BxLxD, cache)

  def _attention_inputs(
    self, mask_BxL: jax.Array, cache: KVCache | None
  ) -> AttentionInputs:
    """Inputs of a layer without a window, for rows of one sequence each."""
    num_before_Bx1 = _num_before(cache)
    position_BxL = jnp.maximum(
      num_before_Bx1 + jnp.cumsum(mask_BxL, axis=1) - 1, 0
    )
    return self._shared_inputs(
      position_BxL, jnp.where(mask_BxL, position_BxL, -1), cache
    )

  def _packed_inputs(
    self, segments_BxL: jax.Array, cache: KVCache | None
  ) -> tuple[AttentionInputs, jax.Array | None]:
    """Inputs of a layer without a window, and lengths if rope needs them."""
    position_BxL = _num_before(cache) + positions(segments_BxL)
    length_BxL = None
    ropes = self.config.window_rope, self.config.rope
    if any(rope is not None and rope.kind in LENGTH_KINDS for rope in ropes):
      length_BxL = lengths(segments_BxL, position_BxL)
    inputs = self._shared_inputs(
      position_BxL,
      jnp.where(segments_BxL > 0, position_BxL, -1),
      cache,
      length_BxL,
    )
    num_shared = inputs.position_BxS.shape[1] - segments_BxL.shape[1]
    inputs = dataclasses.replace(
      inputs,
      segment_BxL=segments_BxL,
      segment_BxS=jnp.pad(segments_BxL, ((0, 0), (num_shared, 0))),
    )
    return inputs, length_BxL

  def _shared_inputs(
    self,
    position_BxL: jax.Array,
    new_BxL: jax.Array,
    cache: KVCache | None,
    length_BxL: jax.Array | None = None,
  ) -> AttentionInputs:
    """Inputs of a layer without a window.

    Args:
      position_BxL: positions of the tokens.
      new_BxL: the same, but -1 for padding.
      cache: what the rows have read before.
      length_BxL: lengths of the tokens' sequences; None: those of the rows.
    """
    config = self.config
    position_BxS = new_BxL
    if cache is not None:
      position_BxS = jax.lax.dynamic_update_slice(
        cache.position_BxS, new_BxL, (0, cache.cache_index)
      )
    return AttentionInputs(
      position_BxL=position_BxL,
      position_BxS=position_BxS,
      rotation=rotations(
        config.rope, config.head_dim, position_BxL, length_BxL
      ),
      cache_index=0 if cache is None else cache.cache_index,
      segment_BxL=None,
      segment_BxS=None,
      window=None,
      score_divisor=1 / config.score_scale
      if config.score_scale
      else math.sqrt(config.head_dim),
      score_cap=config.score_cap,
      query_block=None,
    )

  def _inputs_of_layers(
    self, full: AttentionInputs, length_BxL: jax.Array | None = None
  ) -> list[AttentionInputs]:
    """Each layer's inputs, from those of a layer without a window."""
    config = self.config
    windowed = full
    if config.window is not None:
      windowed = dataclasses.replace(full, window=config.window)
    if config.window_rope is not None:
      rotation = rotations(
        config.window_rope, config.head_dim, full.position_BxL, length_BxL
      )
      windowed = dataclasses.replace(windowed, rotation=rotation)
    inputs = [
      full if number in config.full_layers else windowed
      for number in range(config.num_layers)
    ]
    for number in config.no_rope_layers:
      inputs[number] = dataclasses.replace(inputs[number], rotation=None)
    return inputs

  @property
  def output_weight(self) -> jax.Array:
    """Weight of the output layer; [V, D] if it is the embedding's."""
    if self.lm_head is None:
      return self.embed_tokens.weight[...]
    return self.lm_head.weight[...]

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Logits over the vocabulary, float32: [..., D] -> [..., V]."""
    return output_logits(self.config, hidden, self.output_weight)

  def init_cache(self, batch: int, length: int) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens and padding.

    Keys are [..., A, S] but values [..., S, A], so that both products of a
    decode step read memory contiguously.
    """
    config, dtype = self.config, self.activation_dtype
    rows = (batch, config.num_kv_heads)
    key_shape = (*rows, config.head_dim, length)
    value_shape = (*rows, length, config.head_dim)
    return KVCache(
      keys=tuple(jnp.zeros(key_shape, dtype) for _ in self.layers),
      values=tuple(jnp.zeros(value_shape, dtype) for _ in self.layers),
      position_BxS=jnp.full((batch, length), -1, jnp.int32),
      cache_index=jnp.zeros((), jnp.int32),
    )


def output_logits(
  config: DecoderConfig, hidden: jax.Array, weight: jax.Array
) -> jax.Array:
  """`Decoder.logits` as a function of `Decoder.output_weight`."""
  return logits_of_product(config, output_product(config, hidden, weight))


def output_product(
  config: DecoderConfig, hidden: jax.Array, weight: jax.Array
) -> jax.Array:
  """The product in the output layer, float32: [..., D] -> [..., V]."""
  weight_DxV = weight.T if config.tied else weight
  return product(hidden, weight_DxV, jnp.dtype(jnp.float32))


def logits_of_product(config: DecoderConfig, logits: jax.Array) -> jax.Array:
  """Logits from the product in the output layer."""
  if config.logit_divisor != 1.0:
    logits = logits / config.logit_divisor
  return capped(logits, config.logit_cap)


def _num_before(cache: KVCache | None) -> jax.Array | int:
  """How many tokens each row has read before, [B, 1]."""
  if cache is None:
    return 0
  return jnp.max(cache.position_BxS, axis=1, keepdims=True) + 1


# DecoderConfig.norms -> names, in checkpoints, of a layer's norms: before
# attention, after it, before the MLP, after it.
NORMS: dict[str, tuple[str | None, ...]] = {
  'before': ('input_layernorm', None, 'post_attention_layernorm', None),
  'after': (
    None,
    'post_attention_layernorm',
    None,
    'post_feedforward_layernorm',
  ),
  'both': (
    'input_layernorm',
    'post_attention_layernorm',
    'pre_feedforward_layernorm',
    'post_feedforward_layernorm',
  ),
}


class Layer(nnx.Module):
  """Attention and gated MLP, each with norms and a residual connection."""

  def __init__(
    self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs | None
  ):
    self.norms = config.norms
    self.residual_scale = config.residual_scale
    self.self_attn = Attention(config, dtype, rngs)
    self.mlp = Mlp(config, dtype, rngs)
    for name in NORMS[config.norms]:
      if name is not None:
        setattr(self, name, Norm(config.width, config, dtype))

  def __call__(
    self,
    x_BxLxD: jax.Array,
    inputs: AttentionInputs,
    kv_cache: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the new hidden states, and all keys and values.

    Args:
      x_BxLxD: hidden states.
      inputs: the inputs shared by all layers of this kind.
      kv_cache: this layer's keys and values of earlier tokens, if any.
    """
    y_BxLxD = self._norm(0, x_BxLxD)
    y_BxLxD, k_BxKxAxS, v_BxKxSxA = self.self_attn(y_BxLxD, inputs, kv_cache)
    x_BxLxD = x_BxLxD + scaled(self._norm(1, y_BxLxD), self.residual_scale)
    y_BxLxD = self.mlp(self._norm(2, x_BxLxD))
    y_BxLxD = scaled(self._norm(3, y_BxLxD), self.residual_scale)
    return x_BxLxD + y_BxLxD, k_BxKxAxS, v_BxKxSxA

  def _norm(self, place: int, x_BxLxD: jax.Array) -> jax.Array:
    """Normalises if there is a norm at this place of NORMS."""
    name = NORMS[self.norms][place]
    return x_BxLxD if name is None else getattr(self, name)(x_BxLxD)
