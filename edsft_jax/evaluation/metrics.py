"""Compares answers with their references, and averages over items."""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

import numpy as np

from edsft_jax.evaluation.task import Metric


def exact_match(prediction: str, reference: str) -> float:
  """1.0 if both texts have the same words, whatever the white space."""
  return float(prediction.split() == reference.split())


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
TEXT_METRICS = {'exact_match': exact_match, 'rouge_l': rouge_l}


def aggregate(
  rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]
) -> dict[str, dict[str, Any]]:
  """Means over items, each with its standard error.

  Args:
    rows: rows of items.jsonl, at least one.
    metrics: the columns to average.

  Returns:
    {name: {value, standard_error, n}}; standard_error is None for a single
    item.
  """
  return {
    name: _mean(
      np.array([row[name] for row in rows], np.float64),
      np.array([row[metric.weight] if metric.weight else 1 for row in rows]),
    )
    for name, metric in metrics.items()
  }


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
