"""What strategies derive from the features: a kernel width, and tasks."""

import numpy as np

from edsft_jax import console, selection, store

# Widths that the gains curves are drawn for, in units of the pool's mean
# squared distance: from every item alone to everything alike.
WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# Curves need the shape of the decay, not the last prompt: past this many
# prompts they are drawn on an even sample with the budget cut in proportion.
CURVE_PROMPTS = 4000

# Tasks found at most in a pool without labels, unless the config says how many.
MOST_CLUSTERS = 100


def tasks(features: np.ndarray, num_clusters: int) -> list[str]:
  """Tasks by k-means, named in the order in which the pool shows them.

  Args:
    features: [N, D].
    num_clusters: how many; 0: the root of half the pool, at most 100.
  """
  suggested = min(max(round(np.sqrt(len(features) / 2)), 1), MOST_CLUSTERS)
  labels = selection.cluster_tasks(features, num_clusters or suggested)
  console.say(
    'select',
    'the pool has no task labels: '
    f'{console.count(labels.max() + 1, "task")} by k-means on the features',
  )
  return [f'cluster {label}' for label in labels]


def kernel_width(
  workdir: store.Workdir,
  features: np.ndarray,
  budget: int,
  features_hash: str,
) -> float:
  """Draws the gains curves once per workdir; the width that they suggest.

  A larger budget later keeps the first width: another one would give another
  order, and prompts already bought would drop out of it.

  Args:
    workdir: where selections/gains_curves.json is read or written.
    features: [N, D].
    budget: the largest of the study.
    features_hash: of the features, kept with the curves.
  """
  if workdir.gains_curves.exists():
    known = store.read_json(workdir.gains_curves)
    if known['features'] == features_hash:
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
