"""Facility location over all similarities of a small pool, on the host.

Below a few thousand rows, finding the entries that can still count takes longer
than reading all of them again. Only the first gains come from the device.
"""

import jax
import numpy as np

from edsft_jax.selection import programs


class Kernel:
  """All similarities among rows, and the coverage of the rows.

  Attributes:
    current_U: float32, each row's largest similarity to a chosen one.
  """

  def __init__(
    self,
    s_UxU: jax.Array,
    current_U: np.ndarray,
    weight_U: np.ndarray,
    row_C: np.ndarray,
  ) -> None:
    """Takes what `SimilarityCache.all_similarities` returns.

    Args:
      s_UxU: similarities, padding included.
      current_U: coverage of each row; padding counts as covered.
      weight_U: float64, what covering each row is worth.
      row_C: the candidates as rows.
    """
    self.current_U = current_U.copy()
    self._row_C = row_C
    self._device_s_UxU = s_UxU
    # Without an accelerator, this copies nothing.
    self._s_UxU = np.asarray(s_UxU)
    self._weight_U: np.ndarray | None = None
    if (weight_U != 1).any():
      self._weight_U = np.zeros(len(current_U))
      self._weight_U[: len(weight_U)] = weight_U
    self._buffer_U = np.empty_like(self.current_U)
    self._covered = float(self.current_U.sum(dtype=np.float64))

  def gain(self, candidate: int) -> float:
    """Returns the marginal gain of a candidate."""
    s_U = self._s_UxU[self._row_C[candidate]]
    if self._weight_U is None:
      # Both sums are exact, so their difference is too.
      better_U = np.maximum(s_U, self.current_U, out=self._buffer_U)
      return float(np.add.reduce(better_U, dtype=np.float64)) - self._covered
    extra_U = np.maximum(s_U - self.current_U, 0.0).astype(np.float64)
    return float(np.dot(extra_U, self._weight_U))

  def gains(self) -> np.ndarray:
    """Returns the marginal gains of all candidates."""
    with jax.enable_x64(True):
      gain_U = _gains(self._device_s_UxU, self.current_U, self._weight_U)
    return np.asarray(gain_U)[self._row_C]

  def cover(self, candidate: int) -> None:
    """Marks a candidate as chosen."""
    s_U = self._s_UxU[self._row_C[candidate]]
    np.maximum(self.current_U, s_U, out=self.current_U)
    self._covered = float(self.current_U.sum(dtype=np.float64))


@jax.jit
def _gains(
  s_UxU: jax.Array, current_U: jax.Array, weight_U: jax.Array | None
) -> jax.Array:
  """Returns [U] float64 marginal gains of all rows as candidates."""
  summand_UxU, before = programs.summands(s_UxU, current_U, weight_U)
  # 16 sums at a time along the last axis fill a vector register.
  return summand_UxU.reshape(len(s_UxU), -1, 16).sum(1).sum(1) - before
