"""Similarities of prompts: RBF and cosine, as functions of inner products.

A similarity turns features into float32 points once; s(i, j) is then an
elementwise function of the inner product of two points and their squared
norms, so a block of similarities is one matrix product and one fused
elementwise pass.

Similarities are rounded to multiples of 2**-24. Differences of them are then
exact in float32, and sums of up to 2**29 exact in float64 in any order, so
neither block sizes nor the number of devices can change a gain, and equal
gains are equal.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError

GRID = 2.0**24
_ROWS = 8192
# Squared distances are sums of four numbers that do not exceed this.
_LARGEST = float(np.finfo(np.float32).max) / 4

# Called after every block of rows, to report that work continues.
Working: TypeAlias = Callable[[], None] | None


class Similarity(Protocol):
  """What facility location and log-determinant need of a similarity."""

  @property
  def formula(self) -> str:
    """Name of the elementwise part: a branch of `from_products`."""

  def points(self, features: np.ndarray, working: Working = None) -> np.ndarray:
    """Returns [N, D] float32 points for [N, D] checked features."""


@dataclasses.dataclass(frozen=True)
class Rbf:
  """s(i, j) = exp(-||f_i - f_j||^2 / (width m)), or exp(-gamma ||.||^2).

  m is the mean squared distance over all N^2 ordered pairs of the pool, so
  width has no unit. Where all rows are equal, s = 1.

  Attributes:
    width: above 0; or None with gamma.
    gamma: above 0, in 1 / squared feature units; or None with width.
  """

  width: float | None = None
  gamma: float | None = None

  def __post_init__(self) -> None:
    if (self.width is None) == (self.gamma is None):
      raise SelectionError('Rbf needs either width or gamma')
    if self.width is not None:
      checks.positive('width', self.width)
    else:
      checks.positive('gamma', self.gamma)

  @property
  def formula(self) -> str:
    """Name of the elementwise part."""
    return 'rbf'

  def points(self, features: np.ndarray, working: Working = None) -> np.ndarray:
    """Centres and scales so that s = exp(-squared distance of points).

    Distances are differences of norms and inner products, so the pool's mean
    is subtracted first: an offset would cost digits.
    """
    mean_D, mean_square_distance = moments(features, working)
    # What overflows is refused below.
    with np.errstate(over='ignore', invalid='ignore', divide='ignore'):
      if self.gamma is not None:
        factor = self.gamma
      elif self.width is not None and checks.rows_differ(
        features, mean_square_distance
      ):
        factor = 1 / (self.width * mean_square_distance)
      else:
        factor = 0.0
      points = _shift_and_scale(features, mean_D, np.sqrt(factor), working)
      # No row's squared norm exceeds half the sum of squared distances.
      if not len(features) * mean_square_distance * factor <= 2 * _LARGEST:
        _check_norms(points)
    return points


@dataclasses.dataclass(frozen=True)
class Cosine:
  """s(i, j) = (1 + cos) / 2 ('shift') or max(0, cos) ('clip').

  A row of zeros has cosine 0 with every row, itself included.
  """

  transform: str = 'shift'

  def __post_init__(self) -> None:
    checks.one_of('transform', self.transform, ('shift', 'clip'))

  @property
  def formula(self) -> str:
    """Name of the elementwise part."""
    return f'cosine_{self.transform}'

  def points(self, features: np.ndarray, working: Working = None) -> np.ndarray:
    """Scales every row to length 1; rows of zeros stay."""
    points = np.empty(features.shape, np.float32)
    for start in _starts(len(features), working):
      block = features[start : start + _ROWS].astype(np.float64)
      # By the largest entry first, so squares neither overflow nor underflow.
      largest = np.abs(block).max(axis=1, keepdims=True, initial=0.0)
      block /= np.where(largest > 0, largest, 1.0)
      norm = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
      points[start : start + _ROWS] = block / np.where(norm > 0, norm, 1.0)
    return points


# The default of facility_location and log_determinant.
DEFAULT = Rbf(width=1.0)


def _starts(n: int, working: Working) -> Iterator[int]:
  """Yields where each block of rows starts; calls `working` after each."""
  for start in range(0, n, _ROWS):
    yield start
    if working is not None:
      working()


def moments(
  features: np.ndarray, working: Working = None
) -> tuple[np.ndarray, float]:
  """Returns the mean row [D] and the mean squared distance of row pairs."""
  if not len(features):
    return np.zeros(features.shape[1]), 0.0
  mean_D = features.mean(axis=0, dtype=np.float64)
  total = 0.0
  for start in _starts(len(features), working):
    total += np.square(features[start : start + _ROWS] - mean_D).sum()
  return mean_D, 2 * total / len(features)


def _shift_and_scale(
  features: np.ndarray, mean_D: np.ndarray, scale: float, working: Working
) -> np.ndarray:
  points = np.empty(features.shape, np.float32)
  for start in _starts(len(features), working):
    block = features[start : start + _ROWS] - mean_D
    points[start : start + _ROWS] = block * scale
  return points


def _check_norms(points: np.ndarray) -> None:
  """Refuses rows whose squared norms are too large for float32."""
  good_N = squared_norms(points) <= _LARGEST
  if not good_N.all():
    raise SelectionError(
      f'features: row {int(np.argmin(good_N))} is so far from the mean that '
      'its squared distance in units of the Rbf overflows float32: a larger '
      'width or a smaller gamma is needed'
    )


def squared_norms(points: np.ndarray) -> np.ndarray:
  """Returns [N] squared lengths, of the points' precision."""
  norms = np.empty(len(points), points.dtype)
  for start in range(0, len(points), _ROWS):
    block = points[start : start + _ROWS].astype(np.float64, copy=False)
    norms[start : start + _ROWS] = np.square(block).sum(axis=1)
  return norms


