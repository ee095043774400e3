"""Rows in tiles of one shape, sharded over the mesh's data axis."""

import jax
import numpy as np

# For arrays whose first axis is rows of the pool, and whose second axis is.
ROWS = jax.sharding.PartitionSpec('data')
ROWS_SECOND = jax.sharding.PartitionSpec(None, 'data')
EVERYWHERE = jax.sharding.PartitionSpec()

# Rows per tile. Tiles have the same shapes for every caller and every number
# of devices, so every inner product is summed in the same order.
TILE_ROWS = 512


def padded(n: int, mesh: jax.sharding.Mesh, tile_rows: int = TILE_ROWS) -> int:
  """Returns n rounded up to whole tiles on every device."""
  step: int = tile_rows * mesh.shape['data']
  return -(-n // step) * step


def tiles(
  array: np.ndarray,
  mesh: jax.sharding.Mesh,
  padding: float = 0.0,
  tile_rows: int = TILE_ROWS,
) -> jax.Array:
  """Splits rows into tiles [T, R, ...], and shards the tiles over devices."""
  num_tiles = padded(len(array), mesh, tile_rows) // tile_rows
  shape = (num_tiles, tile_rows, *array.shape[1:])

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    start, stop, _ = index[0].indices(num_tiles)
    own = array[start * tile_rows : stop * tile_rows]
    missing = (stop - start) * tile_rows - len(own)
    if missing:
      tail = np.full((missing, *array.shape[1:]), padding, array.dtype)
      own = np.concatenate([own, tail])
    return own.reshape(stop - start, *shape[1:])

  place = jax.sharding.NamedSharding(mesh, ROWS)
  with jax.enable_x64(True):
    return jax.make_array_from_callback(shape, place, part)


def on_host(array: jax.Array) -> np.ndarray:
  """Returns the whole array, even if other processes hold parts of it."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  # Needed only if several processes share the mesh.
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(array, tiled=True))
