"""Where each parameter of the decoder is in a checkpoint."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.placement import StatePath

# Module of a checkpoint whose outputs are those of several of the decoder's
# projections, one after the other -> these.
FUSED = {
  'qkv_proj': ('q_proj', 'k_proj', 'v_proj'),
  'gate_up_proj': ('gate_proj', 'up_proj'),
}
_FUSED_IN = {part: name for name, parts in FUSED.items() for part in parts}


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Where the outputs of a module of the decoder are in a checkpoint.

  Attributes:
    module: path of the checkpoint's module.
    start: its output that is the first of the decoder's module.
  """

  module: StatePath
  start: int


def outputs(module: StatePath, config: DecoderConfig) -> Outputs:
  """The checkpoint's outputs of the module at a path of the decoder's state."""
  name = str(module[-1])
  if not config.fused or name not in _FUSED_IN:
    return Outputs(module, 0)
  fused = _FUSED_IN[name]
  before = FUSED[fused][: FUSED[fused].index(name)]
  start = sum(num_outputs(part, config) for part in before)
  return Outputs((*module[:-1], fused), start)


def num_outputs(name: str, config: DecoderConfig) -> int:
  """Number of outputs of a projection of the decoder or a checkpoint."""
  if name in FUSED:
    return sum(num_outputs(part, config) for part in FUSED[name])
  return {
    'q_proj': config.num_heads * config.head_dim,
    'k_proj': config.num_kv_heads * config.head_dim,
    'v_proj': config.num_kv_heads * config.head_dim,
    'gate_proj': config.mlp_width,
    'up_proj': config.mlp_width,
  }.get(name, config.width)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a parameter of the decoder is in a checkpoint.

  Attributes:
    name: of the tensor that holds it.
    start: its first index along the tensor's first axis.
    transposed: the tensor is [out, in], the parameter [in, out].
  """

  name: str
  start: int
  transposed: bool

  def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape if it held a parameter of this shape alone."""
    return shape[::-1] if self.transposed else shape

  def index(
    self, index: tuple[slice, ...], shape: tuple[int, ...]
  ) -> tuple[slice, ...]:
    """Index in the tensor of a part of a parameter of this shape."""
    if self.transposed:
      index, shape = index[::-1], shape[::-1]
    start, stop, _ = index[0].indices(shape[0])
    return (slice(self.start + start, self.start + stop), *index[1:])


def place(path: StatePath, config: DecoderConfig) -> Place:
  """The place of the parameter at a path of the decoder's state."""
  where = outputs(path[:-1], config)
  module = str(path[-2])
  return Place(
    name=tensor_name((*where.module, path[-1])),
    start=where.start,
    # Checkpoints store [out, in] where the decoder has [in, out].
    transposed=path[-1] == 'weight'
    and (module.endswith('_proj') or module == 'lm_head'),
  )


def tensor_name(path: StatePath) -> str:
  """Path of a checkpoint's module or parameter -> its name."""
  name = '.'.join(str(part) for part in path)
  return name if path[0] == 'lm_head' else f'model.{name}'


def shapes(
  parameters: Mapping[StatePath, tuple[int, ...]], config: DecoderConfig
) -> dict[str, tuple[int, ...]]:
  """Name and shape of each tensor that holds parameters of these shapes."""
  result: dict[str, tuple[int, ...]] = {}
  for path, shape in parameters.items():
    where = place(path, config)
    first, *others = where.shape(shape)
    first += result.get(where.name, (0,))[0]
    result[where.name] = (first, *others)
  return result


def to_checkpoint(
  parameters: Mapping[StatePath, np.ndarray], config: DecoderConfig
) -> dict[str, np.ndarray]:
  """The tensors that hold these parameters."""
  held: dict[str, dict[int, np.ndarray]] = {}
  for path, array in parameters.items():
    where = place(path, config)
    array = array.T if where.transposed else array
    held.setdefault(where.name, {})[where.start] = array
  return {
    name: np.ascontiguousarray(
      np.concatenate([parts[start] for start in sorted(parts)])
      if len(parts) > 1
      else parts[0]
    )
    for name, parts in held.items()
  }
