"""Win rates of one model's outputs over another's, as AlpacaEval 2 has them.

A preference is in [1, 2]: 1 if the reference's output is better, 2 if the
model's is (Dubois et al. 2024, arXiv 2404.04475; tatsu-lab/alpaca_eval).
"""

from collections.abc import Mapping, Sequence
import math
import random
from typing import Any

import numpy as np
from scipy import optimize, special

# What the judge calls the first and the second output.
FIRST, SECOND = 'm', 'M'


def is_switched(instruction: str, seed: int) -> bool:
  """Whether the model's output is shown first, drawn as AlpacaEval does."""
  generator = random.Random(f'is_switched_outputs{instruction}{seed}')
  return generator.choices([False, True], k=1)[0]


def preference(log_probs: Mapping[str, float]) -> float | None:
  """The preference for the second output, from the first token's candidates.

  Args:
    log_probs: candidates for the judge's one token; one that is absent has
      probability 0.

  Returns:
    A number in [1, 2], or None if neither name is a candidate.
  """
  first, second = (
    math.exp(log_probs[name]) if name in log_probs else 0.0
    for name in (FIRST, SECOND)
  )
  if first + second == 0.0:
    return None
  return 2.0 - first / (first + second)


def win_rate(preferences: Sequence[float]) -> tuple[float, float | None]:
  """The mean win rate in percent, and its standard error over items.

  Args:
    preferences: in [1, 2]; at least one.
  """
  wins = 100 * (np.asarray(preferences, np.float64) - 1)
  error = None
  if len(wins) > 1:
    error = float(wins.std(ddof=1) / math.sqrt(len(wins)))
  return float(wins.mean()), error


def length_controlled(
  preferences: Sequence[float], length_differences: Sequence[float]
) -> float:
  """The win rate in percent if both outputs had the same length.

  A logistic regression of the preference on tanh(length difference / its
  standard deviation) and an intercept, which gives the prediction at a
  difference of 0. AlpacaEval's own also has the difficulty of each of its 805
  instructions, which other prompts do not have.

  Args:
    preferences: in [1, 2].
    length_differences: characters of the model's output minus those of the
      reference's.
  """
  soft = np.asarray(preferences, np.float64) - 1
  difference = np.asarray(length_differences, np.float64)
  deviation = difference.std() or 1.0
  length = np.tanh(difference / deviation)

  def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    logit = weights[0] + weights[1] * length
    error = special.expit(logit) - soft
    value = np.mean(np.logaddexp(0, logit) - soft * logit)
    # Keeps the weights finite if all preferences agree.
    value += 1e-6 * weights @ weights
    gradient = np.array([error.mean(), (error * length).mean()])
    return float(value), gradient + 2e-6 * weights

  found = optimize.minimize(loss, np.zeros(2), jac=True, method='L-BFGS-B')
  return float(100 * special.expit(found.x[0]))


def read_annotations(rows: Sequence[Mapping[str, Any]]) -> list[float]:
  """The preferences in AlpacaEval's own annotations.json.

  They are for the second of output_1 and output_2, the model's; annotations
  that failed are left out.
  """
  return [
    float(row['preference'])
    for row in rows
    if row.get('preference') is not None
    and math.isfinite(float(row['preference']))
  ]
