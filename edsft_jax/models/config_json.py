"""A checkpoint's config.json -> DecoderConfig, strictly, and back.

Reads the format of transformers 4 (rope_theta, rope_scaling, torch_dtype) and
that of transformers 5 (rope_parameters, dtype). Any field that the decoder
cannot compute exactly is an error, never approximated.
"""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any

from edsft_jax import errors
from edsft_jax.models.config import (
  ACTIVATIONS,
  FAMILIES,
  FULL,
  ROPE_COMMON,
  ROPE_KINDS,
  ROPE_OPTIONS,
  SLIDING,
  DecoderConfig,
  Family,
  Rope,
)


def read_config(path: str | pathlib.Path) -> DecoderConfig:
  """Reads config.json of a model directory.

  Raises:
    InputError: naming the file and the field.
  """
  file = pathlib.Path(path) / 'config.json'
  fields = read_json_object(file)
  return _Reader(file, fields).decoder_config()


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
  """config.json for a decoder, in the older format, which all readers support.

  Raises:
    ValueError: config.json cannot express `config` for this architecture.
  """
  family = FAMILIES[config.architecture]
  rope = config.rope
  scaling: dict[str, Any] = {}
  context = config.context
  if rope.kind != 'default':
    scaling = {'rope_type': rope.kind}
    scaling |= {name: getattr(rope, name) for name in ROPE_KINDS[rope.kind]}
  if rope.kind in ('llama3', 'yarn'):
    scaling['original_max_position_embeddings'] = rope.original_context
  if rope.kind == 'yarn':
    for name in ('attention_factor', 'beta_fast', 'beta_slow', 'truncate'):
      scaling[name] = getattr(rope, name)
  if rope.kind == 'dynamic':
    context = rope.original_context
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
    'hidden_act': 'silu',
    'rms_norm_eps': config.norm_eps,
    'rope_theta': rope.theta,
    'rope_scaling': scaling,
    'max_position_embeddings': context,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.initializer_range,
    'bos_token_id': config.bos_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
    'torch_dtype': dtype,
  }
  for name in ('qkv_bias', 'output_bias', 'mlp_bias'):
    if isinstance(field := getattr(family, name), str):
      fields[field] = getattr(config, name)
  if family.window != 'none':
    fields['sliding_window'] = config.window
  if family.window == 'some':
    fields['use_sliding_window'] = config.window is not None
    fields['layer_types'] = [
      FULL if config.window is None or n in config.full_layers else SLIDING
      for n in range(config.num_layers)
    ]
  if _Reader(pathlib.Path('config.json'), fields).decoder_config() != config:
    raise ValueError(f'{config.architecture} has no config.json for {config}')
  return fields


