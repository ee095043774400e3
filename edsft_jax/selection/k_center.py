"""Greedy k-center: farthest first, Euclidean (Gonzalez 1985).

The covering radius is at most twice the best possible. Exact without a pass
over the pool for each pick, because distances to the nearest chosen prompt
only fall, so among those of largest distance greedy goes on alone until its
best no longer beats the largest distance outside. Float32 bounds the distances
of all prompts from above; only those that could be the largest are computed in
float64.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.result import Selection

# Prompts among which greedy goes on alone.
_BLOCK = 512
# Chosen prompts whose distances to all rows are bounded in one go: as many as
# make a product efficient, or fewer where most would be filling.
_BATCH = 128
_SMALL_BATCH = 32
# Prompts whose distances are computed exactly in one go.
_TILE = 256


def k_center(
  features: Any,
  budget: int,
  initial: Sequence[int] = (),
  first: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Selection:
  """Picks, again and again, the prompt farthest from all that are chosen.

  Args:
    features: [N, D] numbers, numpy or jax.
    budget: new picks.
    initial: already chosen positions.
    first: position of the first pick; not looked at when there is an initial.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.

  Returns:
    A Selection: gains are distances to the nearest prompt chosen before (NaN
    for a first pick, which has none), the lowest index wins among equals. The
    objective is the covering radius: the largest distance of a prompt to the
    nearest of initial and picks (infinite when nothing is chosen).

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  if n and not len(initial):
    first = int(checks.indices('first', [first], n)[0])
  mesh = checks.mesh(mesh)
  if not budget + len(initial):
    empty = np.zeros(0)
    return Selection(empty.astype(np.int64), empty, np.inf if n else 0.0)

  distinct = similarity_lib.distinct_rows(feature_NxD)
  group_N = distinct.group_N
  picks: list[int] = []
  gains: list[float] = []
  if not len(initial):
    picks, gains = [first], [np.nan]
  chosen = np.concatenate([initial, np.asarray(picks, np.int64)])
  free = checks.choosable(n, chosen)
  # Copies of what is chosen are at distance 0; of other equal rows the first
  # stands for all.
  open_N = free[~np.isin(group_N[free], group_N[chosen])]
  _, where = np.unique(group_N[open_N], return_index=True)
  distances = _Distances(
    feature_NxD, open_N[where], budget + len(initial), mesh
  )
  distances.choose(chosen)
  while len(picks) < budget:
    accepted, squares = distances.next_picks(budget - len(picks))
    if not accepted:
      break
    picks += accepted
    gains += np.sqrt(squares).tolist()
  radius = distances.radius()
  rest = np.setdiff1d(free, picks)[: budget - len(picks)]
  gains += [0.0] * len(rest)
  return Selection(
    np.asarray(picks + rest.tolist(), np.int64),
    np.asarray(gains, np.float64),
    radius,
  )


