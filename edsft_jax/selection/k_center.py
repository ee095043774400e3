"""Greedy k-center: farthest first, Euclidean (Gonzalez 1985).

At most twice the best possible covering radius.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.result import Selection


def k_center(
  features: Any,
  budget: int,
  initial: Sequence[int] = (),
  first: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Selection:
  """Picks, again and again, the prompt farthest from all that are chosen."""
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  checks.mesh(mesh)
  if n:
    first = checks.indices('first', [first], n)[0]
  x = feature_NxD.astype(np.float64)
  x = x - x.mean(axis=0)
  best = np.full(n, np.inf)
  for i in initial:
    best = np.minimum(best, np.square(x - x[i]).sum(axis=1))
  taken = np.zeros(n, bool)
  taken[initial] = True
  picks = np.zeros(budget, np.int64)
  gains = np.zeros(budget)
  for step in range(budget):
    if step == 0 and not len(initial):
      pick, gains[step] = first, np.nan
    else:
      pick = int(np.argmax(np.where(taken, -1.0, best)))
      gains[step] = np.sqrt(best[pick])
    picks[step] = pick
    taken[pick] = True
    best = np.minimum(best, np.square(x - x[pick]).sum(axis=1))
  radius = float(np.sqrt(best.max(initial=0.0))) if n else 0.0
  return Selection(picks, gains, radius)
