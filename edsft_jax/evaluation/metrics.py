"""Compares answers with their references, and averages over items."""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any

import numpy as np

from edsft_jax.evaluation.task import Metric


def exact_match(prediction: str, reference: str) -> float:
  """1.0 if both texts have the same words, whatever the white space."""
  return float(prediction.split() == reference.split())


# Many cells give the same answer.
@functools.lru_cache(2**15)
def rouge_l(prediction: str, reference: str) -> float:
  """F-measure of the longest common subsequence of words, without stemming.

  Words as rouge-score defines them: lower-cased runs of ASCII letters and
  digits; a text without words scores 0.
  """
  return _rouge().score(reference, prediction)['rougeL'].fmeasure


@functools.cache
def _rouge() -> Any:
  # Imported here, since it imports nltk, which takes a second.
  from rouge_score import rouge_scorer

  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=False)


# (prediction, reference) -> float, larger is better.
TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
  'exact_match': exact_match,
  'rouge_l': rouge_l,
}


def aggregate(
  rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]
) -> dict[str, dict[str, Any]]:
  """Means over items, each with its standard error.

  Args:
    rows: rows of items.jsonl, at least one.
    metrics: the columns to average.

  Returns:
    {name: {value, standard_error, n}}, and clustered_standard_error if the
    items are of several tasks. The standard error takes items as independent,
    those within a task for a mean over tasks; it is None for a single item. The
    clustered one allows items of a task to be correlated (Miller 2024, arXiv
    2411.00640, section 2.2).
  """
  tasks = group_by(rows, 'task')
  result = {}
  for name, metric in metrics.items():
    if metric.over_tasks and tasks:
      result[name] = _mean_over_tasks(list(tasks.values()), name, metric)
      continue
    value_N, weight_N = _columns(rows, name, metric)
    result[name] = _mean(value_N, weight_N)
    if len(tasks) > 1:
      cluster_N = np.unique(
        [str(row['task']) for row in rows], return_inverse=True
      )[1]
      result[name]['clustered_standard_error'] = _clustered_error(
        value_N, weight_N, cluster_N
      )
  return result


def group_by(
  rows: Sequence[Mapping[str, Any]], column: str
) -> dict[str, list[Mapping[str, Any]]]:
  """The rows of each value of a column; rows without one are left out."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    if row.get(column) is not None:
      groups.setdefault(row[column], []).append(row)
  return groups


def _columns(
  rows: Sequence[Mapping[str, Any]], name: str, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
  """Values and weights of the rows."""
  weight = metric.weight
  return (
    np.array([row[metric.column or name] for row in rows], np.float64),
    np.array([row[weight] if weight else 1 for row in rows]),
  )


def _mean(value_N: np.ndarray, weight_N: np.ndarray) -> dict[str, Any]:
  """Weighted mean; its standard error is that of a ratio of two sums."""
  n = len(value_N)
  # If no item has weight, the mean is 0.
  total = float(weight_N.sum()) or 1.0
  mean = math.fsum(value_N * weight_N) / total
  error = None
  if n > 1:
    residual_N = weight_N * (value_N - mean)
    error = math.sqrt(math.fsum(residual_N**2) * n / (n - 1)) / total
  return {'value': mean, 'standard_error': error, 'n': n}


def _clustered_error(
  value_N: np.ndarray, weight_N: np.ndarray, cluster_N: np.ndarray
) -> float:
  """The standard error of the mean if only clusters are independent.

  sqrt(sum_c (sum_i (s_i - mean))^2 C / (C - 1)) / n, for C > 1 clusters.
  """
  total = float(weight_N.sum()) or 1.0
  mean = math.fsum(value_N * weight_N) / total
  sum_C = np.bincount(cluster_N, weight_N * (value_N - mean))
  count = len(sum_C)
  return math.sqrt(math.fsum(sum_C**2) * count / (count - 1)) / total


def _mean_over_tasks(
  tasks: Sequence[Sequence[Mapping[str, Any]]], name: str, metric: Metric
) -> dict[str, Any]:
  """Mean of the means of tasks."""
  means = [_mean(*_columns(rows, name, metric)) for rows in tasks]
  found = [mean['standard_error'] for mean in means]
  error = None
  if None not in found:
    error = math.sqrt(math.fsum(x * x for x in found)) / len(means)
  return {
    'value': math.fsum(mean['value'] for mean in means) / len(means),
    'standard_error': error,
    'n': sum(mean['n'] for mean in means),
  }
