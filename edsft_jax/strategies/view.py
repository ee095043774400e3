"""The inputs of a strategy."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import ml_collections
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import selection, store


@dataclasses.dataclass(frozen=True)
class View:
  """All that a strategy may read: no answers, no held-out prompts.

  Attributes:
    pool: the prompts.
    tasks: a label for each prompt, from the pool or found by k-means; None if
      the pool has none and no strategy needs them.
    scores: columns of scores.parquet, [N] with NaN for null.
    features: float32 [N, D]; None if no strategy needs them.
    similarity: the kernel; None if no strategy needs one.
    task_confidence: the column that a task's confidence comes from.
    k_center_first: 'zero' | 'random' | 'medoid'.
    memory_limit: bytes that a selection may use; None: depends on what is free.
    mesh: the devices.
    initial: positions already chosen, which a strategy does not choose again.
    picks: number -> positions of the first picks of the strategy that
      selection.length_matched_to names; None if no strategy needs them.
    progress: to be called with (picks made, budget) during long work, or None.
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
  initial: Sequence[int] = ()
  picks: Callable[[int], Sequence[int]] | None = None
  progress: Callable[[int, int], None] | None = None

  @classmethod
  def of(
    cls,
    config: ml_collections.ConfigDict,
    pool: store.Prompts,
    tasks: Sequence[str] | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
    features: np.ndarray | None = None,
    similarity: selection.Similarity | None = None,
  ) -> 'View':
    """The view, with the options and the devices of a study's config."""
    c = config.selection
    mesh = mesh_lib.model_mesh(**config.mesh)
    if mesh.is_multi_process:
      mesh = mesh_lib.make_mesh(devices=jax.local_devices())
    return cls(
      pool,
      tasks,
      scores or {},
      features,
      similarity,
      task_confidence=c.task_confidence,
      k_center_first=c.k_center_first,
      memory_limit=int(c.memory_limit * 2**30) or None,
      mesh=mesh,
    )

  def part(self, positions: np.ndarray) -> 'View':
    """The view of only these prompts, [n] ascending positions."""
    inside = np.zeros(len(self.pool), bool)
    inside[positions] = True
    return dataclasses.replace(
      self,
      pool=self.pool.where(inside.tolist()),
      tasks=self.tasks and [self.tasks[i] for i in positions],
      scores={name: score[positions] for name, score in self.scores.items()},
      features=None if self.features is None else self.features[positions],
    )