class _Reader:
  """The fields of one config.json, each checked when it is read."""

  def __init__(self, file: pathlib.Path, fields: Mapping[str, Any]):
    self._file = file
    self._fields = fields

  def decoder_config(self) -> DecoderConfig:
    architecture = self._architecture()
    family = FAMILIES[architecture]
    for name in family.required:
      self._value(name, None)
    num_heads = self._integer('num_attention_heads')
    num_kv_heads = self._integer('num_key_value_heads', num_heads)
    if num_heads % num_kv_heads:
      raise self._error(
        'num_attention_heads',
        f'{num_heads} is not a multiple of num_key_value_heads {num_kv_heads}',
      )
    width = self._integer('hidden_size')
    if self._fields.get('head_dim') is None and width % num_heads:
      raise self._error(
        'hidden_size',
        f'{width} is not a multiple of num_attention_heads {num_heads}, and '
        'head_dim is missing',
      )
    head_dim = self._integer('head_dim', width // num_heads)
    if head_dim % 2:
      raise self._error('head_dim', f'{head_dim} is odd: rope rotates pairs')
    num_layers = self._integer('num_hidden_layers')
    window, full_layers = self._window(family, num_layers)
    context = self._integer('max_position_embeddings')
    rope = self._rope(context)
    if rope.kind == 'dynamic':
      context = int(context * max(rope.factor, 1.0))
    return DecoderConfig(
      vocab_size=self._integer('vocab_size'),
      width=width,
      mlp_width=self._integer('intermediate_size'),
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      architecture=architecture,
      norm_eps=self._number('rms_norm_eps'),
      rope=rope,
      tied=self._boolean('tie_word_embeddings'),
      context=context,
      qkv_bias=self._bias(family.qkv_bias),
      output_bias=self._bias(family.output_bias),
      mlp_bias=self._bias(family.mlp_bias),
      qk_norm=family.qk_norm,
      norm_last=family.norm_last,
      window=window,
      full_layers=full_layers,
      initializer_range=self._number('initializer_range', 0.02),
      bos_id=self._bos_id(),
      eos_ids=parse_eos_ids(self._fields.get('eos_token_id'), str(self._file)),
    )

  def _architecture(self) -> str:
    architectures = self._fields.get('architectures')
    if architectures is None:
      raise self._error('architectures', 'is missing')
    if not (
      isinstance(architectures, list)
      and len(architectures) == 1
      and architectures[0] in tuple(FAMILIES)
    ):
      raise self._error(
        'architectures', f'{architectures} is not one of {tuple(FAMILIES)}'
      )
    activation = self._fields.get('hidden_act', 'silu')
    if activation not in ACTIVATIONS:
      raise self._error(
        'hidden_act', f'{activation!r} is not one of {ACTIVATIONS}'
      )
    if self._fields.get('quantization_config') is not None:
      raise self._error(
        'quantization_config',
        'quantized weights are not supported: dequantize them',
      )
    return architectures[0]

  def _bias(self, bias: bool | str) -> bool:
    return self._boolean(bias) if isinstance(bias, str) else bias

  def _window(
    self, family: Family, num_layers: int
  ) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, if any, and the layers without it."""
    if family.window == 'none':
      return None, ()
    types = self._fields.get('layer_types')
    if family.window == 'all':
      if types is not None:
        raise self._error('layer_types', 'only one kind of layer is supported')
      # Absent is not null: transformers would use its own default.
      if 'sliding_window' not in self._fields:
        raise self._error('sliding_window', 'is missing: a number, or null')
      if self._fields['sliding_window'] is None:
        return None, ()
      return self._integer('sliding_window'), ()
    used = self._boolean('use_sliding_window')
    if types is None:
      if not used:
        return None, ()
      first = self._integer('max_window_layers', least=0)
      types = [FULL] * first + [SLIDING] * (num_layers - first)
      types = types[:num_layers]
    if (
      not isinstance(types, list)
      or len(types) != num_layers
      or not set(map(str, types)) <= {FULL, SLIDING}
    ):
      raise self._error(
        'layer_types', f'{types!r} is not {FULL!r} or {SLIDING!r} per layer'
      )
    if SLIDING not in types:
      return None, ()
    if not used:
      raise self._error(
        'layer_types', f'has {SLIDING!r}, but use_sliding_window is false'
      )
    full_layers = tuple(n for n, kind in enumerate(types) if kind == FULL)
    return self._integer('sliding_window'), full_layers

  def _rope(self, context: int) -> Rope:
    # Like transformers, prefers rope_scaling if a file has both.
    name = 'rope_scaling' if self._fields.get('rope_scaling') else None
    name = name or 'rope_parameters'
    rope = self._fields.get(name) or {}
    if not isinstance(rope, dict):
      raise self._error(name, f'{rope!r} is not an object')
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind not in tuple(ROPE_KINDS):
      raise self._error(
        f'{name}.rope_type', f'{kind!r} is not one of {tuple(ROPE_KINDS)}'
      )
    known = ROPE_COMMON | set(ROPE_KINDS[kind]) | ROPE_OPTIONS.get(kind, set())
    if unknown := sorted(set(rope) - known):
      raise self._error(f'{name}.{unknown[0]}', f'is unknown for {kind!r}')
    inner = _Reader(self._file, {f'{name}.{k}': v for k, v in rope.items()})
    for reader, field in (
      (self, 'partial_rotary_factor'),
      (inner, f'{name}.partial_rotary_factor'),
    ):
      if reader._number(field, 1.0) != 1.0:
        raise self._error(field, 'only 1.0 is supported')
    values: dict[str, Any] = {
      factor: inner._number(f'{name}.{factor}') for factor in ROPE_KINDS[kind]
    }
    if kind == 'dynamic':
      values['original_context'] = context
    if kind in ('llama3', 'yarn'):
      field = 'original_max_position_embeddings'
      original = inner._integer(f'{name}.{field}', context)
      # Like transformers, prefers the outer field.
      values['original_context'] = self._integer(field, original)
    if kind == 'llama3' and (
      values['high_freq_factor'] <= values['low_freq_factor']
    ):
      raise self._error(
        f'{name}.high_freq_factor',
        f'{values["high_freq_factor"]} is not above low_freq_factor '
        f'{values["low_freq_factor"]}',
      )
    if kind == 'yarn':
      values |= inner._yarn(name, values['factor'])
    theta = self._number('rope_theta', 10000.0)
    theta = inner._number(f'{name}.rope_theta', theta)
    return Rope(theta=theta, kind=kind, **values)

  def _yarn(self, name: str, factor: float) -> dict[str, Any]:
    """The fields of yarn (Peng et al. 2023, arXiv 2309.00071)."""
    beta_fast = self._number(f'{name}.beta_fast', 32.0)
    beta_slow = self._number(f'{name}.beta_slow', 1.0)
    if beta_fast < beta_slow:
      raise self._error(
        f'{name}.beta_fast', f'{beta_fast} is below beta_slow {beta_slow}'
      )

    def scale(weight: float) -> float:
      return 0.1 * weight * math.log(max(factor, 1.0)) + 1.0

    attention_factor = scale(1.0)
    mscales = [f'{name}.mscale', f'{name}.mscale_all_dim']
    if all(self._fields.get(mscale) for mscale in mscales):
      above, below = map(self._number, mscales)
      attention_factor = scale(above) / scale(below)
    return {
      'beta_fast': beta_fast,
      'beta_slow': beta_slow,
      'truncate': self._boolean(f'{name}.truncate', True),
      'attention_factor': self._number(
        f'{name}.attention_factor', attention_factor
      ),
    }

  def _bos_id(self) -> int | None:
    value = self._fields.get('bos_token_id')
    if value is not None and (type(value) is not int or value < 0):
      raise self._error('bos_token_id', f'{value!r} is not a token id')
    return value

  def _integer(
    self, name: str, default: int | None = None, least: int = 1
  ) -> int:
    value = self._value(name, default)
    if type(value) is not int or value < least:
      raise self._error(
        name, f'{value!r} is not a whole number of at least {least}'
      )
    return value

  def _number(self, name: str, default: float | None = None) -> float:
    value = self._value(name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self._error(name, f'{value!r} is not a number above 0')
    return float(value)

  def _boolean(self, name: str, default: bool = False) -> bool:
    value = self._value(name, default)
    if type(value) is not bool:
      raise self._error(name, f'{value!r} is not true or false')
    return value

  def _value(self, name: str, default: Any) -> Any:
    value = self._fields.get(name)
    value = default if value is None else value
    if value is None:
      raise self._error(name, 'is missing')
    return value

  def _error(self, field: str, problem: str) -> errors.InputError:
    return errors.InputError(f'{self._file}: {field}: {problem}')
