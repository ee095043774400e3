"""A checkpoint's config.json -> DecoderConfig, strictly, and back.

Reads the format of transformers 4 (rope_theta, rope_scaling, torch_dtype) and
that of transformers 5 (rope_parameters, dtype). A field that the decoder cannot
compute exactly is an error, never approximated, and so is an unknown one.
"""

import json
import math
import pathlib
from typing import Any

from edsft_jax import errors
from edsft_jax.models import diagnosis, layers_json, rope_json
from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.families import FAMILIES, SQRT_WIDTH, Family
from edsft_jax.models.json_fields import Fields

# Activations, in transformers' terms; some names mean the same.
_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu_pytorch_tanh': 'gelu_pytorch_tanh',
}
# DecoderConfig's numbers that a field of config.json sets as they are.
_SCALES = (
  'residual_scale',
  'score_scale',
  'score_cap',
  'logit_divisor',
  'logit_cap',
)


def read_config(path: str | pathlib.Path) -> DecoderConfig:
  """Reads config.json of a model directory.

  Raises:
    InputError: naming the file and the field.
  """
  file = pathlib.Path(path) / 'config.json'
  if not file.exists():
    diagnosis.refuse_adapter(file.parent)
  fields = read_json_object(file)
  return _Reader(Fields(file, fields)).decoder_config()


def read_json_object(file: pathlib.Path) -> dict[str, Any]:
  """Reads the object in a JSON file.

  Raises:
    InputError: the file is missing, or does not hold one.
  """
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise errors.InputError(
      f'{file} does not exist: give a Hugging Face model directory'
    ) from None
  except (OSError, ValueError, RecursionError) as error:
    diagnosis.refuse_pointer(file)
    raise errors.InputError(
      f'{file} is not readable JSON: {error}'.replace('\n', ' ')
    ) from None
  if not isinstance(value, dict):
    raise errors.InputError(f'{file} does not hold a JSON object')
  return value


def parse_eos_ids(value: Any, where: str) -> tuple[int, ...]:
  """Parses eos_token_id, which may be absent, an id or a list of ids."""
  ids = [] if value is None else value if isinstance(value, list) else [value]
  if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
    raise errors.InputError(
      f'{where}: eos_token_id {value!r} is not a token id'
    )
  return tuple(ids)


def to_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
  """config.json for a decoder, in the older format if it can say everything.

  Raises:
    ValueError: config.json cannot express `config` for this architecture.
  """
  family = FAMILIES[config.architecture]
  context = config.context
  if config.rope.kind == 'dynamic':
    context = config.rope.original_context
  eos_ids = config.eos_ids
  fields = {
    'architectures': [config.architecture],
    'model_type': family.model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'intermediate_size': config.mlp_width,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    family.activation_field: config.activation,
    'rms_norm_eps': config.norm_eps,
    'max_position_embeddings': context,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.initializer_range,
    'bos_token_id': config.bos_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
    # Otherwise transformers takes its class's, which may exceed vocab_size.
    'pad_token_id': None,
    'torch_dtype': dtype,
    **rope_json.write_ropes(config.rope, config.window_rope),
    **layers_json.write_layers(config, family),
  }
  for name in ('qkv_bias', 'output_bias', 'mlp_bias', *_SCALES):
    if isinstance(field := getattr(family, name), str) and field:
      fields[field] = getattr(config, name)
  if family.embedding_scale not in ('', SQRT_WIDTH):
    fields[family.embedding_scale] = config.embedding_scale
  if family.score_size and config.score_scale is not None:
    # Twelve digits hide the rounding of the power.
    size = float(f'{config.score_scale**-2:.12g}')
    fields[family.score_size] = int(size) if size.is_integer() else size
  reader = _Reader(Fields(pathlib.Path('config.json'), fields))
  if reader.decoder_config() != config:
    raise ValueError(f'{config.architecture} has no config.json for {config}')
  return fields


