"""Similarity columns on devices: a candidate against every row of the pool.

Rows are sharded over the mesh's data axis; every device computes the same
tiles whatever their number. Columns are kept while they fit, so that a
candidate looked at again costs a pass over memory and not a matrix product.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import sharding
from edsft_jax.selection import similarity as similarity_lib

# Candidates looked at in one go, and on the way through all of them.
BATCH = 64
PANEL = 256
# Columns kept at most: lazy picks rarely look at more before short lists.
_MOST_KEPT = 2048
# No similarity exceeds this: rows that carry no weight, padding among them,
# count as covered from the start.
_COVERED = 2.0
# Pairs of tiles computed in one go when each serves both of its sides.
_PAIRS = 16
# Runs of them at the same time: one keeps no two cores busy.
_LANES = 2


class Columns:
  """Similarities of candidates to all rows, and how well rows are covered.

  Attributes:
    coverage: [T, R] each row's largest similarity to a chosen one. May be set
      back to what it was.
  """

  def __init__(
    self,
    formula: str,
    point_UxD: np.ndarray,
    weight_U: np.ndarray,
    mesh: jax.sharding.Mesh,
    memory_limit: int,
  ):
    """Puts each device's share of the rows on it.

    Args:
      formula: elementwise part of the similarity.
      point_UxD: float32 points, at least one.
      weight_U: float64 weight of each row.
      mesh: has an axis 'data', over which rows are sharded.
      memory_limit: bytes of similarities to keep, over all devices.
    """
    self._formula = formula
    self._mesh = mesh
    self._point_UxD = point_UxD
    self._norm_U = similarity_lib.squared_norms(point_UxD)
    self._self_U = similarity_lib.self_similarity(formula, self._norm_U)
    self._num_rows = len(point_UxD)
    self._padded = sharding.padded(self._num_rows, mesh)
    self._point_TxRxD = sharding.tiles(point_UxD, mesh)
    self._norm_TxR = sharding.tiles(self._norm_U, mesh)
    self._self_TxR = sharding.tiles(self._self_U, mesh)
    self._weight_TxR = None
    if (weight_U != 1).any():
      self._weight_TxR = sharding.tiles(weight_U, mesh)
    current_U = np.where(weight_U > 0, 0.0, _COVERED).astype(np.float32)
    self.coverage = sharding.tiles(current_U, mesh, padding=_COVERED)

    slots = min(memory_limit // (4 * self._padded), self._padded, _MOST_KEPT)
    self._num_slots = max(slots // BATCH, 1) * BATCH
    self.forget()

  def forget(self) -> None:
    """Gives the memory of kept columns back."""
    self._cache_SxU: jax.Array | None = None
    self._slot_U = np.full(self._num_rows, -1, np.int32)
    self._row_S = np.full(self._num_slots, -1, np.int64)
    self._next_slot = 0

  def symmetric(self, row_C: np.ndarray) -> bool:
    """Whether visiting each pair of rows once serves these candidates."""
    return self._mesh.size == 1 and 2 * len(row_C) > self._num_rows

  def kernel(self) -> jax.Array:
    """Returns [padded rows, padded rows], on the only device."""
    return _kernel(
      self._point_TxRxD, self._norm_TxR, self._self_TxR, formula=self._formula
    )

  def similarities(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C, padded rows] of a few candidates, given as rows."""
    parts = np.split(row_C, range(BATCH, len(row_C), BATCH))
    return np.concatenate(
      [
        sharding.on_host(self._compute(part, BATCH))[: len(part)]
        for part in parts
      ]
    )

  def panels(
    self, row_C: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields [up to PANEL, padded rows] of all candidates, in their order.

    And beside it their [up to PANEL] gains. The next panel is computed while
    the caller works on the last.
    """
    parts = np.split(row_C, range(PANEL, len(row_C), PANEL))
    ahead = self._panel(parts[0])
    for part, following in zip(parts, [*parts[1:], None], strict=True):
      s_CxU, gain_C = ahead
      if following is not None:
        ahead = self._panel(following)
      s_CxU = sharding.on_host(s_CxU)[: len(part)]
      yield s_CxU, np.asarray(gain_C)[: len(part)]

  def _panel(self, row_C: np.ndarray) -> tuple[jax.Array, jax.Array]:
    s_CxU = self._compute(row_C, PANEL)
    return s_CxU, self._gains(s_CxU, np.arange(PANEL))

  def gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains of at most BATCH candidates."""
    slot_C = np.resize(self._slots_of(row_C), BATCH)
    gain_C = self._gains(self._cache_SxU, slot_C)
    return np.asarray(gain_C)[: len(row_C)]

  def sweep(
    self, row_C: np.ndarray, enough: float, most: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Goes through at most BATCH candidates, choosing what gains enough.

    Returns:
      [C] gains at each one's turn, and [C] whether it was chosen: it gained
      `enough`, above 0, and `most` were not chosen before it.
    """
    slot_C = np.resize(self._slots_of(row_C), BATCH)
    with jax.enable_x64(True):
      self.coverage, gain_C, taken_C = _sweep(
        self._cache_SxU,
        slot_C,
        self.coverage,
        self._weight_TxR,
        np.float64(enough),
        np.int32(most),
        mesh=self._mesh,
      )
    # Repeated candidates gain nothing the second time, and come after.
    return np.asarray(gain_C)[: len(row_C)], np.asarray(taken_C)[: len(row_C)]

  def all_gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains of many candidates, maybe all."""
    if self.symmetric(row_C):
      return self.symmetric_gains([self.coverage])[0][row_C]
    return self.panel_gains(row_C)

  def panel_gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains, a panel of candidates at a time."""
    parts = np.split(row_C, range(PANEL, len(row_C), PANEL))
    gains = [np.asarray(self._panel(part)[1])[: len(part)] for part in parts]
    return np.concatenate(gains)

  def cover(self, row_C: np.ndarray) -> None:
    """Counts candidates as chosen."""
    for start in range(0, len(row_C), BATCH):
      part = row_C[start : start + BATCH]
      if (self._slot_U[part] >= 0).all():
        s_CxU, slot_C = self._cache_SxU, self._slot_U[part]
      else:
        s_CxU, slot_C = self._compute(part, BATCH), np.arange(len(part))
      slot_C = np.resize(slot_C, BATCH).astype(np.int32)
      self.coverage = _cover(s_CxU, slot_C, self.coverage)

  def current(self) -> np.ndarray:
    """Returns `coverage` as [padded rows] on the host.

    Padding and rows without weight have 2: they count as covered.
    """
    return sharding.on_host(self.coverage).reshape(-1)

  def _compute(self, row_C: np.ndarray, size: int) -> jax.Array:
    """Returns [size, padded rows]; candidates repeat to fill it up."""
    row_C = np.resize(row_C, size).astype(np.int32)
    return _columns(
      self._point_TxRxD,
      self._norm_TxR,
      self._point_UxD[row_C],
      self._norm_U[row_C],
      self._self_U[row_C],
      row_C,
      formula=self._formula,
      mesh=self._mesh,
    )

  def _gains(self, s_SxU: jax.Array, slot_C: np.ndarray) -> jax.Array:
    slot_C = slot_C.astype(np.int32)
    with jax.enable_x64(True):
      return _gains(
        s_SxU, slot_C, self.coverage, self._weight_TxR, mesh=self._mesh
      )

  def symmetric_gains(
    self, coverages: Sequence[jax.Array], cut: Callable | None = None
  ) -> np.ndarray:
    """Returns [K, padded rows] gains of all rows, from half of the pairs.

    Args:
      coverages: K of them, as `coverage` was at some time.
      cut: called with every pair of tiles a <= b, ordered by a, then b, and
        their [R, R] similarities, of rows in a by rows in b; returns whether
        to go on calling it.
    """
    first, second = np.triu_indices(len(self._norm_TxR))
    count = len(first)
    size = min(_PAIRS, count)
    pairs = np.stack([first, second], axis=1).astype(np.int32)
    pairs = np.concatenate([pairs, np.zeros((-count % size, 2), np.int32)])

    with jax.enable_x64(True):
      shape = (len(coverages), *self._norm_TxR.shape)
      lanes = [jnp.zeros(shape, jnp.float64) for _ in range(_LANES)]

    def compute(start: int, lane: int) -> jax.Array | None:
      with jax.enable_x64(True):
        lanes[lane], s_PxRxR = _symmetric_gains(
          self._point_TxRxD,
          self._norm_TxR,
          self._self_TxR,
          tuple(coverages),
          self._weight_TxR,
          lanes[lane],
          pairs[start : start + size],
          np.int32(count - start),
          formula=self._formula,
          keep=cut is not None,
        )
      return s_PxRxR

    # Each lane's are computed while those of another are cut.
    ahead = collections.deque()
    for number, start in enumerate(range(0, count, size)):
      if len(ahead) == _LANES:
        cut = _cut_pairs(*ahead.popleft(), cut)
      ahead.append((pairs[start:count], compute(start, number % _LANES)))
    while ahead:
      cut = _cut_pairs(*ahead.popleft(), cut)
    # Sums are exact: no order of them is better.
    return sum(map(np.asarray, lanes)).reshape(len(coverages), -1)

  def _slots_of(self, row_C: np.ndarray) -> np.ndarray:
    """Returns where columns are kept, computing those that are not."""
    end = self._next_slot + BATCH
    slot_C = self._slot_U[row_C]
    # Slots that are about to be overwritten do not count.
    missing = (slot_C < 0) | (slot_C >= self._next_slot) & (slot_C < end)
    if (slot_C >= 0).all():
      return slot_C
    if self._cache_SxU is None:
      self._cache_SxU = jnp.zeros(
        (self._num_slots, self._padded),
        jnp.float32,
        device=jax.sharding.NamedSharding(self._mesh, sharding.COLUMNS),
      )
    s_CxU = self._compute(row_C[missing], BATCH)
    self._cache_SxU = _store(self._cache_SxU, s_CxU, self._next_slot)
    old = self._row_S[self._next_slot : end]
    self._slot_U[old[old >= 0]] = -1
    old[:] = -1
    old[: missing.sum()] = row_C[missing]
    self._slot_U[row_C[missing]] = np.arange(self._next_slot, end)[
      : missing.sum()
    ]
    self._next_slot = end % self._num_slots
    return self._slot_U[row_C]


def _cut_pairs(
  pair_Px2: np.ndarray, s_PxRxR: jax.Array | None, cut: Callable | None
) -> Callable | None:
  """Calls `cut` with each pair; returns it, or None if it wants no more."""
  if cut is None:
    return None
  for (a, b), s_RxR in zip(pair_Px2, np.asarray(s_PxRxR), strict=False):
    if not cut(int(a), int(b), s_RxR):
      return None
  return cut


@functools.partial(jax.jit, static_argnames='formula')
def _kernel(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  *,
  formula: str,
) -> jax.Array:
  """Returns [T R, T R] similarities of all rows."""
  norm_U = norm_TxR.reshape(-1)
  number_U = jnp.arange(norm_U.size)

  def against_all(tile):
    point_RxD, norm_R, self_R, number_R = tile
    # Tile by tile, as everywhere else, but all rounded off in one go.
    products = [similarity_lib.products(point_RxD, p) for p in point_TxRxD]
    product_RxU = jnp.concatenate(products, axis=1)
    s_RxU = similarity_lib.from_products(formula, product_RxU, norm_R, norm_U)
    return jnp.where(number_R[:, None] == number_U, self_R[:, None], s_RxU)

  number_TxR = number_U.reshape(norm_TxR.shape)
  s_TxRxU = jax.lax.map(
    against_all, (point_TxRxD, norm_TxR, self_TxR, number_TxR)
  )
  return s_TxRxU.reshape(norm_U.size, norm_U.size)


@functools.partial(jax.jit, static_argnames=('formula', 'mesh'))
def _columns(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  point_CxD: jax.Array,
  norm_C: jax.Array,
  self_C: jax.Array,
  row_C: jax.Array,
  *,
  formula: str,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C, T R] similarities of candidates to all rows."""

  def share(point_TxRxD, norm_TxR, point_CxD, norm_C, self_C, row_C):
    def one_tile(tile):
      return similarity_lib.tile(formula, point_CxD, norm_C, *tile)

    s_TxCxR = jax.lax.map(one_tile, (point_TxRxD, norm_TxR))
    s_CxU = jnp.swapaxes(s_TxCxR, 0, 1).reshape(len(row_C), -1)
    # The product of a row with itself rounds; its similarity is known.
    here_C = row_C - jax.lax.axis_index('data') * s_CxU.shape[1]
    here_C = jnp.where(here_C < 0, s_CxU.shape[1], here_C)
    return s_CxU.at[jnp.arange(len(row_C)), here_C].set(self_C, mode='drop')

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 2 + (sharding.EVERYWHERE,) * 4,
    out_specs=sharding.COLUMNS,
    check_vma=False,
  )(point_TxRxD, norm_TxR, point_CxD, norm_C, self_C, row_C)


@functools.partial(jax.jit, donate_argnums=0)
def _store(cache_SxU: jax.Array, s_CxU: jax.Array, first: int) -> jax.Array:
  return jax.lax.dynamic_update_slice(cache_SxU, s_CxU, (first, 0))


def worth(
  s: jax.Array, current: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
  """Returns float64 numbers whose sum, less another one, is a gain.

  Without weights that is a sum of coverages less what it was before: both are
  exact. With weights that are no whole numbers the difference would not be.
  """
  if weight is None:
    had = current.astype(jnp.float64).sum()
    return jnp.maximum(s, current).astype(jnp.float64), had
  return jnp.maximum(s - current, 0.0).astype(jnp.float64) * weight, 0.0


@functools.partial(jax.jit, static_argnames='mesh')
def _gains(
  s_SxU: jax.Array,
  slot_C: jax.Array,
  current_TxR: jax.Array,
  weight_TxR: jax.Array | None,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C] float64 sums over rows of what a column would add."""

  def share(s_SxU, slot_C, current_TxR, weight_TxR):
    def one_column(slot):
      s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
      worth_TxR, had = worth(
        s_U.reshape(current_TxR.shape), current_TxR, weight_TxR
      )
      # A sum along the fast axis goes one by one: leave most to the slow one.
      return worth_TxR.sum(axis=0).sum() - had

    return jax.lax.psum(jax.lax.map(one_column, slot_C), 'data')

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(
      sharding.COLUMNS,
      sharding.EVERYWHERE,
      sharding.ROWS,
      sharding.ROWS,
    ),
    out_specs=sharding.EVERYWHERE,
    check_vma=False,
  )(s_SxU, slot_C, current_TxR, weight_TxR)


@functools.partial(jax.jit, static_argnames='mesh')
def _sweep(
  s_SxU: jax.Array,
  slot_C: jax.Array,
  current_TxR: jax.Array,
  weight_TxR: jax.Array | None,
  enough: jax.Array,
  most: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Covers with each column in turn that gains enough."""

  def share(s_SxU, slot_C, current_TxR, weight_TxR, enough, most):
    def one_column(state, slot):
      current_TxR, left = state
      s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
      s_TxR = s_U.reshape(current_TxR.shape)
      worth_TxR, had = worth(s_TxR, current_TxR, weight_TxR)
      gain = jax.lax.psum(worth_TxR.sum(axis=0).sum() - had, 'data')
      taken = (gain >= enough) & (gain > 0) & (left > 0)
      best_TxR = jnp.maximum(current_TxR, s_TxR)
      current_TxR = jnp.where(taken, best_TxR, current_TxR)
      return (current_TxR, left - taken), (gain, taken)

    (current_TxR, _), (gain_C, taken_C) = jax.lax.scan(
      one_column, (current_TxR, most), slot_C
    )
    return current_TxR, gain_C, taken_C

  here, everywhere = sharding.ROWS, sharding.EVERYWHERE
  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.COLUMNS, everywhere, here, here, everywhere, everywhere),
    out_specs=(here, everywhere, everywhere),
    check_vma=False,
  )(s_SxU, slot_C, current_TxR, weight_TxR, enough, most)


