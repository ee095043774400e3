"""Distances to the nearest chosen prompt: bounds for all, exact for some.

Distances only fall. All prompts have upper bounds, computed in float32; only
distances that could be the largest are computed in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.progress import Progress


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much is computed at once: it affects time, never a pick.

  Only tests set these; callers cannot.

  Attributes:
    farthest: number of farthest prompts that greedy picks from before it looks
      at the others again.
    batch: chosen prompts whose distances to all rows are bounded at once:
      enough for an efficient matrix product.
    small_batch: used in place of `batch` where most of that would be padding.
    exact: prompts whose exact distances are computed at once.
    tile_rows: rows per tile.
  """

  farthest: int = 512
  batch: int = 128
  small_batch: int = 32
  exact: int = 256
  tile_rows: int = sharding.TILE_ROWS


class Distances:
  """Squared distances to the nearest chosen prompt.

  Exact ones are float64: as differences of norms and products, small distances
  would keep few digits in float32.
  """

  def __init__(
    self,
    feature_NxD: np.ndarray,
    open_C: np.ndarray,
    most_chosen: int,
    mesh: jax.sharding.Mesh,
    progress: Progress,
    sizes: Sizes,
  ) -> None:
    """Starts with nothing chosen.

    Args:
      feature_NxD: the pool, at least one row.
      open_C: positions that may be picked, no two of them of equal rows.
      most_chosen: maximum number of prompts that will be chosen.
      mesh: rows are sharded over its axis 'data'.
      progress: called after every part of the work.
      sizes: how much is computed at once.
    """
    n, d = feature_NxD.shape
    self._feature_NxD = feature_NxD
    self._mesh = mesh
    self._progress = progress
    self._sizes = sizes
    self._mean_D = feature_NxD.mean(axis=0, dtype=np.float64)
    self._norm_N = self._squared_norms()
    # Squared distances are rounded to steps far above float64's rounding and
    # far below what matters, so that those equal on paper are equal here. Steps
    # are powers of two, so that a scaled pool has scaled distances.
    mean_square = 2 * self._norm_N.mean()
    if not checks.rows_differ(feature_NxD, mean_square):
      mean_square = 1.0
    scale = int(np.floor(np.log2(mean_square)))
    self._steps = np.float64(2.0 ** (44 - scale))
    # Float32 points and bounds are in units of about the mean distance, so that
    # they do not overflow.
    self._unit = np.float64(2.0 ** (scale // 2))
    self._put_on_devices()

    # Upper bounds on squared distances; -1: may not be picked.
    self._bound_N = np.full(n, -1.0)
    self._bound_N[open_C] = np.inf
    # Exact squared distances to the nearest of the first `stamp` chosen.
    self._square_N = np.full(n, np.inf)
    self._stamp_N = np.zeros(n, np.int64)
    self._num_chosen = 0
    # The last chosen is repeated after the end, so that batches are full.
    room = most_chosen + sizes.farthest + sizes.batch
    with jax.enable_x64(True):
      self._chosen_KxD = jnp.zeros((room, d))
      self._norm_K = jnp.zeros(room)

  def _squared_norms(self) -> np.ndarray:
    """Returns [N] float64 squared distances to the pool's mean."""
    norm_N = np.empty(len(self._feature_NxD))
    for part in self._parts():
      norm_N[part] = similarity_lib.squared_norms(self._points(part))
      self._progress.working()
    return norm_N

  def _put_on_devices(self) -> None:
    """Puts points, enlarged norms and bounds on the devices."""
    n, d = self._feature_NxD.shape
    # The rounding error of a product of D terms, norms and sums is less than
    # (D + 8) 2^-24 times the norms of both: norms are enlarged by more, so that
    # bounds are never too small.
    large_N = self._norm_N / self._unit**2
    large_N = large_N * (1 + (d + 16) * 2.0**-24) + 2.0**-40
    self._large_N = large_N.astype(np.float32)
    point_NxD = np.empty((n, d), np.float32)
    for part in self._parts():
      point_NxD[part] = self._points(part) / self._unit
      self._progress.working()

    def tiles(array: np.ndarray) -> jax.Array:
      return sharding.tiles(array, self._mesh, tile_rows=self._sizes.tile_rows)

    self.point_TxRxD = tiles(point_NxD)
    self._large_TxR = tiles(self._large_N)
    self._bound_TxR = tiles(np.full(n, np.inf, np.float32))
    self._progress.wait(self.point_TxRxD)

  def _parts(self) -> list[slice]:
    """Splits the pool, so that few float64 points are held at once."""
    size = self._sizes.exact
    return [slice(s, s + size) for s in range(0, len(self._feature_NxD), size)]

  def choose(self, row_M: np.ndarray) -> None:
    """Marks prompts as chosen."""
    size = self._sizes.farthest
    for start in range(0, len(row_M), size):
      part = row_M[start : start + size]
      self._append(part)
      self._lower_bounds(part)
      self._progress.wait(self._bound_TxR)
    n = len(self._bound_N)
    bound_N = sharding.on_host(self._bound_TxR).reshape(-1)[:n]
    bound_N = np.minimum(bound_N * self._unit**2, self._square_N)
    self._bound_N = np.where(self._bound_N < 0, -1.0, bound_N)

  def _append(self, row_M: np.ndarray) -> None:
    """Appends a few prompts to the chosen ones."""
    room = self._sizes.farthest + self._sizes.batch
    filled = row_M[np.minimum(np.arange(room), len(row_M) - 1)]
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
    """Lowers all bounds, given newly chosen prompts."""
    sizes = self._sizes
    point_MxD = self._points(row_M) / self._unit
    start = 0
    while start < len(row_M):
      few = len(row_M) - start <= sizes.batch // 2
      end = start + (sizes.small_batch if few else sizes.batch)
      # The last is repeated to fill the batch.
      part = np.minimum(np.arange(start, end), len(row_M) - 1)
      start = end
      self._bound_TxR = lowered_bounds(
        self.point_TxRxD,
        self._large_TxR,
        self._bound_TxR,
        point_MxD[part].astype(np.float32),
        self._large_N[row_M[part]],
        mesh=self._mesh,
      )

  def next_picks(self, most: int) -> tuple[list[int], list[float]]:
    """Picks at least one prompt, unless all distances are 0.

    Returns:
      Up to `most` prompts and their squared distances.
    """
    block_F = self._largest(self._sizes.farthest)
    square_F = self._square_N[block_F]
    if square_F.max(initial=0.0) <= 0.0:
      return [], []
    outside_N = self._bound_N.copy()
    outside_N[block_F] = -1.0
    rival = int(np.argmax(outside_N))
    filled_F = np.resize(block_F, self._sizes.farthest)
    with jax.enable_x64(True):
      square_FxF = np.asarray(
        squares_among(
          self._points(filled_F), self._norm_N[filled_F], self._steps
        )
      )
    accepted: list[int] = []
    squares: list[float] = []
    while len(accepted) < most:
      best = int(np.argmax(square_F))
      square = float(square_F[best])
      # The bound of a rival is never too small; the lowest index wins ties.
      beaten = square < outside_N[rival] or (
        square == outside_N[rival] and block_F[best] > rival
      )
      if square <= 0 or beaten:
        break
      accepted.append(int(block_F[best]))
      squares.append(square)
      square_F = np.minimum(square_F, square_FxF[best, : len(block_F)])
      square_F[best] = -1.0
    self._bound_N[accepted] = -1.0
    self.choose(np.asarray(accepted))
    return accepted, squares

  def radius(self) -> float:
    """Returns the largest distance."""
    return float(np.sqrt(self._square_N[self._largest(1)].max(initial=0.0)))

  def _largest(self, count: int) -> np.ndarray:
    """Returns the `count` prompts with the largest distances, by index.

    Their distances are exact, and no other prompt's bound is above them. The
    lowest indices win ties.
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
        # Their exact distances raise `least`, so that few others follow.
        unknown = unknown[_where_largest(self._bound_N[unknown], count)]
      self._compute(unknown)

  def _compute(self, row_M: np.ndarray) -> None:
    """Makes the distances of these prompts exact."""
    size = self._sizes.exact
    # Prompts of one part then need about the same chosen prompts.
    row_M = row_M[np.argsort(self._stamp_N[row_M], kind='stable')]
    parts = np.split(row_M, range(size, len(row_M), size))
    ahead = []
    for part in parts:
      filled = np.resize(part, size)
      with jax.enable_x64(True):
        square_R = squares_to_chosen(
          self._points(filled),
          self._norm_N[filled],
          self._chosen_KxD,
          self._norm_K,
          self._stamp_N[part[0]],
          self._num_chosen,
          self._steps,
          batch=self._sizes.batch,
        )
      ahead.append(square_R)
    for part, square_R in zip(parts, ahead, strict=True):
      self._progress.wait(square_R)
      new_M = np.asarray(square_R)[: len(part)]
      self._square_N[part] = np.minimum(self._square_N[part], new_M)
    self._stamp_N[row_M] = self._num_chosen
    self._bound_N[row_M] = self._square_N[row_M]

  def _points(self, row_M: np.ndarray | slice) -> np.ndarray:
    """Returns [M, D] float64 rows of the pool, minus its mean."""
    return np.subtract(self._feature_NxD[row_M], self._mean_D)


def _where_largest(value_N: np.ndarray, count: int) -> np.ndarray:
  """Returns the ascending positions of the largest; the first win ties."""
  if count >= len(value_N):
    return np.arange(len(value_N))
  least = np.partition(value_N, -count)[-count]
  above = np.flatnonzero(value_N > least)
  equal = np.flatnonzero(value_N == least)[: count - len(above)]
  return np.sort(np.concatenate([above, equal]))


def _partial_squares(
  chosen_MxD: jax.Array, norm_M: jax.Array, point_RxD: jax.Array
) -> jax.Array:
  """Returns [M, R] squared distances, without the squared norms of R."""
  product_MxR = jnp.matmul(chosen_MxD, point_RxD.T, precision='highest')
  return norm_M[:, None] - 2 * product_MxR


def _whole_squares(
  partial: jax.Array, norm_R: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns squared distances, rounded to multiples of 1 / steps."""
  return jnp.round(jnp.maximum(partial + norm_R, 0.0) * steps) * (1 / steps)


@jax.jit
def squares_among(
  point_FxD: jax.Array, norm_F: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns [F, F] squared distances among prompts."""
  partial_FxF = _partial_squares(point_FxD, norm_F, point_FxD)
  return _whole_squares(partial_FxF, norm_F, steps)


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


@functools.partial(jax.jit, static_argnames='batch')
def squares_to_chosen(
  point_RxD: jax.Array,
  norm_R: jax.Array,
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  start: jax.Array,
  end: jax.Array,
  steps: jax.Array,
  *,
  batch: int,
) -> jax.Array:
  """Returns [R] squared distances to the nearest from `start` to `end`."""

  def one_batch(b: jax.Array, least_R: jax.Array) -> jax.Array:
    first = start + b * batch
    partial_MxR = _partial_squares(
      jax.lax.dynamic_slice_in_dim(chosen_KxD, first, batch),
      jax.lax.dynamic_slice_in_dim(norm_K, first, batch),
      point_RxD,
    )
    return jnp.minimum(least_R, partial_MxR.min(axis=0))

  batches = (end - start + batch - 1) // batch
  least_R = jnp.full(len(point_RxD), jnp.inf, point_RxD.dtype)
  least_R = jax.lax.fori_loop(0, batches, one_batch, least_R)
  return _whole_squares(least_R, norm_R, steps)


@functools.partial(jax.jit, static_argnames='mesh')
def lowered_bounds(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  bound_TxR: jax.Array,
  point_MxD: jax.Array,
  norm_M: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Lowers bounds to squared distances to the nearest of M points."""

  def share(
    point_TxRxD: jax.Array,
    norm_TxR: jax.Array,
    bound_TxR: jax.Array,
    point_MxD: jax.Array,
    norm_M: jax.Array,
  ) -> jax.Array:
    def one_tile(tile: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
      point_RxD, norm_R, bound_R = tile
      partial_MxR = _partial_squares(point_MxD, norm_M, point_RxD)
      return jnp.minimum(bound_R, partial_MxR.min(axis=0) + norm_R)

    return jax.lax.map(one_tile, (point_TxRxD, norm_TxR, bound_TxR))

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 3 + (sharding.EVERYWHERE,) * 2,
    out_specs=sharding.ROWS,
    check_vma=False,
  )(point_TxRxD, norm_TxR, bound_TxR, point_MxD, norm_M)
