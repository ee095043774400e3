"""Greedy k-center: farthest first, Euclidean (Gonzalez 1985).

The covering radius is at most twice the best possible. Exact without a pass
over the pool for each pick: distances to the nearest chosen prompt only fall,
so among the prompts with the largest stale ones, greedy goes on alone until
its best no longer beats the largest stale distance outside.
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
# Chosen prompts whose distances to all rows are computed in one go: as many as
# make a product efficient, or fewer where most would be filling.
_BATCH = 128
_SMALL_BATCH = 32


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
    ValueError: naming the argument that is wrong.
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

  point_NxD = feature_NxD - feature_NxD.mean(axis=0, dtype=np.float64)
  point_NxD += 0.0  # -0.0 and 0.0 are the same number but not the same bits
  distinct = similarity_lib.distinct_rows(point_NxD)
  group_N = distinct.group_N
  picks: list[int] = []
  gains: list[float] = []
  if not len(initial):
    picks, gains = [first], [np.nan]
  chosen = np.concatenate([initial, np.asarray(picks, np.int64)])
  free = checks.choosable(n, chosen)
  # Copies of what is chosen are at distance 0; of other equal rows the first
  # stands for all. Ascending, so that order here is order in the pool.
  open_N = free[~np.isin(group_N[free], group_N[chosen])]
  _, where = np.unique(group_N[open_N], return_index=True)
  pick_C = open_N[np.sort(where)]

  norm_N = similarity_lib.squared_norms(point_NxD)
  norm_U = np.empty(len(distinct.point_UxD))
  norm_U[group_N] = norm_N
  row_C = group_N[pick_C]
  row_I = np.unique(group_N[chosen])
  distances = _Distances(
    distinct.point_UxD[row_C], norm_U[row_C], 2 * norm_N.mean(), mesh
  )
  distances.cover(distinct.point_UxD[row_I], norm_U[row_I])
  while len(picks) < budget and distances.square_C.max(initial=0.0) > 0:
    accepted, squares = distances.next_picks(budget - len(picks))
    picks += pick_C[accepted].tolist()
    gains += np.sqrt(squares).tolist()
  radius = np.sqrt(distances.square_C.max(initial=0.0))
  rest = np.setdiff1d(free, picks)[: budget - len(picks)]
  gains += [0.0] * len(rest)
  return Selection(
    np.asarray(picks + rest.tolist(), np.int64),
    np.asarray(gains, np.float64),
    float(radius),
  )


class _Distances:
  """Squared distances of candidates to the nearest chosen prompt.

  In float64: as differences of norms and products, small distances would keep
  few digits in float32.

  Attributes:
    square_C: as they are now; -1 where the candidate was picked.
  """

  def __init__(
    self,
    point_CxD: np.ndarray,
    norm_C: np.ndarray,
    mean_square_distance: float,
    mesh: jax.sharding.Mesh,
  ):
    self._mesh = mesh
    # Far below what matters, far above rounding: distances that are equal on
    # paper are equal here. A power of two, so that scaled pools scale.
    scale = np.floor(np.log2(mean_square_distance or 1.0))
    self._steps = np.float64(2.0 ** (44 - scale))
    self._point_CxD = point_CxD
    self._norm_C = norm_C
    self._picked_C = np.zeros(len(point_CxD), bool)
    self.square_C = np.full(len(point_CxD), np.inf)
    self._point_TxRxD = sharding.tiles(point_CxD, mesh)
    self._norm_TxR = sharding.tiles(norm_C, mesh)
    self._square_TxR = sharding.tiles(self.square_C, mesh)

  def cover(self, point_MxD: np.ndarray, norm_M: np.ndarray) -> None:
    """Counts points as chosen."""
    start = 0
    while start < len(point_MxD):
      few = len(point_MxD) - start <= _BATCH // 2
      end = start + (_SMALL_BATCH if few else _BATCH)
      # The last is repeated to fill the batch.
      part = np.minimum(np.arange(start, end), len(point_MxD) - 1)
      start = end
      with jax.enable_x64(True):
        self._square_TxR = _nearest(
          self._point_TxRxD,
          self._norm_TxR,
          self._square_TxR,
          point_MxD[part],
          norm_M[part],
          self._steps,
          mesh=self._mesh,
        )
    square_C = sharding.on_host(self._square_TxR).reshape(-1)
    self.square_C = np.where(
      self._picked_C, -1.0, square_C[: len(self._point_CxD)]
    )

  def next_picks(self, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes at least one pick; returns candidates and squared distances."""
    block_B = self._largest(_BLOCK)
    outside_C = self.square_C.copy()
    outside_C[block_B] = -1.0
    rival = int(np.argmax(outside_C))
    filled_B = np.resize(block_B, _BLOCK)
    with jax.enable_x64(True):
      pair_BxB = np.asarray(
        _pairs(self._point_CxD[filled_B], self._norm_C[filled_B], self._steps)
      )
    square_B = self.square_C[block_B]
    accepted, squares = [], []
    while len(accepted) < most:
      best = int(np.argmax(square_B))
      square = square_B[best]
      # Outside is stale, never too small; among equals the lowest index wins.
      beaten = square < outside_C[rival] or (
        square == outside_C[rival] and block_B[best] > rival
      )
      if square <= 0 or beaten:
        break
      accepted.append(block_B[best])
      squares.append(square)
      square_B = np.minimum(square_B, pair_BxB[best, : len(block_B)])
      square_B[best] = -1.0
    picked = np.asarray(accepted)
    self._picked_C[picked] = True
    self.cover(self._point_CxD[picked], self._norm_C[picked])
    return picked, np.asarray(squares)

  def _largest(self, count: int) -> np.ndarray:
    """Returns the candidates of largest distance, ascending."""
    count = min(count, len(self.square_C))
    least = np.partition(self.square_C, -count)[-count]
    above = np.flatnonzero(self.square_C > least)
    equal = np.flatnonzero(self.square_C == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _squares(
  point_AxD: jax.Array,
  norm_A: jax.Array,
  point_BxD: jax.Array,
  norm_B: jax.Array,
  steps: jax.Array,
) -> jax.Array:
  """Returns [A, B] squared distances, in whole steps of 1 / steps."""
  product_AxB = jnp.matmul(point_AxD, point_BxD.T, precision='highest')
  square_AxB = norm_A[:, None] + norm_B[None, :] - 2 * product_AxB
  return jnp.round(jnp.maximum(square_AxB, 0.0) * steps) * (1 / steps)


@jax.jit
def _pairs(
  point_BxD: jax.Array, norm_B: jax.Array, steps: jax.Array
) -> jax.Array:
  return _squares(point_BxD, norm_B, point_BxD, norm_B, steps)


@functools.partial(jax.jit, static_argnames='mesh')
def _nearest(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  square_TxR: jax.Array,
  point_MxD: jax.Array,
  norm_M: jax.Array,
  steps: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Lowers squared distances to those of the nearest of M points."""

  def share(point_TxRxD, norm_TxR, square_TxR, point_MxD, norm_M, steps):
    def one_tile(tile):
      point_RxD, norm_R, square_R = tile
      square_MxR = _squares(point_MxD, norm_M, point_RxD, norm_R, steps)
      return jnp.minimum(square_R, square_MxR.min(axis=0))

    return jax.lax.map(one_tile, (point_TxRxD, norm_TxR, square_TxR))

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 3 + (sharding.EVERYWHERE,) * 3,
    out_specs=sharding.ROWS,
    check_vma=False,
  )(point_TxRxD, norm_TxR, square_TxR, point_MxD, norm_M, steps)