class _Distances:
  """Squared distances to the nearest chosen prompt: bounds of all, some exact.

  Exact ones are float64: as differences of norms and products, small distances
  would keep few digits in float32.
  """

  def __init__(
    self,
    feature_NxD: np.ndarray,
    open_C: np.ndarray,
    most_chosen: int,
    mesh: jax.sharding.Mesh,
  ):
    """Starts with nothing chosen.

    Args:
      feature_NxD: the pool, at least one row.
      open_C: positions that may be picked, no two of them equal rows.
      most_chosen: how many will be chosen at most.
      mesh: has an axis 'data', over which rows are sharded.
    """
    n, d = feature_NxD.shape
    self._feature_NxD = feature_NxD
    self._mesh = mesh
    self._mean_D = feature_NxD.mean(axis=0, dtype=np.float64)
    self._norm_N = np.empty(n)
    for start in range(0, n, _TILE):
      part = slice(start, start + _TILE)
      self._norm_N[part] = similarity_lib.squared_norms(self._points(part))
    # Far below what matters, far above rounding: distances that are equal on
    # paper are equal here. A power of two, so that scaled pools scale.
    scale = int(np.floor(np.log2(2 * self._norm_N.mean() or 1.0)))
    self._steps = np.float64(2.0 ** (44 - scale))

    # Float32 has the same pool in units of about the mean distance. Rounding a
    # product of D terms, norms and sums is off by less than (D + 8) 2^-24 times
    # the norms of both: norms are enlarged by more, and the bounds with them.
    self._unit = 2.0 ** (scale // 2)
    self._large_N = self._norm_N / self._unit**2
    self._large_N = self._large_N * (1 + (d + 16) * 2.0**-24) + 2.0**-40
    self._large_N = self._large_N.astype(np.float32)
    point_NxD = np.empty((n, d), np.float32)
    for start in range(0, n, _TILE):
      part = slice(start, start + _TILE)
      point_NxD[part] = self._points(part) / self._unit
    self._point_TxRxD = sharding.tiles(point_NxD, mesh)
    self._large_TxR = sharding.tiles(self._large_N, mesh)
    self._bound_TxR = sharding.tiles(np.full(n, np.inf, np.float32), mesh)

    # Squared distances are never above `bound`, -1 where nothing may be picked.
    self._bound_N = np.full(n, -1.0)
    self._bound_N[open_C] = np.inf
    # Exact, to the nearest of the first `stamp` chosen ones.
    self._square_N = np.full(n, np.inf)
    self._stamp_N = np.zeros(n, np.int64)
    self._num_chosen = 0
    # The last chosen is repeated behind the end, so that no batch has gaps.
    with jax.enable_x64(True):
      self._chosen_KxD = jnp.zeros((most_chosen + _BLOCK + _BATCH, d))
      self._norm_K = jnp.zeros(len(self._chosen_KxD))

  def choose(self, row_M: np.ndarray) -> None:
    """Counts prompts as chosen."""
    for start in range(0, len(row_M), _BLOCK):
      part = row_M[start : start + _BLOCK]
      self._append(part)
      self._lower_bounds(part)
    bound_N = sharding.on_host(self._bound_TxR).reshape(-1)[
      : len(self._bound_N)
    ]
    bound_N = np.minimum(bound_N * self._unit**2, self._square_N)
    self._bound_N = np.where(self._bound_N < 0, -1.0, bound_N)

  def _append(self, row_M: np.ndarray) -> None:
    """Puts at most _BLOCK behind the chosen ones."""
    filled = row_M[np.minimum(np.arange(_BLOCK + _BATCH), len(row_M) - 1)]
    with jax.enable_x64(True):
      self._chosen_KxD, self._norm_K = _put(
        self._chosen_KxD,
        self._norm_K,
        self._points(filled),
        self._norm_N[filled],
        self._num_chosen,
      )
    self._num_chosen += len(row_M)

  def _lower_bounds(self, row_M: np.ndarray) -> None:
    """Lowers the bounds of all to those by these chosen ones."""
    point_MxD = self._points(row_M) / self._unit
    start = 0
    while start < len(row_M):
      few = len(row_M) - start <= _BATCH // 2
      end = start + (_SMALL_BATCH if few else _BATCH)
      # The last is repeated to fill the batch.
      part = np.minimum(np.arange(start, end), len(row_M) - 1)
      start = end
      self._bound_TxR = _nearest(
        self._point_TxRxD,
        self._large_TxR,
        self._bound_TxR,
        point_MxD[part].astype(np.float32),
        self._large_N[row_M[part]],
        mesh=self._mesh,
      )

  def next_picks(self, most: int) -> tuple[list[int], list[float]]:
    """Picks at least one, unless nothing is at a distance above 0.

    Returns:
      Up to `most` prompts and their squared distances.
    """
    block_B = self._largest(_BLOCK)
    square_B = self._square_N[block_B]
    if square_B.max(initial=0.0) <= 0.0:
      return [], []
    outside_N = self._bound_N.copy()
    outside_N[block_B] = -1.0
    rival = int(np.argmax(outside_N))
    filled_B = np.resize(block_B, _BLOCK)
    with jax.enable_x64(True):
      pair_BxB = np.asarray(
        _pairs(self._points(filled_B), self._norm_N[filled_B], self._steps)
      )
    accepted, squares = [], []
    while len(accepted) < most:
      best = int(np.argmax(square_B))
      square = float(square_B[best])
      # Outside is never too small; among equals the lowest index wins.
      beaten = square < outside_N[rival] or (
        square == outside_N[rival] and block_B[best] > rival
      )
      if square <= 0 or beaten:
        break
      accepted.append(int(block_B[best]))
      squares.append(square)
      square_B = np.minimum(square_B, pair_BxB[best, : len(block_B)])
      square_B[best] = -1.0
    self._bound_N[accepted] = -1.0
    self.choose(np.asarray(accepted))
    return accepted, squares

  def radius(self) -> float:
    """Returns the largest distance."""
    return float(np.sqrt(self._square_N[self._largest(1)].max(initial=0.0)))

  def _largest(self, count: int) -> np.ndarray:
    """Returns the `count` prompts of largest distance, ascending.

    Theirs are exact. Of the others no bound is above them, and of equals the
    lowest indices are among these.
    """
    while True:
      known_N = self._stamp_N == self._num_chosen
      known = np.flatnonzero(known_N & (self._bound_N >= 0))
      top = known[_where_largest(self._square_N[known], count)]
      least = self._square_N[top].min() if len(top) == count else 0.0
      unknown = np.flatnonzero(~known_N & (self._bound_N >= least))
      if not len(unknown):
        return top
      if len(top) < count:
        # They raise `least`: few others will have to follow.
        unknown = unknown[_where_largest(self._bound_N[unknown], count)]
      self._compute(unknown)

  def _compute(self, row_M: np.ndarray) -> None:
    """Makes the distances of these prompts exact."""
    # Those of a tile have about the same chosen ones to look at.
    row_M = row_M[np.argsort(self._stamp_N[row_M], kind='stable')]
    parts = np.split(row_M, range(_TILE, len(row_M), _TILE))
    ahead = []
    for part in parts:
      filled = np.resize(part, _TILE)
      with jax.enable_x64(True):
        square_R = _squares(
          self._points(filled),
          self._norm_N[filled],
          self._chosen_KxD,
          self._norm_K,
          self._stamp_N[part[0]],
          self._num_chosen,
          self._steps,
        )
      ahead.append(square_R)
    for part, square_R in zip(parts, ahead, strict=True):
      square_R = np.asarray(square_R)[: len(part)]
      self._square_N[part] = np.minimum(self._square_N[part], square_R)
    self._stamp_N[row_M] = self._num_chosen
    self._bound_N[row_M] = self._square_N[row_M]

  def _points(self, row_M: np.ndarray | slice) -> np.ndarray:
    """Returns [M, D] float64 rows of the pool less its mean."""
    return self._feature_NxD[row_M] - self._mean_D


def _where_largest(value_N: np.ndarray, count: int) -> np.ndarray:
  """Returns where the largest are, the first of equals, ascending."""
  if count >= len(value_N):
    return np.arange(len(value_N))
  least = np.partition(value_N, -count)[-count]
  above = np.flatnonzero(value_N > least)
  equal = np.flatnonzero(value_N == least)[: count - len(above)]
  return np.sort(np.concatenate([above, equal]))


def _partial_squares(
  chosen_MxD: jax.Array, norm_M: jax.Array, point_RxD: jax.Array
) -> jax.Array:
  """Returns [M, R] squared distances, short of the squared norms of R."""
  product_MxR = jnp.matmul(chosen_MxD, point_RxD.T, precision='highest')
  return norm_M[:, None] - 2 * product_MxR


def _whole_squares(
  partial: jax.Array, norm_R: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns squared distances in whole steps of 1 / steps."""
  return jnp.round(jnp.maximum(partial + norm_R, 0.0) * steps) * (1 / steps)


@jax.jit
def _pairs(
  point_BxD: jax.Array, norm_B: jax.Array, steps: jax.Array
) -> jax.Array:
  partial_BxB = _partial_squares(point_BxD, norm_B, point_BxD)
  return _whole_squares(partial_BxB, norm_B, steps)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _put(
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  point_MxD: jax.Array,
  norm_M: jax.Array,
  start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  put = jax.lax.dynamic_update_slice_in_dim
  return (
    put(chosen_KxD, point_MxD, start, axis=0),
    put(norm_K, norm_M, start, axis=0),
  )


@jax.jit
def _squares(
  point_RxD: jax.Array,
  norm_R: jax.Array,
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  start: jax.Array,
  end: jax.Array,
  steps: jax.Array,
) -> jax.Array:
  """Returns [R] squared distances to the nearest of the chosen ones."""

  def one_batch(b, least_R):
    first = start + b * _BATCH
    partial_BxR = _partial_squares(
      jax.lax.dynamic_slice_in_dim(chosen_KxD, first, _BATCH),
      jax.lax.dynamic_slice_in_dim(norm_K, first, _BATCH),
      point_RxD,
    )
    return jnp.minimum(least_R, partial_BxR.min(axis=0))

  batches = (end - start + _BATCH - 1) // _BATCH
  least_R = jnp.full(len(point_RxD), jnp.inf, point_RxD.dtype)
  least_R = jax.lax.fori_loop(0, batches, one_batch, least_R)
  return _whole_squares(least_R, norm_R, steps)


@functools.partial(jax.jit, static_argnames='mesh')
def _nearest(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  square_TxR: jax.Array,
  point_MxD: jax.Array,
  norm_M: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Lowers squared distances to those of the nearest of M points."""

  def share(point_TxRxD, norm_TxR, square_TxR, point_MxD, norm_M):
    def one_tile(tile):
      point_RxD, norm_R, square_R = tile
      partial_MxR = _partial_squares(point_MxD, norm_M, point_RxD)
      return jnp.minimum(square_R, partial_MxR.min(axis=0) + norm_R)

    return jax.lax.map(one_tile, (point_TxRxD, norm_TxR, square_TxR))

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 3 + (sharding.EVERYWHERE,) * 2,
    out_specs=sharding.ROWS,
    check_vma=False,
  )(point_TxRxD, norm_TxR, square_TxR, point_MxD, norm_M)