@functools.partial(
  jax.jit, static_argnames=('formula', 'keep'), donate_argnames='gain_KxTxR'
)
def _symmetric_gains(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  coverages: tuple[jax.Array, ...],
  weight_TxR: jax.Array | None,
  gain_KxTxR: jax.Array,
  pair_Px2: jax.Array,
  count: jax.Array,
  *,
  formula: str,
  keep: bool,
) -> tuple[jax.Array, jax.Array | None]:
  """Visits the first `count` pairs of tiles, each for both of its sides.

  Returns:
    [K, T, R] float64 gains of all rows as candidates, one for each coverage,
    with those of these pairs added; with `keep` [P, R, R] similarities.
  """
  size = norm_TxR.shape[1]

  def one_pair(gain_KxTxR, numbered):
    p, (a, b) = numbered
    s_AxB = similarity_lib.tile(
      formula, point_TxRxD[a], norm_TxR[a], point_TxRxD[b], norm_TxR[b]
    )
    diagonal = (a == b) & jnp.eye(size, dtype=bool)
    s_AxB = jnp.where(diagonal, self_TxR[a][:, None], s_AxB)
    weight_A = weight_B = None
    if weight_TxR is not None:
      weight_A, weight_B = weight_TxR[a][:, None], weight_TxR[b]
    for k, current_TxR in enumerate(coverages):
      worth_AxB, had = worth(s_AxB, current_TxR[b], weight_B)
      # A sum along the fast axis goes one by one: 16 side by side are vectors.
      by_a_A = worth_AxB.reshape(size, -1, 16).sum(1).sum(1) - had
      worth_AxB, had = worth(s_AxB, current_TxR[a][:, None], weight_A)
      by_b_B = worth_AxB.sum(axis=0) - had
      by_a_A = jnp.where(p < count, by_a_A, 0.0)
      by_b_B = jnp.where((p < count) & (a != b), by_b_B, 0.0)
      gain_KxTxR = gain_KxTxR.at[k, a].add(by_a_A)
      gain_KxTxR = gain_KxTxR.at[k, b].add(by_b_B)
    return gain_KxTxR, s_AxB if keep else None

  number_P = jnp.arange(len(pair_Px2))
  return jax.lax.scan(one_pair, gain_KxTxR, (number_P, pair_Px2))


@jax.jit
def _cover(
  s_SxU: jax.Array, slot_C: jax.Array, current_TxR: jax.Array
) -> jax.Array:
  def one_column(current_TxR, slot):
    s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
    return jnp.maximum(current_TxR, s_U.reshape(current_TxR.shape)), None

  return jax.lax.scan(one_column, current_TxR, slot_C)[0]
