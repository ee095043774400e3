"""Devices -> mesh, and one table from logical axes to mesh axes.

The same code runs on one device and on many: on a mesh of one device,
everything is replicated.
"""

import collections
from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from edsft_jax import errors, processes

AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis or axes; None means replicated. A dimension that its
# mesh axes do not divide evenly is replicated too, so any model runs on any
# mesh.
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
  # Rows that each device needs.
  'gathered': None,
}


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes data, fsdp and tensor, over all devices.

  One of the three sizes may be -1, for the devices that the other two leave.

  Args:
    data: devices along the axis that splits only the batch.
    fsdp: devices along the axis that splits batch and weights.
    tensor: devices along the axis that splits heads, mlp and vocabulary.
    devices: the devices to use; None for all.

  Raises:
    InputError: the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  for name, size in sizes.items():
    if size != -1 and size < 1:
      raise errors.InputError(
        f'mesh.{name} is {size}: must be at least 1, or -1 for whatever is left'
      )
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise errors.InputError(
      f'{" and ".join(f"mesh.{name}" for name in free)} are -1: set all but '
      'one of them'
    )
  taken = math.prod(size for size in sizes.values() if size != -1)
  if free:
    sizes[free[0]] = len(devices) // taken
  if math.prod(sizes.values()) != len(devices):
    raise errors.InputError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} does not fit '
      f'{len(devices)} devices: the product of the three must be that number'
    )
  return _mesh((sizes['data'], sizes['fsdp'], sizes['tensor']), devices)


def model_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """The mesh that this process runs the model on.

  If a process's devices can hold whole copies of the weights (fsdp x tensor
  devices each), this is a mesh over the local devices alone: each process runs
  its own batches, without communication. Otherwise it is `make_mesh` of the
  same sizes, over the devices of all processes, which then run the same
  batches.

  Raises:
    InputError: see `make_mesh`.
  """
  whole = make_mesh(data, fsdp, tensor)
  local = jax.local_devices()
  data, fsdp, tensor = whole.shape.values()
  sizes = local_sizes((data, fsdp, tensor), len(local))
  return whole if sizes is None else _mesh(sizes, local)


def local_sizes(
  sizes: tuple[int, int, int], num_local: int
) -> tuple[int, int, int] | None:
  """Axis sizes over a process's own devices, or None.

  None unless the devices hold whole copies of the weights, that is, unless
  fsdp x tensor divides their number.
  """
  _, fsdp, tensor = sizes
  data, left = divmod(num_local, fsdp * tensor)
  return None if left else (data, fsdp, tensor)


def _mesh(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> Mesh:
  # jax.make_mesh rejects sizes that split an axis of a TPU's torus, on 4x4
  # chips even (8, 2, 1).
  placed = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding(
  mesh: Mesh, logical_axes: Sequence[str], shape: Sequence[int]
) -> NamedSharding:
  """The sharding of an array with these logical axes; see RULES."""
  spec = []
  for name, size in zip(logical_axes, shape, strict=True):
    axes = RULES[name]
    spec.append(axes if size % _num_devices(mesh, axes) == 0 else None)
  return NamedSharding(mesh, PartitionSpec(*spec))


def compile_together(program: Any, *args: Any) -> None:
  """Compiles a jitted function in all processes, before any of them runs it.

  Collectives give up on a process that is half a minute late, and compiling
  can take longer on one process than on another. Does nothing if all of the
  arguments' devices are this process's.
  """
  arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)]
  if not all(x.is_fully_addressable for x in arrays):
    # The call that follows finds the compiled program.
    program.lower(*args).compile()
    processes.barrier('compiled')


class InFlight:
  """Limits how far the host runs ahead of the devices, in steps of a loop.

  JAX lets 32 programs wait for a CPU device. From the next one on, threads that
  dispatch wait for a place in the pool of as many threads as devices, which the
  collectives of the programs before it need: nothing moves any more, and after
  40 seconds XLA aborts the process ('Expected 2 threads to join the
  rendezvous'). Elsewhere, running so far ahead gains nothing.
  """

  # Each of at most three programs.
  MAX_STEPS = 8

  def __init__(self) -> None:
    """Starts with no steps."""
    self._results: collections.deque[jax.Array] = collections.deque()

  def add(self, result: jax.Array) -> None:
    """Takes a result of the latest step; waits for the one 8 steps before."""
    self._results.append(result)
    if len(self._results) > self.MAX_STEPS:
      jax.block_until_ready(self._results.popleft())


def _num_devices(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
  if axes is None:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)


def batch_multiple(mesh: Mesh) -> int:
  """The number that a sharded batch's leading axis must be divisible by."""
  return _num_devices(mesh, RULES['batch'])


def shard_batch(mesh: Mesh, tree: Any) -> Any:
  """Puts every array of the tree on the mesh, split along its leading axis.

  Raises:
    ValueError: a leading axis is not a multiple of `batch_multiple(mesh)`.
  """
  return put(tree, NamedSharding(mesh, PartitionSpec(RULES['batch'])))


def put(tree: Any, place: NamedSharding) -> Any:
  """Shards every array of the tree; every process passes the same arrays."""
  if place.is_fully_addressable:
    return jax.device_put(tree, place)

  # device_put would compare the processes' copies each time.
  def put_own_part(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, place)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda i: x[i])

  return jax.tree.map(put_own_part, tree)


def to_host(array: jax.Array) -> np.ndarray:
  """The whole array in host memory.

  Every process of its mesh must call this: the array is gathered on all devices
  first, unless each has a copy.
  """
  if not (array.is_fully_addressable or array.is_fully_replicated):
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)