def self_similarity(formula: str, norm_N: np.ndarray) -> np.ndarray:
  """Returns [N] float32 s(i, i): exactly 1, except for zero rows and cosine."""
  zero_row = {'rbf': 1.0, 'cosine_shift': 0.5, 'cosine_clip': 0.0}[formula]
  return np.where(norm_N > 0, 1.0, zero_row).astype(np.float32)


def from_products(
  formula: str, product_AxB: jax.Array, norm_A: jax.Array, norm_B: jax.Array
) -> jax.Array:
  """Turns inner products of points into similarities on the 2**-24 grid."""
  if formula == 'rbf':
    distance = norm_A[:, None] + norm_B[None, :] - 2 * product_AxB
    s_AxB = jnp.exp(-jnp.maximum(distance, 0.0))
  elif formula == 'cosine_shift':
    s_AxB = jnp.clip(0.5 + 0.5 * product_AxB, 0.0, 1.0)
  else:
    s_AxB = jnp.clip(product_AxB, 0.0, 1.0)
  return jnp.round(s_AxB * GRID) / GRID


def products(point_AxD: jax.Array, point_BxD: jax.Array) -> jax.Array:
  """Returns [A, B] inner products of two blocks of points."""
  return jnp.matmul(point_AxD, point_BxD.T, precision='highest')


def tile(
  formula: str,
  point_AxD: jax.Array,
  norm_A: jax.Array,
  point_BxD: jax.Array,
  norm_B: jax.Array,
) -> jax.Array:
  """Returns [A, B] similarities of two blocks of points."""
  product_AxB = products(point_AxD, point_BxD)
  return from_products(formula, product_AxB, norm_A, norm_B)


@dataclasses.dataclass(frozen=True)
class Distinct:
  """The pool with bitwise equal rows counted once.

  Equal rows have exactly the same similarities only if they are computed
  once; after one of them is picked the others can gain nothing.

  Attributes:
    point_UxD: the distinct rows, in the order of their first members.
    group_N: which distinct row each pool row is.
  """

  point_UxD: np.ndarray
  group_N: np.ndarray


def distinct_rows(points: np.ndarray, working: Working = None) -> Distinct:
  """Finds bitwise equal rows by hashing, and verifies them."""
  n = len(points)
  word = {4: np.uint32, 8: np.uint64}[points.itemsize]
  multiplier_D = np.random.default_rng(0).integers(
    0, 2**63, size=points.shape[1], dtype=np.uint64
  )
  multiplier_D = 2 * multiplier_D + 1
  hash_N = np.empty(n, np.uint64)
  for start in _starts(n, working):
    # -0.0 and 0.0 are the same number but not the same bits.
    block = np.ascontiguousarray(points[start : start + _ROWS]) + 0.0
    bits = block.view(word).astype(np.uint64, copy=False)
    hash_N[start : start + _ROWS] = bits @ multiplier_D
  _, first, inverse = np.unique(hash_N, return_index=True, return_inverse=True)
  if len(first) == n:
    return Distinct(points, np.arange(n))
  if not _rows_equal(points, first[inverse]):
    # Two different rows share a hash: compare whole rows instead.
    _, first, inverse = np.unique(
      points, axis=0, return_index=True, return_inverse=True
    )
    inverse = inverse.reshape(-1)
  order = np.argsort(first)
  rank = np.empty(len(first), np.int64)
  rank[order] = np.arange(len(first))
  return Distinct(points[first[order]], rank[inverse])


def _rows_equal(points: np.ndarray, other_N: np.ndarray) -> bool:
  return all(
    np.array_equal(
      points[start : start + _ROWS], points[other_N[start : start + _ROWS]]
    )
    for start in range(0, len(points), _ROWS)
  )


def check(value: object) -> Similarity:
  """Returns the value if it is a similarity."""
  if not isinstance(value, (Rbf, Cosine)):
    raise SelectionError(
      f'similarity {value!r}: Rbf(width=...), Rbf(gamma=...) or '
      "Cosine(transform='shift' | 'clip') is needed"
    )
  return value
