"""What an answer is worth against its reference, one number a prompt.

A metric is a function (prediction, reference) -> float, larger is better; an
entry in TEXT_METRICS puts it into eval.json, predictions.jsonl and the report.
"""

from collections.abc import Sequence
import functools
import math


def exact_match(prediction: str, reference: str) -> float:
  """1.0 when both texts have the same words, however they are spaced."""
  return float(prediction.split() == reference.split())


def rouge_l(prediction: str, reference: str) -> float:
  """F-measure of the longest common subsequence of words, no stemming.

  Words are what rouge-score takes for them: lower-cased runs of ASCII letters
  and digits; a text without any scores 0.
  """
  return _rouge().score(reference, prediction)['rougeL'].fmeasure


@functools.cache
def _rouge():
  from rouge_score import rouge_scorer

  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=False)


TEXT_METRICS = {'exact_match': exact_match, 'rouge_l': rouge_l}


def summarize(rows: Sequence[dict], num_tokens: Sequence[int]) -> dict:
  """Means over prompts; the loss is a mean over reference tokens, in nats.

  Args:
    rows: predictions with the mean loss of their reference and TEXT_METRICS.
    num_tokens: tokens of each reference, its end token among them.
  """
  nats = math.fsum(
    row['loss'] * n for row, n in zip(rows, num_tokens, strict=True)
  )
  means = {
    name: math.fsum(row[name] for row in rows) / len(rows)
    for name in TEXT_METRICS
  }
  return {'loss': nats / max(sum(num_tokens), 1), **means}
