"""The model families: what each architecture fixes, what config.json sets."""

import dataclasses

FULL, SLIDING = 'full_attention', 'sliding_attention'
SQRT_WIDTH = 'sqrt(width)'


@dataclasses.dataclass(frozen=True)
class Family:
  """A row: how an architecture differs from Llama.

  A text that stands for a number or a switch is the field of config.json that
  sets it; '' leaves it out of the model. A field that no row and no list in
  json_fields.py names is refused.

  Attributes:
    model_type: model_type in config.json.
    qkv_bias: whether q, k and v projections have biases, or the field that says
      so.
    output_bias: the same for the o projection.
    mlp_bias: the same for gate, up and down projections.
    qk_norm: see DecoderConfig.
    norms: see DecoderConfig.
    norm_offset: see DecoderConfig.
    activation: the activation in transformers' terms.
    activation_field: the field that names it.
    embedding_scale: SQRT_WIDTH, or the field of the embedding's factor.
    residual_scale: field of the factor of what attention and MLP add.
    score_scale: field of the factor of attention scores.
    score_size: field of the size whose inverse square root is that factor.
    score_cap: field of the soft cap of attention scores.
    logit_divisor: field of the divisor of the logits.
    logit_cap: field of the soft cap of the logits.
    window: which layers have a sliding window: 'none', 'all' (unless
      sliding_window is null), 'switched' (if use_sliding_window is true, as set
      by layer_types or else max_window_layers) or 'typed' (as set by
      layer_types).
    full_every: typed windows without layer_types: each layer whose number, from
      1, is a multiple has no window; 0: all have one.
    full_every_field: the field that sets it.
    sized_window: a null sliding_window is an error.
    theta: rope_theta if the file has none.
    window_theta: layers with a window have a rope of their own, whose theta is
      this field in the format of transformers 4.
    no_rope: layers without rope: '' (none), 'full' (those without a window, if
      there are others) or 'listed' (zeros of no_rope_layers).
    partial_rotary: partial_rotary_factor may be below 1.
    fused: checkpoints store q, k and v as one tensor, and gate and up.
    tied: tie_word_embeddings if the file has none.
    original_context: original_max_position_embeddings if config.json has none,
      whatever the rope's fields say; 0: as they say.
    published_code: auto_map's code, which transformers has taken over.
    required: fields that must be present; transformers' default for them only
      fits one size of model.
    present: fields that must be present, and may be null.
  """

  model_type: str
  qkv_bias: bool | str = False
  output_bias: bool | str = False
  mlp_bias: bool | str = False
  qk_norm: str = 'none'
  norms: str = 'before'
  norm_offset: bool = False
  activation: str = 'silu'
  activation_field: str = 'hidden_act'
  embedding_scale: str = ''
  residual_scale: str = ''
  score_scale: str = ''
  score_size: str = ''
  score_cap: str = ''
  logit_divisor: str = ''
  logit_cap: str = ''
  window: str = 'none'
  full_every: int = 0
  full_every_field: str = ''
  sized_window: bool = False
  theta: float = 10000.0
  window_theta: str = ''
  no_rope: str = ''
  partial_rotary: bool = False
  fused: bool = False
  tied: bool = False
  original_context: int = 0
  published_code: tuple[str, ...] = ()
  required: tuple[str, ...] = ()
  present: tuple[str, ...] = ()


_KV = 'num_key_value_heads'
_GEMMA = Family(
  'gemma2',
  qkv_bias='attention_bias',
  output_bias='attention_bias',
  norms='both',
  norm_offset=True,
  activation='gelu_pytorch_tanh',
  activation_field='hidden_activation',
  embedding_scale=SQRT_WIDTH,
  score_size='query_pre_attn_scalar',
  logit_cap='final_logit_softcapping',
  window='typed',
  sized_window=True,
  tied=True,
  required=(_KV, 'head_dim', 'query_pre_attn_scalar'),
)
FAMILIES = {
  'LlamaForCausalLM': Family(
    'llama',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    mlp_bias='mlp_bias',
  ),
  'MistralForCausalLM': Family('mistral', window='all', required=(_KV,)),
  'Qwen2ForCausalLM': Family(
    'qwen2', qkv_bias=True, window='switched', required=(_KV,)
  ),
  'Qwen3ForCausalLM': Family(
    'qwen3',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    qk_norm='head',
    window='switched',
    required=(_KV, 'head_dim'),
  ),
  'Olmo2ForCausalLM': Family(
    'olmo2',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    qk_norm='all',
    norms='after',
  ),
  'Olmo3ForCausalLM': Family(
    'olmo3',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    qk_norm='all',
    norms='after',
    window='typed',
    full_every=4,
    sized_window=True,
    theta=500000.0,
    window_theta='rope_theta',
  ),
  'SmolLM3ForCausalLM': Family(
    'smollm3',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    mlp_bias='mlp_bias',
    window='switched',
    theta=2000000.0,
    no_rope='listed',
    tied=True,
    required=(_KV,),
  ),
  'Exaone4ForCausalLM': Family(
    'exaone4',
    qk_norm='head',
    norms='after',
    window='typed',
    full_every=4,
    full_every_field='sliding_window_pattern',
    no_rope='full',
    required=(_KV,),
  ),
  'Phi3ForCausalLM': Family(
    'phi3',
    window='all',
    partial_rotary=True,
    fused=True,
    original_context=4096,
    published_code=(
      'configuration_phi3.Phi3Config',
      'modeling_phi3.Phi3ForCausalLM',
    ),
  ),
  'GraniteForCausalLM': Family(
    'granite',
    qkv_bias='attention_bias',
    output_bias='attention_bias',
    mlp_bias='mlp_bias',
    embedding_scale='embedding_multiplier',
    residual_scale='residual_multiplier',
    score_scale='attention_multiplier',
    logit_divisor='logits_scaling',
    required=(
      'embedding_multiplier',
      'residual_multiplier',
      'attention_multiplier',
      'logits_scaling',
    ),
  ),
  'MinistralForCausalLM': Family('ministral', window='typed', required=(_KV,)),
  'SeedOssForCausalLM': Family(
    'seed_oss',
    qkv_bias='attention_bias',
    output_bias='attention_out_bias',
    mlp_bias='mlp_bias',
    required=(_KV, 'head_dim', 'attention_bias'),
  ),
  'Gemma2ForCausalLM': dataclasses.replace(
    _GEMMA,
    score_cap='attn_logit_softcapping',
    full_every=2,
    present=('attn_logit_softcapping', 'final_logit_softcapping'),
  ),
  'Gemma3ForCausalLM': dataclasses.replace(
    _GEMMA,
    model_type='gemma3_text',
    qk_norm='head',
    full_every=6,
    full_every_field='sliding_window_pattern',
    theta=1e6,
    window_theta='rope_local_base_freq',
  ),
}
