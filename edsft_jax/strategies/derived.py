"""Derives a kernel width and tasks from the features, for strategies."""

import dataclasses
import math

import ml_collections
import numpy as np

from edsft_jax import console, selection, store

# Limit on the tasks found in a pool without labels, unless the config sets it.
MAX_CLUSTERS = 100


@dataclasses.dataclass(frozen=True)
class SampleSizes:
  """How many prompts of a large pool the gains curves are computed on.

  The budget is proportional: a pick then stands for as many prompts.

  Attributes:
    prompts: the usual number.
    least_picks: the sample is larger if it would leave fewer picks than this.
    most_prompts: but no larger than this.
  """

  prompts: int = 4000
  least_picks: int = 20
  most_prompts: int = 20_000

  def num_prompts(self, pool: int, budget: int) -> int:
    """Prompts in the sample of a pool of this size."""
    wanted = max(self.prompts, math.ceil(self.least_picks * pool / budget))
    return min(pool, wanted, self.most_prompts)


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


def configured(
  kernel: ml_collections.ConfigDict,
) -> selection.Similarity | None:
  """The kernel of the config, or None if its width is still to be chosen."""
  if kernel.similarity == 'cosine':
    return selection.Cosine(transform=kernel.transform)
  if kernel.gamma:
    return selection.Rbf(gamma=kernel.gamma)
  return selection.Rbf(width=kernel.width) if kernel.width else None


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
  sizes: SampleSizes | None = None,
  of: str = 'the pool',
) -> float:
  """Returns the width that the gains curves suggest: selection.kernel_width.

  The curves are computed once per workdir. A larger budget or pool keeps the
  first width, since another one would give a different order, without some of
  the prompts already bought.

  Args:
    workdir: has selections/gains_curves.json, which is read or written.
    features: [N, D].
    budget: the largest budget of the study.
    features_hash: hash of the features, stored with the curves.
    grown: whether prompts were appended to the pool.
    sizes: of the sample.
    of: what the features are of, to say so.
  """
  if workdir.gains_curves.exists():
    known = store.read_json(workdir.gains_curves)
    if grown or known['features'] == features_hash:
      return known['suggested']
  n = len(features)
  size = (sizes or SampleSizes()).num_prompts(n, budget)
  sample = np.unique(np.linspace(0, n - 1, size).astype(np.int64))
  sample_budget = max(1, round(budget * len(sample) / n))
  found = selection.kernel_width(features[sample], sample_budget)
  store.write_json(
    workdir.gains_curves,
    {
      'features': features_hash,
      'num_prompts': len(sample),
      'budget': sample_budget,
      'widths': list(found.widths),
      'curves': found.curves.tolist(),
      'degenerate': [flag or None for flag in found.degenerate],
      'suggested': found.width,
      'width': found.width,
    },
  )
  of_all = f'a sample of {len(sample):,}' if len(sample) < n else of
  console.say(
    'select',
    f'kernel width {found.width:g}, from the gains curves of {of_all}: '
    f'{_outcome(found, len(sample), sample_budget)}',
  )
  return found.width


def _outcome(
  found: selection.KernelWidth, num_prompts: int, budget: int
) -> str:
  """What the search for a width came to, in words."""
  if not found.pick:
    return 'any width would do, since most prompts repeat others'
  curve_M = found.curves[found.widths.index(found.width)]
  share = f'the first pick covers {curve_M[0] / num_prompts:.0%} of it'
  gain = f'pick {found.pick:,} gains {curve_M[found.pick - 1]:.2f} prompts'
  if found.pick < budget:
    return f'{share}, {gain}; pick {budget:,} gains less than 1 at any width'
  return f'{share}, {gain}'
