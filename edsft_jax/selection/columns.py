"""Similarity columns on devices: one candidate against every row of the pool.

Rows are sharded over the mesh's data axis; every device computes the same
fixed tiles whatever their number. Columns are kept while they fit, so that a
candidate looked at again costs a pass over memory and not a matrix product.
"""

from collections.abc import Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import similarity as similarity_lib

P = jax.sharding.PartitionSpec

# Rows of one tile. The tile's shape fixes the order of every inner product,
# so it is the same for every caller and every number of devices.
TILE_ROWS = 512
# Candidates of one tile.
TILE_COLUMNS = 64
# No similarity exceeds this: rows that carry no weight, padding among them,
# count as covered from the start.
_COVERED = 2.0
_DATA = 'data'


class Columns:
  """Similarities of candidates to all rows, and how well rows are covered."""

  def __init__(
    self,
    formula: str,
    point_UxD: np.ndarray,
    weight_U: np.ndarray,
    mesh: jax.sharding.Mesh,
    cache_bytes: int,
  ):
    """Puts each device's share of the rows on it.

    Args:
      formula: elementwise part of the similarity.
      point_UxD: float32 points.
      weight_U: float64 weight of each row.
      mesh: has an axis 'data', over which rows are sharded.
      cache_bytes: columns are kept up to this size, over all devices.
    """
    self._formula = formula
    self._mesh = mesh
    self._point_UxD = point_UxD
    self._norm_U = similarity_lib.squared_norms(point_UxD)
    self._self_U = similarity_lib.self_similarity(formula, self._norm_U)
    self.num_rows, width = point_UxD.shape
    step = TILE_ROWS * mesh.shape[_DATA]
    self._padded = -(-self.num_rows // step) * step
    padding = self._padded - self.num_rows

    rows = P(_DATA)
    tiles = self._padded // TILE_ROWS
    self._point_TxRxD = self._put(
      np.pad(point_UxD, ((0, padding), (0, 0))).reshape(
        tiles, TILE_ROWS, width
      ),
      rows,
    )
    self._norm_TxR = self._put(
      np.pad(self._norm_U, (0, padding)).reshape(tiles, TILE_ROWS), rows
    )
    self._weight_U = self._put(np.pad(weight_U, (0, padding)), rows)
    current = np.where(weight_U > 0, 0.0, _COVERED).astype(np.float32)
    self._current_U = self._put(
      np.pad(current, (0, padding), constant_values=_COVERED), rows
    )

    slots = cache_bytes // (4 * self._padded) // TILE_COLUMNS * TILE_COLUMNS
    wanted = -(-self.num_rows // TILE_COLUMNS) * TILE_COLUMNS
    self.num_slots = int(max(min(slots, wanted), TILE_COLUMNS))
    self._cache_SxU: jax.Array | None = None
    self._slot: dict[int, int] = {}
    self._held = np.full(self.num_slots, -1, np.int64)
    self._next_slot = 0

  def _put(self, array: np.ndarray, spec: jax.sharding.PartitionSpec):
    sharding = jax.sharding.NamedSharding(self._mesh, spec)
    with jax.enable_x64(True):
      return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index]
      )

  def _tile_of(self, ids: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Points, norms, self-similarities and ids, padded to one tile."""
    id_C = np.resize(np.asarray(ids, np.int32), TILE_COLUMNS)
    return (
      self._point_UxD[id_C],
      self._norm_U[id_C],
      self._self_U[id_C],
      id_C,
    )

  def compute(self, ids: Sequence[int]) -> jax.Array:
    """Returns [TILE_COLUMNS, padded rows], for at most that many candidates."""
    return _columns(
      self._point_TxRxD,
      self._norm_TxR,
      *self._tile_of(ids),
      formula=self._formula,
      mesh=self._mesh,
    )

  def gains(self, ids: np.ndarray) -> np.ndarray:
    """Returns [len(ids)] float64 marginal gains given what is covered."""
    parts = [np.zeros(0)]
    for start in range(0, len(ids), TILE_COLUMNS):
      part = ids[start : start + TILE_COLUMNS]
      slots = np.resize(self._slots(part), TILE_COLUMNS)
      with jax.enable_x64(True):
        gain = _gains(
          self._cache_SxU,
          slots,
          self._current_U,
          self._weight_U,
          mesh=self._mesh,
        )
      parts.append(np.asarray(gain)[: len(part)])
    return np.concatenate(parts)

  def cover(self, ids: np.ndarray) -> None:
    """Counts candidates as chosen."""
    for start in range(0, len(ids), TILE_COLUMNS):
      part = ids[start : start + TILE_COLUMNS]
      slots = np.resize(self._slots(part), TILE_COLUMNS)
      self._current_U = _cover(self._cache_SxU, slots, self._current_U)

  def _slots(self, ids: np.ndarray) -> np.ndarray:
    """Returns where columns are held, computing those that are not."""
    missing = [i for i in ids.tolist() if i not in self._slot]
    if missing:
      # Those of this call that are held must outlive it.
      if any(
        self._next_slot
        <= self._slot.get(i, -1)
        < self._next_slot + TILE_COLUMNS
        for i in ids.tolist()
      ):
        missing = ids.tolist()
      self._fill(missing)
    return np.asarray([self._slot[i] for i in ids.tolist()], np.int32)

  def _fill(self, ids: list[int]) -> None:
    """Computes one tile of columns into the oldest slots."""
    if self._cache_SxU is None:
      shape = (self.num_slots, self._padded)
      sharding = jax.sharding.NamedSharding(self._mesh, P(None, _DATA))
      self._cache_SxU = jax.jit(
        lambda: jnp.zeros(shape, jnp.float32), out_shardings=sharding
      )()
    first = self._next_slot
    for slot in range(first, first + TILE_COLUMNS):
      held = int(self._held[slot])
      if self._slot.get(held) == slot:
        del self._slot[held]
      self._held[slot] = -1
    self._cache_SxU = _store(self._cache_SxU, self.compute(ids), first)
    for offset, i in enumerate(ids):
      self._slot[i] = first + offset
      self._held[first + offset] = i
    self._next_slot = (first + TILE_COLUMNS) % self.num_slots

  def current(self) -> np.ndarray:
    """Returns [rows] float32: each row's largest similarity to a chosen one."""
    return self._host(self._current_U)[: self.num_rows]

  def blocks(self, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yields [<= TILE_COLUMNS, rows] of similarities, in the order of ids."""
    for start in range(0, len(ids), TILE_COLUMNS):
      part = ids[start : start + TILE_COLUMNS]
      block = self._host(self.compute(part))
      yield block[: len(part), : self.num_rows]

  def _host(self, array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
      return np.asarray(array)
    # Only where several processes share the mesh.
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@functools.partial(jax.jit, static_argnames=('formula', 'mesh'))
def _columns(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  point_CxD: jax.Array,
  norm_C: jax.Array,
  self_C: jax.Array,
  id_C: jax.Array,
  *,
  formula: str,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C, T R] similarities of candidates to all rows."""

  def share(point_TxRxD, norm_TxR, point_CxD, norm_C, self_C, id_C):
    def one_tile(tile):
      return similarity_lib.tile(formula, point_CxD, norm_C, *tile)

    s_TxCxR = jax.lax.map(one_tile, (point_TxRxD, norm_TxR))
    s_CxU = jnp.swapaxes(s_TxCxR, 0, 1).reshape(len(id_C), -1)
    # The product of a row with itself rounds; its similarity is known.
    row_C = id_C - jax.lax.axis_index(_DATA) * s_CxU.shape[1]
    row_C = jnp.where(row_C < 0, s_CxU.shape[1], row_C)
    return s_CxU.at[jnp.arange(len(id_C)), row_C].set(self_C, mode='drop')

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(P(_DATA), P(_DATA), P(), P(), P(), P()),
    out_specs=P(None, _DATA),
    check_vma=False,
  )(point_TxRxD, norm_TxR, point_CxD, norm_C, self_C, id_C)


@functools.partial(jax.jit, donate_argnums=0)
def _store(cache_SxU: jax.Array, s_CxU: jax.Array, first: int) -> jax.Array:
  return jax.lax.dynamic_update_slice(cache_SxU, s_CxU, (first, 0))


@functools.partial(jax.jit, static_argnames='mesh')
def _gains(
  cache_SxU: jax.Array,
  slot_C: jax.Array,
  current_U: jax.Array,
  weight_U: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C] float64 sums over rows of what a column would add."""

  def share(cache_SxU, slot_C, current_U, weight_U):
    def one_column(slot):
      s_U = jax.lax.dynamic_index_in_dim(cache_SxU, slot, keepdims=False)
      extra_U = jnp.maximum(s_U - current_U, 0.0).astype(jnp.float64)
      # Sums along the fast axis one by one; 128 sums side by side are vectors.
      return (extra_U * weight_U).reshape(-1, 128).sum(axis=0).sum()

    return jax.lax.psum(jax.lax.map(one_column, slot_C), _DATA)

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(P(None, _DATA), P(), P(_DATA), P(_DATA)),
    out_specs=P(),
    check_vma=False,
  )(cache_SxU, slot_C, current_U, weight_U)


@jax.jit
def _cover(
  cache_SxU: jax.Array, slot_C: jax.Array, current_U: jax.Array
) -> jax.Array:
  def one_column(current_U, slot):
    s_U = jax.lax.dynamic_index_in_dim(cache_SxU, slot, keepdims=False)
    return jnp.maximum(current_U, s_U), None

  return jax.lax.scan(one_column, current_U, slot_C)[0]
