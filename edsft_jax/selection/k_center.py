"""Greedy k-center: farthest first, Euclidean (Gonzalez 1985).

The covering radius is at most twice the best possible. Picks are exact without
a pass over the pool for each: distances to the nearest chosen prompt only fall,
so greedy picks only among the farthest prompts, until their largest distance no
longer exceeds that of the others.
"""

import jax
import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.distances import Distances, Sizes
from edsft_jax.selection.inputs import Features, Positions
from edsft_jax.selection.progress import Callback, Progress
from edsft_jax.selection.result import Selection


def k_center(
  features: Features,
  budget: int,
  initial: Positions = (),
  first: int = 0,
  mesh: jax.sharding.Mesh | None = None,
  progress: Callback | None = None,
) -> Selection:
  """Picks, again and again, the prompt farthest from all that are chosen.

  >>> result = k_center([[0.0], [1.0], [5.0], [9.0]], budget=3)
  >>> result.indices.tolist(), result.gains.tolist(), result.objective
  ([0, 3, 2], [nan, 9.0, 4.0], 1.0)

  Args:
    features: [N, D] numbers.
    budget: new picks.
    initial: already chosen positions.
    first: position of the first pick; ignored if there is an initial one.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    progress: called with (picks, budget) throughout; see `progress.Progress`.

  Returns:
    A Selection: gains are distances to the nearest prompt chosen before, in
    units of the features (NaN for a first pick, which has none); the lowest
    index wins among equals. The objective is the covering radius: the largest
    distance of a prompt to the nearest of initial and picks (infinite when
    nothing is chosen).

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  return farthest_first(
    features, budget, initial, first, mesh, progress, Sizes()
  )


def farthest_first(
  features: Features,
  budget: int,
  initial: Positions,
  first: int,
  mesh: jax.sharding.Mesh | None,
  progress: Callback | None,
  sizes: Sizes,
) -> Selection:
  """Implements `k_center`; `sizes` says how much is computed at once."""
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial_I))
  chosen = initial_I
  if n and not len(initial_I):
    chosen = checks.indices('first', [first], n)[: min(budget, 1)]
  mesh = checks.mesh(mesh)
  report = Progress(progress, budget)
  report.working()
  if not len(chosen):
    report.picked(budget)
    nothing = np.zeros(0)
    return Selection(nothing.astype(np.int64), nothing, np.inf if n else 0.0)

  picks = chosen[len(initial_I) :].tolist()
  gains: list[float] = [np.nan] * len(picks)
  free = checks.choosable(n, chosen)
  distances = Distances(
    feature_NxD,
    _distinct(feature_NxD, free, chosen, report),
    budget + len(initial_I),
    mesh,
    report,
    sizes,
  )
  distances.choose(chosen)
  while len(picks) < budget:
    accepted, squares = distances.next_picks(budget - len(picks))
    if not accepted:
      break
    picks += accepted
    gains += np.sqrt(squares).tolist()
    report.picked(len(picks))
  radius = distances.radius()
  rest = np.setdiff1d(free, picks)[: budget - len(picks)]
  gains += [0.0] * len(rest)
  report.picked(budget)
  return Selection(
    np.asarray(picks + rest.tolist(), np.int64),
    np.asarray(gains, np.float64),
    radius,
  )


def _distinct(
  feature_NxD: np.ndarray,
  free: np.ndarray,
  chosen: np.ndarray,
  report: Progress,
) -> np.ndarray:
  """Returns one free position for each distinct row that is not chosen.

  It is the first of equal rows. Copies of chosen rows are at distance 0.
  """
  distinct = similarity_lib.distinct_rows(feature_NxD, report.working)
  group_N = distinct.group_N
  open_N = free[~np.isin(group_N[free], group_N[chosen])]
  _, where = np.unique(group_N[open_N], return_index=True)
  return open_N[where]
