"""Configuration of the decoder: sizes, rotary embedding, switches."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding.

  Attributes:
    theta: base of the wavelengths.
    kind: 'default' | 'linear' | 'dynamic' | 'llama3' | 'yarn' | 'longrope'.
    partial: share of a head's dimensions that rotate, the first ones.
    factor: by how much the other kinds stretch the context.
    low_freq_factor: llama3: wavelengths above original_context / this are
      stretched by the whole factor.
    high_freq_factor: llama3: wavelengths below original_context / this are
      unchanged.
    original_context: dynamic, llama3, yarn, longrope: the context before
      stretching.
    beta_fast: yarn: dimensions that rotate more often than this within the
      original context are unchanged.
    beta_slow: yarn: dimensions that rotate less often than this are stretched
      by the whole factor.
    truncate: yarn: rounds these two limits to whole dimensions.
    attention_factor: yarn, longrope: factor of cosine and sine.
    short_factors: longrope: by how much each pair of dimensions is stretched in
      rows within the original context.
    long_factors: longrope: the same for longer rows.
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
  partial: float = 1.0
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()

  def rotary_dim(self, head_dim: int) -> int:
    """How many of a head's dimensions rotate."""
    return int(head_dim * self.partial)


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
    architecture: one of families.FAMILIES [architectures].
    norm_eps: [rms_norm_eps].
    rope: rotary embedding [rope_theta, rope_scaling or rope_parameters].
    window_rope: that of layers with a window; None: the same.
    no_rope_layers: indices of the layers without rope [no_rope_layers].
    tied: the output layer shares the embedding's weights
      [tie_word_embeddings].
    context: longest sequence [max_position_embeddings; dynamic rope: times its
      factor; longrope: original_max_position_embeddings, since the keys of a
      row that grows beyond it would have to be computed again].
    qkv_bias: q, k and v projections have biases.
    output_bias: the o projection has one.
    mlp_bias: gate, up and down projections have biases.
    qk_norm: normalisation of queries and keys before rope: 'none', 'head' (each
      head separately) or 'all' (all heads together).
    fused: checkpoints store q, k and v as one tensor, and gate and up.
    norms: where attention and MLP have norms: 'before', 'after' or 'both'.
    norm_offset: the weights of norms are offsets from one.
    activation: of the MLP: 'silu' or 'gelu_pytorch_tanh' [hidden_act or
      hidden_activation].
    embedding_scale: factor of the embeddings, rounded to their dtype.
    residual_scale: factor of what attention and MLP add to the residual stream
      [residual_multiplier].
    score_scale: factor of attention scores; None: 1 / sqrt(head_dim)
      [query_pre_attn_scalar ** -0.5, attention_multiplier].
    score_cap: s becomes score_cap * tanh(s / score_cap), for attention scores
      [attn_logit_softcapping].
    logit_divisor: divisor of the logits [logits_scaling].
    logit_cap: the same as score_cap for logits [final_logit_softcapping].
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
  window_rope: Rope | None = None
  no_rope_layers: tuple[int, ...] = ()
  tied: bool = False
  context: int = 2048
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = 'none'
  fused: bool = False
  norms: str = 'before'
  norm_offset: bool = False
  activation: str = 'silu'
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  score_scale: float | None = None
  score_cap: float | None = None
  logit_divisor: float = 1.0
  logit_cap: float | None = None
  window: int | None = None
  full_layers: tuple[int, ...] = ()
  initializer_range: float = 0.02
  bos_id: int | None = 1
  eos_ids: tuple[int, ...] = (2,)
