"""Configuration of decoders: model families, rotary embedding, sizes."""

import dataclasses

FULL, SLIDING = 'full_attention', 'sliding_attention'


@dataclasses.dataclass(frozen=True)
class Family:
  """What an architecture fixes, and which config.json fields set the rest.

  Attributes:
    model_type: model_type in config.json.
    qkv_bias: whether q, k and v projections have biases, or the name of the
      field that says so.
    output_bias: the same for the o projection.
    mlp_bias: the same for gate, up and down projections.
    qk_norm: see DecoderConfig.
    norm_last: see DecoderConfig.
    window: which layers have a sliding window: 'none', 'all' (unless
      sliding_window is null), or 'some' (as set by use_sliding_window,
      layer_types or max_window_layers).
    required: fields that must be present; transformers' default for them only
      fits one size of model.
  """

  model_type: str
  qkv_bias: bool | str = False
  output_bias: bool | str = False
  mlp_bias: bool | str = False
  qk_norm: str = 'none'
  norm_last: bool = False
  window: str = 'none'
  required: tuple[str, ...] = ()


_KV = 'num_key_value_heads'
FAMILIES = {
  'LlamaForCausalLM': Family(
    'llama',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    mlp_bias='mlp_bias',
  ),
  'MistralForCausalLM': Family('mistral', window='all', required=(_KV,)),
  'Qwen2ForCausalLM': Family(
    'qwen2', qkv_bias=True, window='some', required=(_KV,)
  ),
  'Qwen3ForCausalLM': Family(
    'qwen3',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    qk_norm='head',
    window='some',
    required=(_KV, 'head_dim'),
  ),
  'Olmo2ForCausalLM': Family(
    'olmo2',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    qk_norm='all',
    norm_last=True,
  ),
}
ACTIVATIONS = ('silu',)
# Rope type -> required fields besides theta.
ROPE_KINDS = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
  'yarn': ('factor',),
}
# Rope type -> optional fields.
ROPE_OPTIONS = {
  'yarn': {
    'attention_factor',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
    'truncate',
  },
}
ROPE_COMMON = {
  'type',
  'rope_type',
  'rope_theta',
  'partial_rotary_factor',
  'original_max_position_embeddings',
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding.

  Attributes:
    theta: base of the wavelengths.
    kind: 'default' | 'linear' | 'dynamic' | 'llama3' | 'yarn'.
    factor: by how much the other kinds stretch the context.
    low_freq_factor: llama3: wavelengths above original_context / this are
      stretched by the whole factor.
    high_freq_factor: llama3: wavelengths below original_context / this are
      unchanged.
    original_context: dynamic, llama3, yarn: the context before stretching.
    beta_fast: yarn: dimensions that rotate more often than this within the
      original context are unchanged.
    beta_slow: yarn: dimensions that rotate less often than this are stretched
      by the whole factor.
    truncate: yarn: rounds these two limits to whole dimensions.
    attention_factor: yarn: factor of cosine and sine.
  """

  theta: float = 10000.0
  kind: str = 'default'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_context: int = 8192
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The decoder's configuration; names in config.json in brackets.

  Attributes:
    vocab_size: rows of the embedding [vocab_size].
    width: width of the residual stream [hidden_size].
    mlp_width: width of the gated MLP [intermediate_size].
    num_layers: [num_hidden_layers].
    num_heads: query heads [num_attention_heads].
    num_kv_heads: key and value heads [num_key_value_heads].
    head_dim: width of one head [head_dim, else width / num_heads].
    architecture: one of FAMILIES [architectures].
    norm_eps: [rms_norm_eps].
    rope: rotary embedding [rope_theta, rope_scaling or rope_parameters].
    tied: the output layer shares the embedding's weights
      [tie_word_embeddings].
    context: longest sequence [max_position_embeddings; dynamic rope: times its
      factor].
    qkv_bias: q, k and v projections have biases.
    output_bias: the o projection has one.
    mlp_bias: gate, up and down projections have biases.
    qk_norm: normalisation of queries and keys before rope: 'none', 'head' (each
      head separately) or 'all' (all heads together).
    norm_last: norms come after attention and MLP instead of before.
    window: number of tokens a position attends to, including itself; None: all.
    full_layers: indices of the layers without a window, if there is one.
    initializer_range: standard deviation of newly initialised weights.
    bos_id: begin-of-sequence id, if any [bos_token_id].
    eos_ids: ids that end a sequence [eos_token_id].
  """

  vocab_size: int
  width: int
  mlp_width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  architecture: str = 'LlamaForCausalLM'
  norm_eps: float = 1e-5
  rope: Rope = Rope()
  tied: bool = False
  context: int = 2048
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = 'none'
  norm_last: bool = False
  window: int | None = None
  full_layers: tuple[int, ...] = ()
  initializer_range: float = 0.02
  bos_id: int | None = 1
  eos_ids: tuple[int, ...] = (2,)
