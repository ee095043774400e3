"""A checkpoint's config.json -> DecoderConfig, strictly.

Reads the form that transformers 4 writes (rope_theta, rope_scaling,
torch_dtype) and the form of transformers 5 (rope_parameters, dtype). What the
decoder cannot compute exactly is refused by name, never approximated.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

from edsft_jax import errors

ARCHITECTURES = ('LlamaForCausalLM',)
ACTIVATIONS = ('silu',)
# Rope type -> the factors that it needs beside theta.
ROPE_KINDS = {
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
}
_ROPE_FIELDS = {
  'type',
  'rope_type',
  'rope_theta',
  'factor',
  'low_freq_factor',
  'high_freq_factor',
  'original_max_position_embeddings',
  'partial_rotary_factor',
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding.

  Attributes:
    theta: base of the wavelengths.
    kind: 'default' | 'linear' | 'llama3'.
    factor: how far linear and llama3 stretch positions.
    low_freq_factor: llama3: wavelengths beyond original_context / this are
      stretched by the whole factor.
    high_freq_factor: llama3: wavelengths below original_context / this are
      left alone.
    original_context: llama3: the context before stretching.
  """

  theta: float = 10000.0
  kind: str = 'default'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """What the decoder computes; names of config.json in brackets.

  Attributes:
    vocab_size: rows of the embedding [vocab_size].
    width: of the residual stream [hidden_size].
    mlp_width: of the gated MLP [intermediate_size].
    num_layers: [num_hidden_layers].
    num_heads: query heads [num_attention_heads].
    num_kv_heads: key and value heads [num_key_value_heads].
    head_dim: width of one head, width / num_heads unless given.
    norm_eps: [rms_norm_eps].
    rope: rotary positions [rope_theta, rope_scaling or rope_parameters].
    tied: the output layer is the embedding [tie_word_embeddings].
    context: longest sequence [max_position_embeddings].
    attention_bias: q, k, v and o projections have biases.
    mlp_bias: gate, up and down projections have biases.
    initializer_range: standard deviation of freshly drawn weights.
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
  norm_eps: float = 1e-5
  rope: Rope = Rope()
  tied: bool = False
  context: int = 2048
  attention_bias: bool = False
  mlp_bias: bool = False
  initializer_range: float = 0.02
  bos_id: int | None = 1
  eos_ids: tuple[int, ...] = (2,)


def read_config(path: str | pathlib.Path) -> DecoderConfig:
  """Reads config.json of a model directory.

  Raises:
    InputError: naming the file and the field.
  """
  file = pathlib.Path(path) / 'config.json'
  fields = read_json_object(file)
  return _Reader(file, fields).decoder_config()


def read_json_object(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; InputError when there is none."""
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise errors.InputError(
      f'{file} does not exist: a Hugging Face model directory has one'
    ) from None
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f'{file} is not readable JSON: {error}'.replace('\n', ' ')
    ) from None
  if not isinstance(value, dict):
    raise errors.InputError(f'{file} holds no JSON object')
  return value


def parse_eos_ids(value: Any, where: str) -> tuple[int, ...]:
  """eos_token_id as config.json has it: absent, an id or a list of ids."""
  ids = [] if value is None else value if isinstance(value, list) else [value]
  if not all(type(i) is int and i >= 0 for i in ids):
    raise errors.InputError(f'{where}: eos_token_id {value!r} is no token id')
  return tuple(ids)


def to_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
  """config.json for a decoder; in the older form, which every reader knows."""
  rope = config.rope
  scaling: dict[str, Any] | None = None
  if rope.kind != 'default':
    scaling = {'rope_type': rope.kind}
    scaling |= {name: getattr(rope, name) for name in ROPE_KINDS[rope.kind]}
    if rope.kind == 'llama3':
      scaling['original_max_position_embeddings'] = rope.original_context
  eos_ids = config.eos_ids
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
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
    'max_position_embeddings': config.context,
    'tie_word_embeddings': config.tied,
    'attention_bias': config.attention_bias,
    'mlp_bias': config.mlp_bias,
    'initializer_range': config.initializer_range,
    'bos_token_id': config.bos_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
    'torch_dtype': dtype,
  }


