"""Selection by task: every task its share, the uncertain ones more.

Arabelly, Nemade, Nowak, Zhang: Improving Task Diversity in Label Efficient
Supervised Finetuning of LLMs, EMNLP 2025 (arXiv 2507.21482).
"""

from collections.abc import Sequence
import heapq
from typing import Any

import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.result import Selection


def task_diversity(
  tasks: Sequence[Any],
  budget: int,
  confidence: Any = None,
  seed: int = 0,
  initial: Sequence[int] = (),
) -> Selection:
  """Splits the budget over tasks, evenly or by 1 / confidence.

  A weighted round-robin: the next prompt goes to the task t with the largest
  w_t / (n_t + 1/2), n_t what it has already (Sainte-Lague's divisor rule), so
  every prefix is the answer for its own budget. Ties go to the smaller n_t,
  then to the task seen first in the pool. A task that runs out is passed over.
  Within a task one seeded random order.

  Args:
    tasks: [N] a label a prompt; anything that can be compared with ==.
    budget: new picks.
    confidence: [N] numbers above 0, the model's confidence in each prompt,
      averaged within its task into C(t); then w_t = 1 / C(t) (weighted task
      diversity). None: w_t = 1 (task diversity).
    seed: whole number of at least 0, of the order within tasks.
    initial: already chosen positions: they count in n_t.

  Returns:
    A Selection whose gains are w_t / (n_t + 1/2) at the pick and whose
    objective is their sum, `initial` included: what the rule maximises.
  """
  labels = list(tasks)
  n = len(labels)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  seed = checks.integer('seed', seed)
  task_N, num_tasks = _number_tasks(labels)
  if confidence is None:
    weight_T = np.ones(num_tasks)
  else:
    confidence_N = checks.row_values('confidence', confidence, n)
    if n and not (confidence_N.min() > 0 and np.isfinite(confidence_N).all()):
      raise SelectionError(
        'confidence has values that are not above 0 and finite'
      )
    total_T = np.bincount(task_N, weights=confidence_N, minlength=num_tasks)
    weight_T = np.bincount(task_N, minlength=num_tasks) / total_T

  queues: list[list[int]] = [[] for _ in range(num_tasks)]
  chosen = set(initial.tolist())
  for index in np.random.default_rng(seed).permutation(n).tolist():
    if index not in chosen:
      queues[task_N[index]].append(index)
  count_T = np.bincount(task_N[initial], minlength=num_tasks).tolist()
  objective = sum(
    weight_T[task] / (have + 0.5)
    for task in range(num_tasks)
    for have in range(count_T[task])
  )

  # Ordered as the rule says: largest quotient, smaller n_t, first seen.
  heap = [
    (-weight_T[task] / (count_T[task] + 0.5), count_T[task], task)
    for task in range(num_tasks)
    if queues[task]
  ]
  heapq.heapify(heap)
  taken = [0] * num_tasks
  picks = np.zeros(budget, np.int64)
  gains = np.zeros(budget)
  for step in range(budget):
    quotient, have, task = heap[0]
    picks[step], gains[step] = queues[task][taken[task]], -quotient
    taken[task] += 1
    if taken[task] < len(queues[task]):
      entry = (-weight_T[task] / (have + 1.5), have + 1, task)
      heapq.heapreplace(heap, entry)
    else:
      heapq.heappop(heap)
  return Selection(picks, gains, float(objective + gains.sum()))


def cluster_tasks(features: Any, num_tasks: int, seed: int = 0) -> np.ndarray:
  """Finds tasks by k-means where a pool has no labels.

  Args:
    features: [N, D] numbers, one row a prompt.
    num_tasks: clusters sought, at most N. Fewer come back where rows repeat.
    seed: whole number of at least 0, of the k-means++ start.

  Returns:
    [N] int64 labels, numbered in the order in which the pool shows them.
  """
  feature_NxD = checks.features(features)
  num_tasks = checks.integer('num_tasks', num_tasks, least=1)
  seed = checks.integer('seed', seed)
  n = len(feature_NxD)
  if num_tasks > n:
    raise SelectionError(f'num_tasks {num_tasks} exceeds the pool: {n} prompts')
  # Only this function needs scipy, which comes with jax.
  from scipy.cluster import vq

  centred_NxD = feature_NxD - feature_NxD.mean(axis=0, dtype=np.float64)
  distinct = similarity_lib.distinct_rows(feature_NxD)
  _, label_N = vq.kmeans2(
    centred_NxD,
    min(num_tasks, len(distinct.point_UxD)),
    iter=50,
    minit='++',
    missing='warn',
    rng=np.random.default_rng(seed),
  )
  return _number_tasks(label_N.tolist())[0]


def _number_tasks(labels: Sequence[Any]) -> tuple[np.ndarray, int]:
  """Numbers labels in the order of first appearance."""
  numbers: dict[Any, int] = {}
  task_N = [numbers.setdefault(label, len(numbers)) for label in labels]
  return np.asarray(task_N, np.int64), len(numbers)
