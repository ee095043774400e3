"""Similarities of candidates to every row of the pool, kept on devices.

Rows are sharded over the mesh's data axis, in the same tiles for any number of
devices. Similarities are kept while they fit, so that a candidate that comes up
again is read from memory and needs no matrix product.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import pair_pass, programs, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.device_rows import DeviceRows
from edsft_jax.selection.options import Plan

# Above every similarity: rows without weight, padding included, count as
# covered from the start.
_COVERED = 2.0


class SimilarityCache:
  """Similarities of candidates to all rows, and the coverage of the rows.

  Attributes:
    options: regimes and sizes.
    rows: the pool on devices.
    coverage: [T, R] each row's largest similarity to a chosen one. May be set
      to an earlier value.
  """

  def __init__(
    self,
    formula: str,
    point_UxD: np.ndarray,
    weight_U: np.ndarray,
    plan: Plan,
  ) -> None:
    """Starts with nothing chosen and an empty cache.

    Args:
      formula: elementwise part of the similarity.
      point_UxD: float32 points, at least one.
      weight_U: float64 weight of each row.
      plan: its mesh, its memory limit for similarities over all devices, and
        its options.
    """
    self._plan = plan
    self.options = plan.options
    self._point_UxD = point_UxD
    self._norm_U = similarity_lib.squared_norms(point_UxD)
    self._self_U = similarity_lib.self_similarity(formula, self._norm_U)
    tile_rows = plan.options.tile_rows
    self.rows = DeviceRows.of(
      formula, point_UxD, self._norm_U, weight_U, plan.mesh, tile_rows
    )
    current_U = np.where(weight_U > 0, 0.0, _COVERED).astype(np.float32)
    self.coverage = sharding.tiles(current_U, plan.mesh, _COVERED, tile_rows)

    padded, batch = self.rows.num_padded, self.options.batch
    slots = min(
      plan.memory_limit // (4 * padded), padded, self.options.max_cached
    )
    self._num_slots = max(slots // batch, 1) * batch
    self.forget()

  def forget(self) -> None:
    """Empties the cache and frees its memory."""
    self._cache_SxU: jax.Array | None = None
    self._slot_U = np.full(len(self._point_UxD), -1, np.int32)
    self._row_S = np.full(self._num_slots, -1, np.int64)
    self._next_slot = 0

  def symmetric(self, row_C: np.ndarray) -> bool:
    """Whether these candidates are served by each pair of rows once."""
    serves = self._plan.mesh.size == 1 and 2 * len(row_C) > len(self._point_UxD)
    return serves and self.options.symmetric

  def all_similarities(self) -> jax.Array:
    """Returns [U, U] similarities, padding included, on the only device."""
    rows = self.rows
    return programs.all_similarities(
      rows.point_TxRxD, rows.norm_TxR, rows.self_TxR, formula=rows.formula
    )

  def similarities(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C, U] of a few candidates, given as rows, on the host."""
    batch = self.options.batch
    parts = np.split(row_C, range(batch, len(row_C), batch))
    similarities = []
    for part in parts:
      s_CxU = sharding.on_host(self.compute(part, batch))
      similarities.append(s_CxU[: len(part)])
      self._plan.progress.working()
    return np.concatenate(similarities)

  def panels(
    self, row_C: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields [C, U] similarities and [C] gains, panel by panel.

    All candidates, in their order. The next panel is computed while the caller
    works on this one.
    """
    size = self.options.panel
    parts = np.split(row_C, range(size, len(row_C), size))
    ahead = self._panel(parts[0])
    for part, following in zip(parts, [*parts[1:], None], strict=True):
      s_CxU, gain_C = ahead
      if following is not None:
        ahead = self._panel(following)
      on_host_CxU = sharding.on_host(s_CxU)[: len(part)]
      yield on_host_CxU, np.asarray(gain_C)[: len(part)]
      self._plan.progress.working()

  def _panel(self, row_C: np.ndarray) -> tuple[jax.Array, jax.Array]:
    size = self.options.panel
    s_CxU = self.compute(row_C, size)
    return s_CxU, self._gains(s_CxU, np.arange(size))

  def gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains of at most a batch of candidates."""
    cache_SxU, slot_C = self._kept(row_C)
    gain_C = self._gains(cache_SxU, np.resize(slot_C, self.options.batch))
    self._plan.progress.wait(gain_C)
    return np.asarray(gain_C)[: len(row_C)]

  def sweep(
    self, row_C: np.ndarray, enough: float, most: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Chooses in turn those of at most a batch of candidates that gain enough.

    Returns:
      [C] gains at each one's turn, and [C] whether it was chosen: it gained at
      least `enough` and more than 0, and fewer than `most` were chosen before.
    """
    cache_SxU, slot_C = self._kept(row_C)
    with jax.enable_x64(True):
      self.coverage, gain_C, taken_C = programs.sweep(
        cache_SxU,
        np.resize(slot_C, self.options.batch),
        self.coverage,
        self.rows.weight_TxR,
        np.float64(enough),
        np.int32(most),
        mesh=self._plan.mesh,
      )
    self._plan.progress.wait(gain_C)
    # Candidates that are repeated to fill the batch come last and gain 0.
    return np.asarray(gain_C)[: len(row_C)], np.asarray(taken_C)[: len(row_C)]

  def all_gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains of many candidates, perhaps all."""
    if self.symmetric(row_C):
      return self.gains_from_pairs([self.coverage])[0][row_C]
    return self.panel_gains(row_C)

  def panel_gains(self, row_C: np.ndarray) -> np.ndarray:
    """Returns [C] float64 marginal gains, a panel of candidates at a time."""
    size = self.options.panel
    gains = []
    for part in np.split(row_C, range(size, len(row_C), size)):
      gains.append(np.asarray(self._panel(part)[1])[: len(part)])
      self._plan.progress.working()
    return np.concatenate(gains)

  def gains_from_pairs(
    self,
    coverages: Sequence[jax.Array],
    visit: pair_pass.Visit | None = None,
  ) -> np.ndarray:
    """Returns [V, U] gains of all rows, one for each of the coverages."""
    return pair_pass.gains_from_pairs(
      self.rows, coverages, visit, self.options, self._plan.progress
    )

  def cover(self, row_C: np.ndarray) -> None:
    """Marks candidates as chosen."""
    batch = self.options.batch
    for start in range(0, len(row_C), batch):
      part = row_C[start : start + batch]
      if self._cache_SxU is not None and (self._slot_U[part] >= 0).all():
        s_CxU, slot_C = self._cache_SxU, self._slot_U[part]
      else:
        s_CxU, slot_C = self.compute(part, batch), np.arange(len(part))
      slot_C = np.resize(slot_C, batch).astype(np.int32)
      self.coverage = programs.cover(s_CxU, slot_C, self.coverage)
      self._plan.progress.wait(self.coverage)

  def current(self) -> np.ndarray:
    """Returns `coverage` as [U] on the host, padding included.

    Padding and rows without weight have 2: they count as covered.
    """
    return sharding.on_host(self.coverage).reshape(-1)

  def compute(self, row_C: np.ndarray, size: int) -> jax.Array:
    """Returns [size, U] similarities; candidates are repeated to fill it."""
    row_C = np.resize(row_C, size).astype(np.int32)
    return programs.similarities(
      self.rows.point_TxRxD,
      self.rows.norm_TxR,
      self._point_UxD[row_C],
      self._norm_U[row_C],
      self._self_U[row_C],
      row_C,
      formula=self.rows.formula,
      mesh=self._plan.mesh,
    )

  def _gains(self, s_SxU: jax.Array, slot_C: np.ndarray) -> jax.Array:
    slot_C = slot_C.astype(np.int32)
    with jax.enable_x64(True):
      return programs.gains(
        s_SxU,
        slot_C,
        self.coverage,
        self.rows.weight_TxR,
        mesh=self._plan.mesh,
      )

  def _kept(self, row_C: np.ndarray) -> tuple[jax.Array, np.ndarray]:
    """Returns the cache and candidates' slots; computes those missing."""
    batch = self.options.batch
    end = self._next_slot + batch
    slot_C = self._slot_U[row_C]
    if self._cache_SxU is not None and (slot_C >= 0).all():
      return self._cache_SxU, slot_C
    if self._cache_SxU is None:
      place = jax.sharding.NamedSharding(self._plan.mesh, sharding.ROWS_SECOND)
      self._cache_SxU = jnp.zeros(
        (self._num_slots, self.rows.num_padded), jnp.float32, device=place
      )
    # Candidates in slots that will be overwritten are missing, too.
    missing = (slot_C < 0) | (slot_C >= self._next_slot) & (slot_C < end)
    new_C = row_C[missing]
    s_CxU = self.compute(new_C, batch)
    self._cache_SxU = programs.store(self._cache_SxU, s_CxU, self._next_slot)
    old = self._row_S[self._next_slot : end]
    self._slot_U[old[old >= 0]] = -1
    old[:] = -1
    old[: len(new_C)] = new_C
    self._slot_U[new_C] = np.arange(self._next_slot, end)[: len(new_C)]
    self._next_slot = end % self._num_slots
    return self._cache_SxU, self._slot_U[row_C]
