"""The rotary embedding in config.json, in both formats, and back."""

import math
from typing import Any

from edsft_jax.models.config import Rope
from edsft_jax.models.families import FULL, SLIDING, Family
from edsft_jax.models.json_fields import Fields

# Kind -> fields that it needs.
_KINDS = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
  'yarn': ('factor',),
  'longrope': ('short_factor', 'long_factor'),
}
_OLDER_NAMES = {'su': 'longrope'}
_WITH_ORIGINAL_CONTEXT = ('llama3', 'yarn', 'longrope')


def read_ropes(
  fields: Fields, family: Family, context: int, head_dim: int
) -> tuple[Rope, Rope | None]:
  """Reads the rope of layers without a window, and of those with one.

  Args:
    fields: config.json.
    family: the row of the architecture.
    context: max_position_embeddings.
    head_dim: width of one head.

  Returns:
    The second is None if it is the same.
  """

  def read(inner: Fields, theta: float) -> Rope:
    return _Reader(fields, inner, family, context, head_dim).rope(theta)

  older = fields.inner('rope_scaling')
  newer = fields.inner('rope_parameters')
  theta = fields.number('rope_theta', family.theta)
  if not family.window_theta:
    # Like transformers, prefers rope_scaling if a file has both.
    return read(older if fields.get('rope_scaling') else newer, theta), None
  if unknown := [name for name in newer if name not in (FULL, SLIDING)]:
    raise newer.error(unknown[0], f'is not {FULL} or {SLIDING}')
  full, sliding = newer.inner(FULL), newer.inner(SLIDING)
  # As in transformers, rope_scaling is that of layers without a window.
  rope = read(full.merged(older) if fields.get('rope_scaling') else full, theta)
  default = 10000.0 if family.window_theta != 'rope_theta' else theta
  window_theta = fields.number(family.window_theta, default)
  return rope, read(sliding, window_theta)


def write_ropes(rope: Rope, window_rope: Rope | None) -> dict[str, Any]:
  """The fields of config.json: the older format, which all readers support.

  It cannot say that layers with a window have a rope of their own: then the
  newer one.
  """
  if window_rope is not None:
    return {
      'rope_parameters': {
        FULL: {'rope_theta': rope.theta, **_write(rope)},
        SLIDING: {'rope_theta': window_rope.theta, **_write(window_rope)},
      }
    }
  fields: dict[str, Any] = {'rope_theta': rope.theta}
  if rope.partial != 1.0:
    fields['partial_rotary_factor'] = rope.partial
  if rope.kind == 'longrope':
    fields['original_max_position_embeddings'] = rope.original_context
  fields['rope_scaling'] = {} if rope.kind == 'default' else _write(rope)
  return fields


def _write(rope: Rope) -> dict[str, Any]:
  fields: dict[str, Any] = {'rope_type': rope.kind}
  if rope.kind in _WITH_ORIGINAL_CONTEXT:
    fields['original_max_position_embeddings'] = rope.original_context
  if rope.kind == 'longrope':
    fields['short_factor'] = list(rope.short_factors)
    fields['long_factor'] = list(rope.long_factors)
    fields['attention_factor'] = rope.attention_factor
    return fields
  fields |= {name: getattr(rope, name) for name in _KINDS[rope.kind]}
  if rope.kind == 'yarn':
    for name in ('attention_factor', 'beta_fast', 'beta_slow', 'truncate'):
      fields[name] = getattr(rope, name)
  return fields


