"""The pool in two dimensions: PCA, and UMAP where it is installed."""

from collections.abc import Mapping
import dataclasses
import importlib.util

import numpy as np

# UMAP looks for 15 neighbours of each prompt, and fails if there are only three
# prompts; for more than the second number, it takes minutes.
_MIN_UMAP, _MAX_UMAP = 16, 20_000


@dataclasses.dataclass(frozen=True)
class Projection:
  """Points of the pool's prompts.

  Attributes:
    points: method -> [N, 2], in pool order, each axis from 0 to 1.
    notes: method -> what to know about its distances, as a sentence.
  """

  points: Mapping[str, np.ndarray]
  notes: Mapping[str, str]


def project(features: np.ndarray) -> Projection | None:
  """Projects features [N, D]; None if N or D is below 2."""
  if min(features.shape) < 2:
    return None
  row_NxD = features.astype(np.float64)
  row_NxD -= row_NxD.mean(0)
  point_Nx2, kept = _pca(row_NxD)
  points = {'PCA': _scaled(point_Nx2)}
  notes = {'PCA': f'Two principal components keep {kept:.0%} of the variance.'}
  fits = _MIN_UMAP <= len(features) <= _MAX_UMAP
  if fits and importlib.util.find_spec('umap'):
    points['UMAP'] = _scaled(_umap(features))
    notes['UMAP'] = (
      'UMAP keeps similar prompts together; distances between groups mean '
      'little.'
    )
  return Projection(points, notes)


def _pca(row_NxD: np.ndarray) -> tuple[np.ndarray, float]:
  """The first two principal components, and their share of the variance."""
  if min(row_NxD.shape) > 10 and row_NxD.any():
    from scipy.sparse import linalg

    # Fixed, so that pages are the same; not ones, which may be orthogonal to
    # all rows, since these are centred.
    start = np.random.default_rng(0).normal(size=min(row_NxD.shape))
    left, value, right = linalg.svds(row_NxD, k=2, v0=start)
    # Singular values come in ascending order.
    left, value, right = left[:, ::-1], value[::-1], right[::-1]
  else:
    left, value, right = np.linalg.svd(row_NxD, full_matrices=False)
    left, value, right = left[:, :2], value[:2], right[:2]
  # Signs are arbitrary: the largest weight of each component is positive.
  largest = np.abs(right).argmax(1)
  sign = np.where(right[np.arange(2), largest] < 0, -1.0, 1.0)
  total = (row_NxD**2).sum()
  return left * value * sign, float((value**2).sum() / total if total else 0.0)


def _umap(features: np.ndarray) -> np.ndarray:
  import umap

  # With a fixed seed, UMAP uses one thread, and warns if asked for more.
  return umap.UMAP(random_state=0, n_jobs=1).fit_transform(features)


def _scaled(point_Nx2: np.ndarray) -> np.ndarray:
  """The points with both axes from 0 to 1, to four digits."""
  low, high = point_Nx2.min(0), point_Nx2.max(0)
  reach = np.where(high > low, high - low, 1.0)
  return np.round((point_Nx2 - low) / reach, 4).astype(np.float64)
