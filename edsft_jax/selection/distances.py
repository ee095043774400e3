"""Distances to the nearest chosen prompt: bounds for all, exact for some.

Distances only fall, so an old bound is still a bound. All prompts have upper
bounds, computed in float32, which are lowered only in tiles where one could be
among the largest distances; only those that are get computed in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, nearest, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.progress import Progress


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much is computed at once: it affects time, never a pick.

  Only tests set these; callers cannot.

  Attributes:
    farthest: number of farthest prompts that greedy picks from before it looks
      at the others again.
    batch: chosen prompts whose distances to a tile are bounded at once: enough
      for an efficient matrix product.
    exact: prompts whose exact distances are computed at once.
    tile_rows: rows per tile.
  """

  farthest: int = 512
  batch: int = 128
  exact: int = 256
  tile_rows: int = 1024


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
    # Rows far from the mean have large distances for long: tiles hold rows of
    # similar norms, so that few tiles have the largest distances.
    self._order_N = np.argsort(-self._norm_N, kind='stable')
    self._put_on_devices()

    # Upper bounds on squared distances; -1: may not be picked.
    self._bound_N = np.full(n, -1.0)
    self._bound_N[open_C] = np.inf
    # Exact squared distances to the nearest of the first `stamp` chosen.
    self._square_N = np.full(n, np.inf)
    self._stamp_N = np.zeros(n, np.int64)
    self._num_chosen = 0
    # What is not chosen yet is infinitely far, so that batches may include it.
    room = most_chosen + sizes.farthest + sizes.batch
    nowhere_K = np.full(room, np.inf)
    with jax.enable_x64(True):
      self._chosen_KxD = jnp.zeros((room, d))
      self._norm_K = jnp.asarray(nowhere_K)
    # The same for bounds, in their units.
    replicated = jax.sharding.NamedSharding(mesh, sharding.EVERYWHERE)
    self._near_KxD = jnp.zeros((room, d), jnp.float32, device=replicated)
    self._large_K = jax.device_put(nowhere_K.astype(np.float32), replicated)

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
      point_NxD[part] = self._points(self._order_N[part]) / self._unit
      self._progress.working()

    def tiles(array: np.ndarray) -> jax.Array:
      return sharding.tiles(array, self._mesh, tile_rows=self._sizes.tile_rows)

    self.point_TxRxD = tiles(point_NxD)
    self._large_TxR = tiles(self._large_N[self._order_N])
    self._bound_TxR = tiles(np.full(n, np.inf, np.float32))
    # Bounds of a tile are to the nearest of the first `seen` chosen.
    self._seen_T = np.zeros(len(self.point_TxRxD), np.int32)
    self._tile_N = np.empty(n, np.int64)
    self._tile_N[self._order_N] = np.arange(n) // self._sizes.tile_rows
    self._progress.wait(self.point_TxRxD)

  def _parts(self) -> list[slice]:
    """Splits the pool, so that few float64 points are held at once."""
    size = self._sizes.exact
    return [slice(s, s + size) for s in range(0, len(self._feature_NxD), size)]

  def choose(self, row_M: np.ndarray) -> None:
    """Marks prompts as chosen."""
    size = self._sizes.farthest
    for start in range(0, len(row_M), size):
      self._append(row_M[start : start + size])
      self._progress.working()

  def _append(self, row_M: np.ndarray) -> None:
    """Appends a few prompts to the chosen ones."""
    batch = self._sizes.batch
    count = len(row_M)
    # Few sizes, so that few programs are compiled.
    size = batch if count <= batch else max(self._sizes.farthest, count)
    point_MxD = np.zeros((size, self._feature_NxD.shape[1]))
    point_MxD[:count] = self._points(row_M)
    norm_M = np.full(size, np.inf)
    norm_M[:count] = self._norm_N[row_M]
    large_M = np.full(size, np.inf, np.float32)
    large_M[:count] = self._large_N[row_M]
    near_MxD = (point_MxD / self._unit).astype(np.float32)
    start = np.int32(self._num_chosen)
    with jax.enable_x64(True):
      self._chosen_KxD, self._norm_K = _put(
        self._chosen_KxD, self._norm_K, point_MxD, norm_M, start
      )
    self._near_KxD, self._large_K = _put(
      self._near_KxD, self._large_K, near_MxD, large_M, start
    )
    self._num_chosen += count

  def _lower_bounds(self, wanted_T: np.ndarray) -> None:
    """Lowers the bounds of these tiles to all that is chosen."""
    self._bound_TxR = nearest.lowered_bounds(
      self.point_TxRxD,
      self._large_TxR,
      self._bound_TxR,
      np.where(wanted_T, self._seen_T, self._num_chosen).astype(np.int32),
      self._near_KxD,
      self._large_K,
      np.int32(self._num_chosen),
      mesh=self._mesh,
      batch=self._sizes.batch,
    )
    self._progress.wait(self._bound_TxR)
    self._seen_T[wanted_T] = self._num_chosen
    n = len(self._bound_N)
    bound_N = np.empty(n)
    bound_N[self._order_N] = sharding.on_host(self._bound_TxR).reshape(-1)[:n]
    bound_N = np.minimum(bound_N * self._unit**2, self._square_N)
    self._bound_N = np.where(self._bound_N < 0, -1.0, bound_N)

  def _lower_above(self, least: float) -> bool:
    """Lowers the bounds of tiles with one of at least `least`, if any is old.

    Returns:
      Whether there was such a tile.
    """
    most_T = np.full(len(self._seen_T), -1.0)
    np.maximum.at(most_T, self._tile_N, self._bound_N)
    old_T = (self._seen_T < self._num_chosen) & (most_T >= 0)
    wanted_T = old_T & (most_T >= least)
    if wanted_T.any():
      self._lower_bounds(wanted_T)
    return bool(wanted_T.any())

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
        nearest.squares_among(
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
    # First where bounds are largest, so that few other tiles follow.
    while self._lower_above(_nth_largest(self._bound_N, count)):
      pass
    while True:
      known_N = self._stamp_N == self._num_chosen
      known = np.flatnonzero(known_N & (self._bound_N >= 0))
      top = known[_where_largest(self._square_N[known], count)]
      least = self._square_N[top].min() if len(top) == count else 0.0
      if len(top) == count and self._lower_above(least):
        continue
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
    few = max(size // 16, 1)
    ahead = []
    for part in parts:
      # Often only one prompt is missing: padding would then cost the most.
      filled = np.resize(part, few if len(part) <= few else size)
      with jax.enable_x64(True):
        square_R = nearest.squares_to_chosen(
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


def _nth_largest(value_N: np.ndarray, count: int) -> float:
  """Returns the count-th largest value, or the least if there are fewer."""
  if count >= len(value_N):
    return float(value_N.min())
  return float(np.partition(value_N, -count)[-count])


def _where_largest(value_N: np.ndarray, count: int) -> np.ndarray:
  """Returns the ascending positions of the largest; the first win ties."""
  if count >= len(value_N):
    return np.arange(len(value_N))
  least = np.partition(value_N, -count)[-count]
  above = np.flatnonzero(value_N > least)
  equal = np.flatnonzero(value_N == least)[: count - len(above)]
  return np.sort(np.concatenate([above, equal]))


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