class _Reader:
  """Reads one rope."""

  def __init__(
    self,
    outer: Fields,
    inner: Fields,
    family: Family,
    context: int,
    head_dim: int,
  ):
    """Reads nothing yet.

    Args:
      outer: the fields of config.json.
      inner: those of the rope.
      family: the row of the architecture.
      context: max_position_embeddings.
      head_dim: width of one head.
    """
    self._outer = outer
    self._inner = inner
    self._family = family
    self._context = context
    self._head_dim = head_dim

  def rope(self, theta: float) -> Rope:
    """The rope, whose theta is this if it does not say."""
    inner = self._inner
    kind = inner.get('rope_type', 'type')
    kind = 'default' if kind is None else kind
    if isinstance(kind, str):
      kind = _OLDER_NAMES.get(kind, kind)
    if kind not in tuple(_KINDS):
      raise inner.error('rope_type', f'{kind!r} is not one of {tuple(_KINDS)}')
    values: dict[str, Any] = {
      'theta': inner.number('rope_theta', theta),
      'kind': kind,
      'partial': self._partial(),
    }
    if kind == 'dynamic':
      values['original_context'] = self._context
    if kind in _WITH_ORIGINAL_CONTEXT:
      values['original_context'] = self._original_context()
    if kind == 'longrope':
      values |= self._longrope(values)
    else:
      values |= {name: inner.number(name) for name in _KINDS[kind]}
    if kind == 'llama3' and (
      values['high_freq_factor'] <= values['low_freq_factor']
    ):
      raise inner.error(
        'high_freq_factor',
        f'{values["high_freq_factor"]} is not above low_freq_factor '
        f'{values["low_freq_factor"]}',
      )
    if kind == 'yarn':
      values |= self._yarn(values['factor'])
    # Some files have it for every kind.
    for each in (inner, self._outer):
      each.get('original_max_position_embeddings')
    inner.refuse_unread(f'{kind!r}')
    return Rope(**values)

  def _partial(self) -> float:
    name = 'partial_rotary_factor'
    outer = self._outer.number(name, 1.0)
    partial = self._inner.number(name, outer)
    where = self._outer if self._inner.get(name) is None else self._inner
    if partial != 1.0 and not self._family.partial_rotary:
      raise where.error(name, 'only 1.0 is supported')
    rotary_dim = int(self._head_dim * partial)
    if partial > 1.0 or rotary_dim % 2:
      raise where.error(
        name, f'{partial} of {self._head_dim} dimensions cannot rotate in pairs'
      )
    return partial

  def _original_context(self) -> int:
    name = 'original_max_position_embeddings'
    original = self._inner.integer(name, self._context)
    # Like transformers, prefers the outer field.
    default = self._family.original_context or original
    return self._outer.integer(name, default)

  def _longrope(self, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of longrope (Ding et al. 2024, arXiv 2402.13753)."""
    inner, original = self._inner, values['original_context']
    num_pairs = int(self._head_dim * values['partial']) // 2
    factor = inner.number('factor', self._context / original)
    scale = 1.0
    if factor > 1.0 and original > 1:
      scale = math.sqrt(1 + math.log(factor) / math.log(original))
    return {
      'short_factors': inner.numbers('short_factor', num_pairs),
      'long_factors': inner.numbers('long_factor', num_pairs),
      'attention_factor': inner.number('attention_factor', scale),
    }

  def _yarn(self, factor: float) -> dict[str, Any]:
    """The fields of yarn (Peng et al. 2023, arXiv 2309.00071)."""
    inner = self._inner
    beta_fast = inner.number('beta_fast', 32.0)
    beta_slow = inner.number('beta_slow', 1.0)
    if beta_fast < beta_slow:
      raise inner.error(
        'beta_fast', f'{beta_fast} is below beta_slow {beta_slow}'
      )

    def scale(weight: float) -> float:
      return 0.1 * weight * math.log(max(factor, 1.0)) + 1.0

    attention_factor = scale(1.0)
    mscales = ('mscale', 'mscale_all_dim')
    if all(inner.get(name) for name in mscales):
      above, below = map(inner.number, mscales)
      attention_factor = scale(above) / scale(below)
    return {
      'beta_fast': beta_fast,
      'beta_slow': beta_slow,
      'truncate': inner.boolean('truncate', True),
      'attention_factor': inner.number('attention_factor', attention_factor),
    }
