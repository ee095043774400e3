"""How many answers a strategy saves: parallel curves, or isotonic ones.

Curves are arrays [..., R, B], the metric by seed and budget. Leading axes hold
independent studies, as in statistics.py. Nothing is extrapolated beyond the
budgets that were run.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from edsft_jax.reporting import statistics
from edsft_jax.reporting.statistics import Error, Numbers

PARALLEL = 'parallel curves'
ISOTONIC = 'isotonic interpolation'

# Below this p-value of the quadratic term, curves are not taken for lines.
CURVATURE_LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Slope:
  """The common slope of the curves, and whether they are lines.

  Attributes:
    value: beta, the change of the metric per doubling of the answers.
    error: the standard error of beta.
    curvature_p: p-value of a quadratic term in log2 of the budget; NaN if there
      are fewer than three budgets or it cannot be tested.
  """

  value: Numbers
  error: Error
  curvature_p: Numbers


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A ratio of two estimates, with Fieller's interval.

  Attributes:
    value: the ratio.
    low: lower end, -inf if the interval is unbounded.
    high: upper end, inf if the interval is unbounded.
  """

  value: Numbers
  low: Numbers
  high: Numbers


@dataclasses.dataclass(frozen=True)
class Saving:
  """How many answers a strategy needs for a quality that random has.

  Attributes:
    method: PARALLEL or ISOTONIC.
    budget: random reaches that quality with this many answers.
    answers: what the strategy needs: 0.0 stands for less than the smallest
      budget that was run, inf for more than the largest.
    low: lower end of its interval; 0.0 and inf as above.
    high: upper end.
  """

  method: str
  budget: int
  answers: float
  low: float
  high: float

  @property
  def known(self) -> bool:
    """Whether the interval has an end within the budgets that were run."""
    return self.low > 0 or self.high < np.inf

  def share(self, answers: float) -> float:
    """The share of answers saved; negative if more are needed."""
    return 1 - answers / self.budget


