"""The functions that choose; the registry names them.

Each is (view, budget, seed, **arguments of its row) -> selection.Selection.
What its row says that it reads is in the view.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import numpy as np

from edsft_jax import selection, store
from edsft_jax.strategies import scores as scores_lib


@dataclasses.dataclass(frozen=True)
class View:
  """All that a strategy may look at: no answers, no held-out prompts.

  Attributes:
    pool: the prompts.
    tasks: a label for each, the pool's own or found by k-means; None where
      no strategy needs them and the pool has none.
    scores: columns of scores.parquet, [N] with NaN for null.
    features: float32 [N, D]; None where no strategy needs them.
    similarity: the kernel; None where no strategy needs one.
    task_confidence: the column that a task's confidence comes from.
    k_center_first: 'zero' | 'random' | 'medoid'.
    memory_limit: bytes that a selection may use; None: what is free decides.
    mesh: the devices.
  """

  pool: store.Prompts
  tasks: Sequence[str] | None
  scores: Mapping[str, np.ndarray]
  features: np.ndarray | None
  similarity: selection.Similarity | None
  task_confidence: str
  k_center_first: str
  memory_limit: int | None
  mesh: jax.sharding.Mesh


def at_random(view: View, budget: int, seed: int) -> selection.Selection:
  """Every order of the pool is equally likely."""
  return selection.random(len(view.pool), budget, seed)


def by_score(
  view: View, budget: int, seed: int, *, column: str, largest: bool
) -> selection.Selection:
  """The prompts with the largest or the smallest score.

  Raises:
    InputError: some prompt has no such score.
  """
  del seed
  values = scores_lib.complete(view.scores, view.pool.ids, column)
  return selection.top(values, budget, largest=largest)


def k_center(view: View, budget: int, seed: int) -> selection.Selection:
  """Greedy farthest-first from the first centre that was asked for."""
  assert view.features is not None
  features = view.features
  first = {
    'zero': lambda: 0,
    'random': lambda: int(selection.random(len(view.pool), 1, seed).indices[0]),
    'medoid': lambda: _medoid(features),
  }[view.k_center_first]()
  return selection.k_center(features, budget, first=first, mesh=view.mesh)


def _medoid(features: np.ndarray) -> int:
  """The row with the least sum of squared distances: nearest to the mean."""
  mean_D = features.mean(axis=0, dtype=np.float64)
  return int(np.argmin(((features - mean_D) ** 2).sum(axis=1)))


def facility_location(
  view: View, budget: int, seed: int
) -> selection.Selection:
  """Prompts that together are similar to the whole pool."""
  del seed
  assert view.features is not None
  assert view.similarity is not None
  return selection.facility_location(
    view.features,
    budget,
    similarity=view.similarity,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
  )


def log_determinant(view: View, budget: int, seed: int) -> selection.Selection:
  """Prompts that are unlike each other."""
  del seed
  assert view.features is not None
  assert view.similarity is not None
  return selection.log_determinant(
    view.features,
    budget,
    similarity=view.similarity,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
  )


def task_diversity(
  view: View, budget: int, seed: int, *, weighted: bool
) -> selection.Selection:
  """The same number from every task, or by its inverse confidence.

  Raises:
    InputError: a task has no confidence.
  """
  assert view.tasks is not None
  confidence = None
  if weighted:
    confidence = scores_lib.confidence(
      view.scores, view.pool.ids, view.tasks, view.task_confidence
    )
  return selection.task_diversity(
    view.tasks, budget, confidence=confidence, seed=seed
  )
