"""Win rates of one model's outputs over another's, as AlpacaEval 2 has them.

A preference is in [1, 2]: 1 if the reference's output is better, 2 if the
model's is (Dubois et al. 2024, arXiv 2404.04475; tatsu-lab/alpaca_eval).
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import math
import pathlib
import random

import numpy as np
from scipy import optimize, special

from edsft_jax import errors

# What the judge calls the first and the second output.
FIRST, SECOND = 'm', 'M'
# The weight of all rows of gamed outputs, next to 1 for each pair; there are
# two for each instruction.
_GAMED_WEIGHT = 0.2 / 2
# Keeps the weights of the regression finite if all preferences agree.
_RIDGE = 1e-6


def is_switched(instruction: str, seed: int) -> bool:
  """Whether the model's output is shown first, drawn as AlpacaEval does."""
  generator = random.Random(f'is_switched_outputs{instruction}{seed}')
  return generator.choices([False, True], k=1)[0]


def preference(log_probs: Mapping[str, float]) -> float | None:
  """The preference for the second output, from the first token's candidates.

  Args:
    log_probs: candidates for the judge's one token; one that is absent has
      probability 0. White space around a candidate is ignored.

  Returns:
    A number in [1, 2], or None if neither name is a candidate.
  """
  probs = {FIRST: 0.0, SECOND: 0.0}
  for token, log_prob in log_probs.items():
    if token.strip() in probs:
      probs[token.strip()] += math.exp(log_prob)
  total = sum(probs.values())
  return 2.0 - probs[FIRST] / total if total else None


def win_rate(preferences: Sequence[float]) -> tuple[float, float | None]:
  """The mean win rate in percent, and its standard error over items.

  Args:
    preferences: in [1, 2]; at least one.
  """
  return mean_and_error(100 * (np.asarray(preferences, np.float64) - 1))


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
  """Mean and standard error; the latter is None for a single value."""
  error = None
  if len(values) > 1:
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
  return float(values.mean()), error


@dataclasses.dataclass(frozen=True)
class Gamed:
  """What AlpacaEval knows about its 805 instructions (df_gamed.csv).

  Attributes:
    difficulty: [N] of each instruction.
    index: [G] the instruction of each pair in which the reference's model
      answered in more words or in fewer.
    length: [G] differences of length, in standard deviations.
    preference: [G] in [0, 1].
  """

  difficulty: np.ndarray
  index: np.ndarray
  length: np.ndarray
  preference: np.ndarray


def read_gamed(path: str) -> Gamed:
  """Reads df_gamed.csv of the data set tatsu-lab/alpaca_eval.

  Raises:
    InputError: the file is not that one.
  """
  option = f'evaluation.alpaca_eval.gamed_path={path}'
  try:
    with pathlib.Path(path).open(encoding='utf-8', newline='') as f:
      rows = list(csv.DictReader(f))
    columns = {
      name: np.array([float(row[name]) for row in rows])
      for name in (
        'index',
        'instruction_difficulty',
        'std_delta_len',
        'preference',
      )
    }
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f'{option} cannot be read ({error!r}): give df_gamed.csv of the data set '
      'tatsu-lab/alpaca_eval'
    ) from None
  index, first = np.unique(columns['index'].astype(int), return_index=True)
  if not len(index) or not np.array_equal(index, np.arange(len(index))):
    raise errors.InputError(
      f'{option} does not number its instructions 0, 1, 2, ...: give '
      'df_gamed.csv of the data set tatsu-lab/alpaca_eval'
    )
  return Gamed(
    columns['instruction_difficulty'][first],
    columns['index'].astype(int),
    columns['std_delta_len'],
    columns['preference'],
  )


def length_controlled(
  preferences: Sequence[float],
  lengths: Sequence[int],
  reference_lengths: Sequence[int],
  gamed: Gamed | None = None,
  indices: Sequence[int] = (),
) -> np.ndarray:
  """Win rates in percent, as if both outputs had the same length.

  A logistic regression of the preference on tanh(length difference / its
  standard deviation) and an intercept, which gives the prediction at a
  difference of 0; with `gamed`, also on the instruction's difficulty, and on
  the gamed rows. AlpacaEval penalises the weights a little in addition, by
  cross-validation.

  Args:
    preferences: in [1, 2].
    lengths: characters of the model's outputs.
    reference_lengths: characters of the reference's.
    gamed: for AlpacaEval's own instructions.
    indices: of these instructions, the number of each pair's.

  Returns:
    [N], the win rate plus the influence of each pair on it: the mean is the
    length-controlled win rate, the standard error of the mean is that of the
    regression, robust to its form.
  """
  soft_N = np.asarray(preferences, np.float64) - 1
  difference_N = np.subtract(reference_lengths, lengths, dtype=np.float64)
  deviation = difference_N.std(ddof=1) if len(soft_N) > 1 else 0.0
  ones_N = np.ones(len(soft_N))
  columns = [np.tanh(difference_N / (deviation or 1.0)), ones_N]
  y_R, weight_R = soft_N, ones_N
  if gamed is not None:
    columns.append(gamed.difficulty[list(indices)])
  x_RxF = np.stack(columns, axis=1)
  equal_NxF = x_RxF * (np.arange(len(columns)) > 0)
  if gamed is not None:
    # They have no intercept: it belongs to the model alone.
    more = [np.tanh(gamed.length), 0 * gamed.length]
    more.append(gamed.difficulty[gamed.index])
    x_RxF = np.concatenate([x_RxF, np.stack(more, axis=1)])
    y_R = np.concatenate([soft_N, gamed.preference])
    gamed_weights = np.full(len(gamed.preference), _GAMED_WEIGHT)
    weight_R = np.concatenate([ones_N, gamed_weights])
  beta_F = _fit(x_RxF, y_R, weight_R)
  predicted_N = special.expit(equal_NxF @ beta_F)
  # To first order, how the mean prediction changes with each pair.
  fitted_R = special.expit(x_RxF @ beta_F)
  variance_R = weight_R * fitted_R * (1 - fitted_R)
  hessian_FxF = (x_RxF.T * variance_R) @ x_RxF
  hessian_FxF += 2 * _RIDGE * weight_R.sum() * np.eye(len(beta_F))
  slope_N = predicted_N * (1 - predicted_N)
  direction_F = np.linalg.solve(hessian_FxF, slope_N @ equal_NxF)
  influence_R = weight_R * (y_R - fitted_R) * (x_RxF @ direction_F)
  value_N = predicted_N + influence_R[: len(soft_N)]
  return 100 * (value_N - value_N.mean() + predicted_N.mean())


def _fit(
  x_RxF: np.ndarray, y_R: np.ndarray, weight_R: np.ndarray
) -> np.ndarray:
  """The weights of a logistic regression on soft labels, [F]."""
  total = weight_R.sum()

  def loss(beta_F: np.ndarray) -> tuple[float, np.ndarray]:
    logit_R = x_RxF @ beta_F
    value = weight_R @ (np.logaddexp(0, logit_R) - y_R * logit_R) / total
    error_R = weight_R * (special.expit(logit_R) - y_R)
    gradient_F = error_R @ x_RxF / total
    return (
      float(value + _RIDGE * beta_F @ beta_F),
      gradient_F + 2 * _RIDGE * beta_F,
    )

  start_F = np.zeros(x_RxF.shape[1])
  options = {'gtol': 1e-10, 'ftol': 1e-15, 'maxiter': 1000}
  return optimize.minimize(
    loss, start_F, jac=True, method='L-BFGS-B', options=options
  ).x