class _Reader:
  """Reads the decoder's configuration from the fields of a config.json."""

  def __init__(self, fields: Fields):
    self._fields = fields

  def decoder_config(self) -> DecoderConfig:
    fields = self._fields
    architecture = self._architecture()
    family = FAMILIES[architecture]
    for name in family.required:
      fields.value(name)
    for name in family.present:
      fields.refuse_absence(name)
    num_heads, num_kv_heads, width, head_dim = self._sizes()
    num_layers = fields.integer('num_hidden_layers')
    layers = layers_json.read_layers(fields, family, num_layers)
    context = fields.integer('max_position_embeddings')
    rope, window_rope = rope_json.read_ropes(fields, family, context, head_dim)
    if rope.kind == 'dynamic':
      context = int(context * max(rope.factor, 1.0))
    if rope.kind == 'longrope':
      context = min(context, rope.original_context)
    config = DecoderConfig(
      vocab_size=fields.integer('vocab_size'),
      width=width,
      mlp_width=fields.integer('intermediate_size'),
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      architecture=architecture,
      norm_eps=fields.number('rms_norm_eps'),
      rope=rope,
      window_rope=window_rope,
      tied=fields.boolean('tie_word_embeddings', family.tied),
      context=context,
      qkv_bias=self._bias(family.qkv_bias),
      output_bias=self._bias(family.output_bias),
      mlp_bias=self._bias(family.mlp_bias),
      qk_norm=family.qk_norm,
      fused=family.fused,
      norms=family.norms,
      norm_offset=family.norm_offset,
      activation=self._activation(family),
      initializer_range=fields.number('initializer_range', 0.02),
      bos_id=self._bos_id(),
      eos_ids=parse_eos_ids(fields.get('eos_token_id'), str(fields.file)),
      window=layers.window,
      full_layers=layers.full_layers,
      no_rope_layers=layers.no_rope_layers,
      **self._scales(family, width),
    )
    fields.refuse_unread(architecture)
    return config

  def _architecture(self) -> str:
    fields = self._fields
    architectures = fields.get('architectures')
    if architectures is None:
      raise fields.error('architectures', 'is missing')
    if not (
      isinstance(architectures, list)
      and len(architectures) == 1
      and architectures[0] in tuple(FAMILIES)
    ):
      remedy = ''
      if fields.get('text_config') is not None:
        remedy = f'; if its text model is, {diagnosis.SAVE_TEXT}'
      raise fields.error(
        'architectures',
        f'{architectures} is not one of {tuple(FAMILIES)}{remedy}',
      )
    if fields.get('quantization_config') is not None:
      raise fields.error(
        'quantization_config',
        'quantized weights are not supported: dequantize them',
      )
    family = FAMILIES[architectures[0]]
    # transformers goes by this field, not by architectures.
    if fields.get('model_type') not in (None, family.model_type):
      raise fields.error(
        'model_type',
        f'{fields.get("model_type")!r} is not {family.model_type!r}, which '
        f'{architectures[0]} needs',
      )
    self._check_code(family)
    return architectures[0]

  def _check_code(self, family: Family) -> None:
    code = self._fields.get('auto_map') or {}
    if not isinstance(code, dict):
      raise self._fields.error('auto_map', f'{code!r} is not an object')
    for name, where in code.items():
      # The tokenizer is read from its own files. Finetuned models name the
      # repository of the code first, as "owner/model--".
      file = where.rpartition('--')[2] if isinstance(where, str) else where
      if name != 'AutoTokenizer' and file not in family.published_code:
        raise self._fields.error(
          'auto_map',
          f'{name} is {where}, code of the checkpoint, which is never run, so '
          'that what it computes is unknown: save the model in the form that '
          'transformers has built in',
        )

  def _sizes(self) -> tuple[int, int, int, int]:
    """Numbers of heads and key heads, widths of the model and of a head."""
    fields = self._fields
    num_heads = fields.integer('num_attention_heads')
    num_kv_heads = fields.integer('num_key_value_heads', num_heads)
    if num_heads % num_kv_heads:
      raise fields.error(
        'num_attention_heads',
        f'{num_heads} is not a multiple of num_key_value_heads {num_kv_heads}',
      )
    width = fields.integer('hidden_size')
    if fields.get('head_dim') is None and width % num_heads:
      raise fields.error(
        'hidden_size',
        f'{width} is not a multiple of num_attention_heads {num_heads}, and '
        'head_dim is missing',
      )
    head_dim = fields.integer('head_dim', width // num_heads)
    if head_dim % 2:
      raise fields.error('head_dim', f'{head_dim} is odd: rope rotates pairs')
    return num_heads, num_kv_heads, width, head_dim

  def _bias(self, bias: bool | str) -> bool:
    return self._fields.boolean(bias) if isinstance(bias, str) else bias

  def _activation(self, family: Family) -> str:
    found = {}
    value = family.activation
    for name in (family.activation_field, 'hidden_act'):
      value = self._fields.value(name, value)
      if value not in tuple(_ACTIVATIONS):
        raise self._fields.error(
          name, f'{value!r} is not one of {tuple(_ACTIVATIONS)}'
        )
      found[name] = _ACTIVATIONS[value]
    if len(set(found.values())) > 1:
      raise self._fields.error(
        family.activation_field, f'contradicts hidden_act: {found}'
      )
    return found[family.activation_field]

  def _scales(self, family: Family, width: int) -> dict[str, Any]:
    """The factors and soft caps that the row names."""
    fields = self._fields
    scales: dict[str, Any] = {}
    for name in _SCALES:
      if field := getattr(family, name):
        is_cap = name.endswith('_cap')
        read = fields.optional_number if is_cap else fields.number
        scales[name] = read(field)
    if family.score_size:
      scales['score_scale'] = fields.number(family.score_size) ** -0.5
    if family.embedding_scale == SQRT_WIDTH:
      scales['embedding_scale'] = math.sqrt(width)
    elif family.embedding_scale:
      scales['embedding_scale'] = fields.number(family.embedding_scale)
    return scales

  def _bos_id(self) -> int | None:
    value = self._fields.get('bos_token_id')
    if value is not None and (type(value) is not int or value < 0):
      raise self._fields.error('bos_token_id', f'{value!r} is not a token id')
    return value
