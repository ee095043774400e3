"""Devices -> mesh, and one table from logical axes to mesh axes.

The same code runs on one device and on many: a mesh of one device replicates
everything, and no caller asks how many there are.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from edsft_jax import errors

AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis (or axes). A logical axis that is not here is a
# mistake; None means replicated. A dimension that its mesh axes do not divide
# is replicated too, so that any model fits any mesh.
RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'vocab': 'tensor',
  'embed': 'fsdp',
  'mlp': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'norm': None,
  'rank': None,
}


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes data, fsdp and tensor, over all devices.

  Args:
    data: devices along the axis that splits the batch alone.
    fsdp: devices along the axis that splits batch and weights.
    tensor: devices along the axis that splits heads, mlp and vocabulary.
    devices: what to build it from; all devices when None.

  One of the three may be -1: whatever the other two leave.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  for name, size in sizes.items():
    if size != -1 and size < 1:
      raise errors.InputError(
        f'mesh.{name} is {size}: at least 1, or -1 for whatever is left'
      )
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise errors.InputError(
      f'{" and ".join(f"mesh.{name}" for name in free)} are -1: only one may be'
    )
  taken = math.prod(size for size in sizes.values() if size != -1)
  if free:
    sizes[free[0]] = len(devices) // taken
  if math.prod(sizes.values()) != len(devices):
    raise errors.InputError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} does not fit '
      f'{len(devices)} devices: their product must be that number'
    )
  return _mesh((sizes['data'], sizes['fsdp'], sizes['tensor']), devices)


def model_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """The mesh that this process runs the model on, of several or alone.

  `make_mesh` of the same sizes is over the devices of all processes. Where the
  devices that hold one copy of the weights can all be of one process, each has
  a mesh of its own devices and takes its own batches, without talking to
  the others. Else it is the mesh over all, on which all run the same batches.

  Raises:
    InputError: see `make_mesh`.
  """
  whole = make_mesh(data, fsdp, tensor)
  local = jax.local_devices()
  data, fsdp, tensor = whole.shape.values()
  sizes = own_sizes((data, fsdp, tensor), len(local))
  return whole if sizes is None else _mesh(sizes, local)


def own_sizes(
  sizes: tuple[int, int, int], num_local: int
) -> tuple[int, int, int] | None:
  """Axes over a process's own devices; None if the model does not fit them."""
  _, fsdp, tensor = sizes
  data, left = divmod(num_local, fsdp * tensor)
  return None if left else (data, fsdp, tensor)


def _mesh(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> Mesh:
  # jax.make_mesh refuses sizes that would split an axis of a TPU's torus: on
  # 4x4 chips even (8, 2, 1).
  placed = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding(
  mesh: Mesh, logical_axes: Sequence[str], shape: Sequence[int]
) -> NamedSharding:
  """Where an array with these logical axes lies; see RULES."""
  spec = []
  for name, size in zip(logical_axes, shape, strict=True):
    axes = RULES[name]
    spec.append(axes if size % _num_devices(mesh, axes) == 0 else None)
  return NamedSharding(mesh, PartitionSpec(*spec))


def _num_devices(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
  if axes is None:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)


def batch_multiple(mesh: Mesh) -> int:
  """The number that a sharded batch's leading axis must be divisible by."""
  return _num_devices(mesh, RULES['batch'])


def shard_batch(mesh: Mesh, tree: Any) -> Any:
  """Puts every array of the tree on the mesh, its leading axis split.

  Raises:
    ValueError: a leading axis is not a multiple of `batch_multiple(mesh)`.
  """
  place = NamedSharding(mesh, PartitionSpec(RULES['batch']))
  if not mesh.is_multi_process:
    return jax.device_put(tree, place)
  # Every process holds all of it; device_put would compare them each time.
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i]),
    tree,
  )
