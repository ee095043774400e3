"""Selection by task: every task gets a share, uncertain tasks a larger one.

Arabelly, Nemade, Nowak, Zhang: Improving Task Diversity in Label Efficient
Supervised Finetuning of LLMs, EMNLP 2025 (arXiv 2507.21482).
"""

from collections.abc import Hashable, Iterable, Sequence
import heapq

import numpy as np

from edsft_jax.selection import checks, inputs
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.inputs import Features, Positions, Values
from edsft_jax.selection.result import Selection


def task_diversity(
  tasks: Iterable[Hashable],
  budget: int,
  confidence: Values | None = None,
  seed: int = 0,
  initial: Positions = (),
) -> Selection:
  """Splits the budget over tasks, evenly or by 1 / confidence.

  A weighted round-robin: the next prompt goes to the task t with the largest
  w_t / (n_t + 1/2), n_t what it has already (Sainte-Lague's divisor rule), so
  every prefix is the answer for its own budget. Ties go to the smaller n_t,
  then to the task seen first in the pool. A task that runs out is skipped.
  Within a task, prompts are in a seeded random order.

  >>> tasks = ['qa', 'qa', 'qa', 'code', 'qa', 'code']
  >>> result = task_diversity(tasks, budget=4)
  >>> [tasks[i] for i in result.indices], result.gains.round(2).tolist()
  (['qa', 'code', 'qa', 'code'], [2.0, 2.0, 0.67, 0.67])

  Args:
    tasks: [N] labels; anything hashable.
    budget: new picks.
    confidence: [N] numbers above 0, the model's confidence in each prompt,
      averaged within its task into C(t); then w_t = 1 / C(t) (weighted task
      diversity). None: w_t = 1 (task diversity).
    seed: whole number of at least 0, for the order within tasks.
    initial: already chosen positions: they count in n_t.

  Returns:
    A Selection whose gains are w_t / (n_t + 1/2) at the pick and whose
    objective is their sum, `initial` included: what the rule maximises.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  labels = inputs.labels('tasks', tasks)
  n = len(labels)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial_I))
  seed = checks.integer('seed', seed)
  task_N, num_tasks = _number_tasks(labels)
  weight_L = _weights(task_N, num_tasks, confidence)
  queues = _queues(task_N, num_tasks, seed, initial_I)
  count_L = np.bincount(task_N[initial_I], minlength=num_tasks).tolist()
  objective = sum(
    weight_L[task] / (have + 0.5)
    for task in range(num_tasks)
    for have in range(count_L[task])
  )
  picks, gains = _deal(budget, weight_L.tolist(), count_L, queues)
  return Selection(picks, gains, float(objective + gains.sum()))


def _weights(
  task_N: np.ndarray, num_tasks: int, confidence: Values | None
) -> np.ndarray:
  """Returns each task's weight: 1, or 1 / its mean confidence."""
  if confidence is None:
    return np.ones(num_tasks)
  n = len(task_N)
  confidence_N = checks.row_values('confidence', confidence, n)
  if n and not (confidence_N.min() > 0 and np.isfinite(confidence_N).all()):
    raise SelectionError(
      'confidence has values that are not above 0 and finite'
    )
  total_L = np.bincount(task_N, weights=confidence_N, minlength=num_tasks)
  with np.errstate(over='ignore'):
    weight_L = np.bincount(task_N, minlength=num_tasks) / total_L
  if not (np.isfinite(total_L).all() and np.isfinite(weight_L).all()):
    raise SelectionError('confidence or its inverse overflows float64')
  return weight_L


def _queues(
  task_N: np.ndarray, num_tasks: int, seed: int, initial_I: np.ndarray
) -> list[list[int]]:
  """Returns the prompts of each task that are not chosen, in random order."""
  queues: list[list[int]] = [[] for _ in range(num_tasks)]
  chosen = set(initial_I.tolist())
  for index in np.random.default_rng(seed).permutation(len(task_N)).tolist():
    if index not in chosen:
      queues[task_N[index]].append(index)
  return queues


def _deal(
  budget: int,
  weight_L: Sequence[float],
  count_L: Sequence[int],
  queues: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns picks and their gains, given what each task has already."""
  # Ordered as the rule says: largest quotient, smaller n_t, first seen.
  heap = [
    (-weight_L[task] / (count_L[task] + 0.5), count_L[task], task)
    for task, queue in enumerate(queues)
    if queue
  ]
  heapq.heapify(heap)
  taken = [0] * len(queues)
  picks = np.zeros(budget, np.int64)
  gains = np.zeros(budget)
  for step in range(budget):
    quotient, have, task = heap[0]
    picks[step], gains[step] = queues[task][taken[task]], -quotient
    taken[task] += 1
    if taken[task] < len(queues[task]):
      entry = (-weight_L[task] / (have + 1.5), have + 1, task)
      heapq.heapreplace(heap, entry)
    else:
      heapq.heappop(heap)
  return picks, gains


def cluster_tasks(
  features: Features, num_tasks: int, seed: int = 0
) -> np.ndarray:
  """Finds tasks by k-means, for a pool without labels.

  >>> cluster_tasks([[0.0], [9.0], [0.1], [9.1]], num_tasks=2).tolist()
  [0, 1, 0, 1]

  Args:
    features: [N, D] numbers, one row per prompt.
    num_tasks: number of clusters, at most N. Repeated rows may lead to fewer.
    seed: whole number of at least 0, for the k-means++ start.

  Returns:
    [N] int64 labels, numbered in order of first appearance in the pool.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  feature_NxD = checks.features(features)
  num_tasks = checks.integer('num_tasks', num_tasks, least=1)
  seed = checks.integer('seed', seed)
  n = len(feature_NxD)
  if num_tasks > n:
    raise SelectionError(f'num_tasks {num_tasks} exceeds the pool: {n} prompts')
  # Imported here, because no other function needs it.
  from scipy.cluster import vq

  centred_NxD = feature_NxD - feature_NxD.mean(axis=0, dtype=np.float64)
  checks.rows_differ(feature_NxD, np.square(centred_NxD).sum() / n)
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


def _number_tasks(labels: Iterable[Hashable]) -> tuple[np.ndarray, int]:
  """Numbers labels in the order of first appearance."""
  numbers: dict[Hashable, int] = {}
  task_N = [numbers.setdefault(label, len(numbers)) for label in labels]
  return np.asarray(task_N, np.int64), len(numbers)
