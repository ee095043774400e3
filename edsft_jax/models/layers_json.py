"""Which layers have a window and which no rope, in config.json, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.families import FULL, SLIDING, Family
from edsft_jax.models.json_fields import Fields


class LayerKinds(NamedTuple):
  """The fields of DecoderConfig in which layers differ."""

  window: int | None
  full_layers: tuple[int, ...]
  no_rope_layers: tuple[int, ...]


def read_layers(fields: Fields, family: Family, num_layers: int) -> LayerKinds:
  """Reads the layers' kinds.

  Raises:
    InputError: fields contradict each other or the architecture.
  """
  types = _layer_types(fields, num_layers)
  no_rope_layers = _no_rope_layers(fields, family, num_layers)
  window: int | None = None
  kinds: Sequence[str] = types or []
  if family.window == 'all':
    window, kinds = _all(fields, kinds, num_layers)
  elif family.window == 'switched':
    windowed = no_rope_layers if family.no_rope == 'listed' else None
    window, kinds = _switched(fields, kinds, num_layers, windowed)
  elif family.window == 'typed':
    window, kinds = _typed(fields, family, kinds, num_layers)
  elif SLIDING in kinds:
    raise fields.error('layer_types', 'this architecture has no windows')
  if window is None:
    return LayerKinds(None, (), no_rope_layers)
  full_layers = tuple(n for n, kind in enumerate(kinds) if kind == FULL)
  if family.no_rope == 'full':
    no_rope_layers = full_layers
  return LayerKinds(window, full_layers, no_rope_layers)


def write_layers(config: DecoderConfig, family: Family) -> dict[str, Any]:
  """The fields of config.json that say the same."""
  fields: dict[str, Any] = {}
  layers = range(config.num_layers)
  if family.window != 'none':
    fields['sliding_window'] = config.window
  if family.window == 'switched':
    fields['use_sliding_window'] = config.window is not None
  if family.window in ('switched', 'typed'):
    fields['layer_types'] = [
      FULL if config.window is None or n in config.full_layers else SLIDING
      for n in layers
    ]
  if family.no_rope == 'listed':
    fields['no_rope_layers'] = [
      int(n not in config.no_rope_layers) for n in layers
    ]
  return fields


def _layer_types(fields: Fields, num_layers: int) -> list[str] | None:
  types = fields.get('layer_types')
  if types is not None and (
    not isinstance(types, list)
    or len(types) != num_layers
    or not set(map(str, types)) <= {FULL, SLIDING}
  ):
    raise fields.error(
      'layer_types', f'{types!r} is not {FULL!r} or {SLIDING!r} per layer'
    )
  return types


def _no_rope_layers(
  fields: Fields, family: Family, num_layers: int
) -> tuple[int, ...]:
  """The layers whose entry in no_rope_layers is 0."""
  name = 'no_rope_layers'
  if family.no_rope != 'listed':
    return ()
  uses_rope = fields.get(name)
  interval = fields.integer('no_rope_layer_interval', 4)
  if uses_rope is None:
    uses_rope = [int((n + 1) % interval != 0) for n in range(num_layers)]
  if (
    not isinstance(uses_rope, list)
    or len(uses_rope) != num_layers
    or not all(value in (0, 1) for value in uses_rope)
  ):
    raise fields.error(name, f'{uses_rope!r} is not 0 or 1 per layer')
  return tuple(n for n, value in enumerate(uses_rope) if not value)


def _all(
  fields: Fields, types: Sequence[str], num_layers: int
) -> tuple[int | None, Sequence[str]]:
  """Every layer has the window, unless it is null."""
  window = _present(fields)
  kind = FULL if window is None else SLIDING
  if types and set(types) != {kind}:
    raise fields.error('layer_types', 'only one kind of layer is supported')
  return window, [kind] * num_layers


def _switched(
  fields: Fields,
  types: Sequence[str],
  num_layers: int,
  windowed: Sequence[int] | None,
) -> tuple[int | None, Sequence[str]]:
  """use_sliding_window says whether, layer_types where.

  Without layer_types, `windowed` are the layers with a window; if it is None,
  max_window_layers says how many layers come before them.
  """
  used = fields.boolean('use_sliding_window')
  # Without effect if it is false.
  window = fields.get('sliding_window')
  fields.get('max_window_layers')
  if not types:
    if not used:
      return None, ()
    if windowed is None:
      windowed = range(fields.integer('max_window_layers', least=0), num_layers)
    elif window is None:
      windowed = ()
    types = [SLIDING if n in windowed else FULL for n in range(num_layers)]
  if SLIDING not in types:
    return None, ()
  if not used:
    raise fields.error(
      'layer_types', f'has {SLIDING!r}, but use_sliding_window is false'
    )
  return fields.integer('sliding_window'), types


def _typed(
  fields: Fields, family: Family, types: Sequence[str], num_layers: int
) -> tuple[int | None, Sequence[str]]:
  """layer_types says where; without it, see Family.full_every."""
  window = _present(fields)
  # Gemma 2's first files have both.
  if fields.get('sliding_window_size') not in (None, window):
    raise fields.error('sliding_window_size', f'is not {window}')
  if window is None:
    if family.sized_window:
      raise fields.error('sliding_window', 'is null: name its size')
    if SLIDING in types:
      raise fields.error('sliding_window', 'is null, but layer_types has some')
    if family.full_every_field:
      fields.get(family.full_every_field)
    return None, ()
  full_every = family.full_every
  if family.full_every_field:
    pattern = fields.get(family.full_every_field)
    if not types and pattern is not None:
      full_every = fields.integer(family.full_every_field)
  if types:
    # transformers writes it, and reads layer_types.
    fields.get('_sliding_window_pattern')
    return window, types
  return window, [
    FULL if full_every and (n + 1) % full_every == 0 else SLIDING
    for n in range(num_layers)
  ]


def _present(fields: Fields) -> int | None:
  """sliding_window, which may be null."""
  # Absent is not null: transformers would use its own default.
  if 'sliding_window' not in tuple(fields):
    raise fields.error('sliding_window', 'is missing: a number, or null')
  if fields.get('sliding_window') is None:
    return None
  return fields.integer('sliding_window')