class _Reader:
  """The fields of one config.json, each checked as it is taken."""

  def __init__(self, file: pathlib.Path, fields: Mapping[str, Any]):
    self._file = file
    self._fields = fields

  def decoder_config(self) -> DecoderConfig:
    self._check_supported()
    num_heads = self._integer('num_attention_heads')
    num_kv_heads = self._integer('num_key_value_heads', num_heads)
    if num_heads % num_kv_heads:
      raise self._error(
        'num_attention_heads',
        f'{num_heads} is no multiple of num_key_value_heads {num_kv_heads}',
      )
    width = self._integer('hidden_size')
    if self._fields.get('head_dim') is None and width % num_heads:
      raise self._error(
        'hidden_size',
        f'{width} is no multiple of num_attention_heads {num_heads}, and '
        'there is no head_dim',
      )
    head_dim = self._integer('head_dim', width // num_heads)
    if head_dim % 2:
      raise self._error('head_dim', f'{head_dim} is odd: rope turns pairs')
    vocab_size = self._integer('vocab_size')
    context = self._integer('max_position_embeddings')
    return DecoderConfig(
      vocab_size=vocab_size,
      width=width,
      mlp_width=self._integer('intermediate_size'),
      num_layers=self._integer('num_hidden_layers'),
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      norm_eps=self._number('rms_norm_eps'),
      rope=self._rope(context),
      tied=self._boolean('tie_word_embeddings'),
      context=context,
      attention_bias=self._boolean('attention_bias'),
      mlp_bias=self._boolean('mlp_bias'),
      initializer_range=self._number('initializer_range', 0.02),
      bos_id=self._bos_id(),
      eos_ids=parse_eos_ids(self._fields.get('eos_token_id'), str(self._file)),
    )

  def _check_supported(self) -> None:
    architectures = self._fields.get('architectures')
    if architectures is None:
      raise self._error('architectures', 'is missing')
    if not (
      isinstance(architectures, list)
      and len(architectures) == 1
      and architectures[0] in ARCHITECTURES
    ):
      raise self._error(
        'architectures', f'{architectures} is not one of {ARCHITECTURES}'
      )
    activation = self._fields.get('hidden_act', 'silu')
    if activation not in ACTIVATIONS:
      raise self._error(
        'hidden_act', f'{activation!r} is not one of {ACTIVATIONS}'
      )
    if self._fields.get('quantization_config') is not None:
      raise self._error(
        'quantization_config', 'quantized weights are not read: dequantize them'
      )

  def _rope(self, context: int) -> Rope:
    # transformers lets rope_scaling win where a file has both.
    name = 'rope_scaling' if self._fields.get('rope_scaling') else None
    name = name or 'rope_parameters'
    rope = self._fields.get(name) or {}
    if not isinstance(rope, dict):
      raise self._error(name, f'{rope!r} is no object')
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind not in ROPE_KINDS:
      raise self._error(
        f'{name}.rope_type', f'{kind!r} is not one of {tuple(ROPE_KINDS)}'
      )
    if unknown := sorted(set(rope) - _ROPE_FIELDS):
      raise self._error(f'{name}.{unknown[0]}', 'is not known')
    inner = _Reader(self._file, {f'{name}.{k}': v for k, v in rope.items()})
    for reader, field in (
      (self, 'partial_rotary_factor'),
      (inner, f'{name}.partial_rotary_factor'),
    ):
      if reader._number(field, 1.0) != 1.0:
        raise self._error(field, 'only 1.0 is supported')
    values = {
      factor: inner._number(f'{name}.{factor}') for factor in ROPE_KINDS[kind]
    }
    if kind == 'llama3':
      field = f'{name}.original_max_position_embeddings'
      values['original_context'] = inner._integer(field, context)
      if values['high_freq_factor'] <= values['low_freq_factor']:
        raise self._error(
          f'{name}.high_freq_factor',
          f'{values["high_freq_factor"]} is not above low_freq_factor '
          f'{values["low_freq_factor"]}',
        )
    theta = self._number('rope_theta', 10000.0)
    theta = inner._number(f'{name}.rope_theta', theta)
    return Rope(theta=theta, kind=kind, **values)

  def _bos_id(self) -> int | None:
    value = self._fields.get('bos_token_id')
    if value is not None and (type(value) is not int or value < 0):
      raise self._error('bos_token_id', f'{value!r} is no token id')
    return value

  def _integer(self, name: str, default: int | None = None) -> int:
    value = self._value(name, default)
    if type(value) is not int or value < 1:
      raise self._error(name, f'{value!r} is no whole number above 0')
    return value

  def _number(self, name: str, default: float | None = None) -> float:
    value = self._value(name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self._error(name, f'{value!r} is no number above 0')
    return float(value)

  def _boolean(self, name: str) -> bool:
    value = self._value(name, False)
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
