"""The distinct rows of a pool on devices, in tiles of one shape."""

import dataclasses

import jax
import numpy as np

from edsft_jax.selection import sharding
from edsft_jax.selection import similarity as similarity_lib


@dataclasses.dataclass(frozen=True)
class DeviceRows:
  """The inputs of similarities; each device holds its share of the tiles.

  Attributes:
    formula: elementwise part of the similarity.
    point_TxRxD: float32 points; padding is zero.
    norm_TxR: their squared norms.
    self_TxR: similarities of rows to themselves.
    weight_TxR: float64 weights of rows; None where all are 1.
  """

  formula: str
  point_TxRxD: jax.Array
  norm_TxR: jax.Array
  self_TxR: jax.Array
  weight_TxR: jax.Array | None

  @classmethod
  def of(
    cls,
    formula: str,
    point_UxD: np.ndarray,
    norm_U: np.ndarray,
    weight_U: np.ndarray,
    mesh: jax.sharding.Mesh,
    tile_rows: int,
  ) -> 'DeviceRows':
    """Shards the rows over the mesh's axis 'data'."""

    def tiles(array: np.ndarray) -> jax.Array:
      return sharding.tiles(array, mesh, tile_rows=tile_rows)

    return cls(
      formula=formula,
      point_TxRxD=tiles(point_UxD),
      norm_TxR=tiles(norm_U),
      self_TxR=tiles(similarity_lib.self_similarity(formula, norm_U)),
      weight_TxR=tiles(weight_U) if (weight_U != 1).any() else None,
    )

  @property
  def num_padded(self) -> int:
    """Rows, padding included."""
    return self.norm_TxR.size