def reference_budget(budgets: Sequence[int]) -> int:
  """The middle budget, which leaves room for savings and for losses."""
  return sorted(budgets)[len(budgets) // 2]


def common_slope(
  curves: Mapping[str, np.ndarray], budgets: Sequence[int]
) -> Slope:
  """Fits y = alpha + beta log2(budget) + gamma_s by least squares.

  Every seed of every strategy has all budgets, so that beta is the mean of the
  slopes of the single seeds, and its variance is theirs, pooled within
  strategies. The quadratic term is treated in the same way.

  Args:
    curves: strategy -> the metric by seed and budget, [..., R, B].
    budgets: [B], at least two.
  """
  x_B = np.log2(np.asarray(budgets, np.float64))
  line_B = x_B - x_B.mean()
  beta, error = _contrast(curves, line_B)
  p_value: Numbers = np.nan
  if len(budgets) > 2:
    square_B = line_B**2 - (line_B**2).mean()
    square_B -= line_B * (square_B @ line_B) / (line_B @ line_B)
    bend = statistics.difference(*_contrast(curves, square_B), 0.95)
    p_value = bend.p_value
  return Slope(beta, error, p_value)


def _contrast(
  curves: Mapping[str, np.ndarray], weight_B: np.ndarray
) -> tuple[Numbers, Error]:
  """The mean coefficient of a contrast over budgets, and its error."""
  coefficients = [
    curve @ weight_B / (weight_B @ weight_B) for curve in curves.values()
  ]
  count = sum(each.shape[-1] for each in coefficients)
  mean = sum(each.sum(-1) for each in coefficients) / count
  variance = statistics.pooled_variance(coefficients)
  return mean, Error(np.sqrt(variance.value / count), variance.freedom)


def fieller(
  top: Numbers,
  top_error: Error,
  bottom: Numbers,
  bottom_error: Error,
  confidence: float,
) -> Ratio:
  """Fieller's interval of the ratio of two independent normal estimates.

  All ratios r for which top - r bottom does not differ from 0: if the bottom
  does not differ from 0, any ratio is possible (Fieller, "Some problems in
  interval estimation", Journal of the Royal Statistical Society B 16, 1954).

  The t quantile has the smaller degrees of freedom of the two.
  """
  freedom = np.minimum(top_error.freedom, bottom_error.freedom)
  t = statistics.quantile((1 + confidence) / 2, freedom)
  square = bottom**2 - (t * bottom_error.value) ** 2
  bounded = square > 0
  divisor = np.where(bounded, square, np.nan)
  root = t * np.sqrt(
    np.maximum(
      top_error.value**2 * square + (bottom_error.value * top) ** 2, 0.0
    )
  )
  centre = top * bottom
  return Ratio(
    top / np.where(np.equal(bottom, 0), np.nan, bottom),
    np.where(bounded, (centre - root) / divisor, -np.inf)[()],
    np.where(bounded, (centre + root) / divisor, np.inf)[()],
  )


def by_parallel_curves(
  gamma: float,
  gamma_error: Error,
  slope: Slope,
  budgets: Sequence[int],
  higher_is_better: bool,
  confidence: float,
) -> Saving:
  """The saving if all curves are parallel lines in log2.

  Random needs 2^(gamma / beta) times as many answers as the strategy for the
  same quality.

  Args:
    gamma: the strategy's curve minus random's, averaged over budgets.
    gamma_error: with the variances of items and of picks.
    slope: the common slope.
    budgets: those that were run, at least two.
    higher_is_better: the metric's direction.
    confidence: of the interval.
  """
  ratio = fieller(gamma, gamma_error, slope.value, slope.error, confidence)
  budget = reference_budget(budgets)
  rises = slope.value > 0 if higher_is_better else slope.value < 0
  if not rises or not np.isfinite(ratio.low):
    return Saving(PARALLEL, budget, np.nan, 0.0, np.inf)
  ends = [
    _within(budget * 2.0**-doublings, budgets)
    for doublings in (ratio.value, ratio.high, ratio.low)
  ]
  return Saving(PARALLEL, budget, *ends)


def _within(answers: float, budgets: Sequence[int]) -> float:
  """The number of answers; 0 or inf if it is beyond the budgets."""
  if answers < min(budgets):
    return 0.0
  return float(answers) if answers <= max(budgets) else np.inf


def by_isotonic_curves(
  means: Sequence[float],
  random_mean: float,
  error: Error,
  budgets: Sequence[int],
  higher_is_better: bool,
  confidence: float,
) -> Saving:
  """The saving without assuming a line: only that more answers do not harm.

  The strategy's curve is made monotone (Barlow et al., Statistical inference
  under order restrictions, 1972) and linear in log2 between budgets. The
  interval has all numbers of answers at which it does not differ from the
  quality of random at the reference budget.

  Args:
    means: [B], of the strategy.
    random_mean: of random at the reference budget.
    error: of a difference from random at the reference budget.
    budgets: [B], ascending.
    higher_is_better: the metric's direction.
    confidence: of the interval.
  """
  from scipy import optimize

  sign = 1.0 if higher_is_better else -1.0
  x_B = np.log2(np.asarray(budgets, np.float64))
  y_B = optimize.isotonic_regression(sign * np.asarray(means)).x
  goal = sign * random_mean
  half = statistics.quantile((1 + confidence) / 2, error.freedom) * error.value
  if np.isnan(half):
    return Saving(ISOTONIC, reference_budget(budgets), np.nan, 0.0, np.inf)
  return Saving(
    ISOTONIC,
    reference_budget(budgets),
    _first_reached(x_B, y_B, goal),
    _first_reached(x_B, y_B, goal - half),
    _last_below(x_B, y_B, goal + half),
  )


def _first_reached(x_B: np.ndarray, y_B: np.ndarray, goal: float) -> float:
  """The fewest answers at which a rising curve is at least `goal`."""
  if y_B[0] > goal:
    return 0.0
  if y_B[-1] < goal:
    return np.inf
  i = int(np.searchsorted(y_B, goal, side='left'))
  if y_B[i] == goal:
    return float(2.0 ** x_B[i])
  return float(2.0 ** _between(x_B, y_B, i, goal))


def _last_below(x_B: np.ndarray, y_B: np.ndarray, goal: float) -> float:
  """The most answers at which a rising curve is at most `goal`."""
  if y_B[0] > goal:
    return 0.0
  if y_B[-1] <= goal:
    return np.inf
  i = int(np.searchsorted(y_B, goal, side='right'))
  return float(2.0 ** _between(x_B, y_B, i, goal))


def _between(x_B: np.ndarray, y_B: np.ndarray, i: int, goal: float) -> float:
  """Where the line from point i - 1 to point i is at `goal`."""
  share = (goal - y_B[i - 1]) / (y_B[i] - y_B[i - 1])
  return float(x_B[i - 1] + share * (x_B[i] - x_B[i - 1]))
