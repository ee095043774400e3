"""Derives a kernel width and tasks from the features, for strategies."""

import numpy as np

from edsft_jax import console, selection, store

# Kernel widths of the gains curves, in units of the pool's mean squared
# distance: from no prompt similar to another, to all similar.
WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# Only the shape of the decay matters: the curves of a larger pool are computed
# on an even sample of this many prompts, with a proportional budget.
CURVE_PROMPTS = 4000

# Limit on the tasks found in a pool without labels, unless the config sets it.
MAX_CLUSTERS = 100


def tasks(features: np.ndarray, num_clusters: int) -> list[str]:
  """Finds tasks by k-means, numbered in order of first occurrence.

  Args:
    features: [N, D].
    num_clusters: number of tasks; 0: the square root of half the pool, at most
      100.
  """
  suggested = min(max(round(np.sqrt(len(features) / 2)), 1), MAX_CLUSTERS)
  labels = selection.cluster_tasks(features, num_clusters or suggested)
  console.say(
    'select',
    'the pool has no task labels: '
    f'found {console.count(labels.max() + 1, "task")} by k-means on features',
  )
  return [f'cluster {label}' for label in labels]


def with_scale(width: float, features: np.ndarray) -> selection.Rbf:
  """The kernel of this width for a pool with these features [N, D].

  It stays the same when other prompts join the pool.
  """
  # Over all N^2 pairs, as in selection.Rbf.
  mean_square_distance = 2 * features.var(axis=0, dtype=np.float64).sum()
  if not mean_square_distance > 0:
    return selection.Rbf(width=width)
  return selection.Rbf(gamma=float(1 / (width * mean_square_distance)))


def kernel_width(
  workdir: store.Workdir,
  features: np.ndarray,
  budget: int,
  features_hash: str,
  grown: bool,
) -> float:
  """Returns the width that the gains curves suggest.

  The curves are computed once per workdir. A larger budget or pool keeps the
  first width, since another one would give a different order, without some of
  the prompts already bought.

  Args:
    workdir: has selections/gains_curves.json, which is read or written.
    features: [N, D].
    budget: the largest budget of the study.
    features_hash: hash of the features, stored with the curves.
    grown: whether prompts were appended to the pool.
  """
  if workdir.gains_curves.exists():
    known = store.read_json(workdir.gains_curves)
    if grown or known['features'] == features_hash:
      return known['suggested']
  n = len(features)
  sample = np.unique(
    np.linspace(0, n - 1, min(n, CURVE_PROMPTS)).astype(np.int64)
  )
  sample_budget = max(1, budget * len(sample) // n)
  result = selection.gains_curves(features[sample], sample_budget, WIDTHS)
  store.write_json(
    workdir.gains_curves,
    {
      'features': features_hash,
      'num_prompts': len(sample),
      'budget': sample_budget,
      'widths': [float(w) for w in WIDTHS],
      'curves': np.asarray(result.curves, np.float64).tolist(),
      'degenerate': [flag or None for flag in result.degenerate],
      'suggested': float(result.suggested),
      'width': float(result.suggested),
    },
  )
  console.say(
    'select',
    f'kernel width {result.suggested:g}, suggested by the gains curves of '
    f'{len(sample):,} prompts',
  )
  return float(result.suggested)
