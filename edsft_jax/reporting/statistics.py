"""Statistics over seeds: intervals, tests against random, answers saved.

Pure functions of plain numbers. scipy.special is imported where it is used, so
that only commands that make a report wait for it.
"""

from collections.abc import Sequence
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over seeds with its confidence interval, unless there is one seed.

  Attributes:
    mean: arithmetic mean of the values.
    low: lower end, or None for one value.
    high: upper end, or None for one value.
    count: number of values.
  """

  mean: float
  low: float | None
  high: float | None
  count: int

  @property
  def half_width(self) -> float | None:
    """Half the interval's length, to print after +-."""
    return None if self.high is None else self.high - self.mean


@dataclasses.dataclass(frozen=True)
class Difference:
  """A difference of two means with its Welch interval and p-value.

  Attributes:
    mean: first mean minus second mean.
    low: lower end of the interval, or None without a test.
    high: upper end of the interval, or None without a test.
    p_value: two-sided p-value, or None without a test.
  """

  mean: float
  low: float | None
  high: float | None
  p_value: float | None


@dataclasses.dataclass(frozen=True)
class AnswersNeeded:
  """How many answers a curve needs to reach a quality.

  Attributes:
    relation: 'about' (interpolated), 'at most' (reached at the smallest budget)
      or 'more than' (not reached at the largest).
    answers: number of answers.
  """

  relation: str
  answers: float

  def __str__(self) -> str:
    return f'{self.relation} {round(self.answers):,}'


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
  """Mean and sample variance, which is exactly zero for equal values."""
  if min(values) == max(values):
    return values[0], 0.0
  mean = math.fsum(values) / len(values)
  squares = math.fsum((value - mean) ** 2 for value in values)
  return mean, squares / (len(values) - 1)


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
  """Student t interval of the mean of independent, roughly normal values.

  mean +- t(n - 1, (1 + confidence) / 2) * s / sqrt(n), s the sample standard
  deviation (Student, "The probable error of a mean", Biometrika 6, 1908).

  Args:
    values: one number per seed, at least one.
    confidence: coverage, between 0 and 1.
  """
  from scipy import special

  mean, variance = _mean_and_variance(values)
  count = len(values)
  if count == 1:
    return Interval(mean, None, None, 1)
  quantile = float(special.stdtrit(count - 1, (1 + confidence) / 2))
  half = quantile * math.sqrt(variance / count)
  return Interval(mean, mean - half, mean + half, count)


def welch(
  first: Sequence[float], second: Sequence[float], confidence: float
) -> Difference:
  """Welch's t test of two means whose variances may differ.

  t = (m1 - m2) / sqrt(v1/n1 + v2/n2) with the degrees of freedom of Welch and
  Satterthwaite (Welch, "The generalization of Student's problem when several
  different population variances are involved", Biometrika 34, 1947).

  Nothing is tested with fewer than two values on a side, nor if both sides have
  zero variance but different means: a difference cannot be judged without any
  spread. If all values are equal, the p-value is 1.
  """
  from scipy import special

  mean1, variance1 = _mean_and_variance(first)
  mean2, variance2 = _mean_and_variance(second)
  difference = mean1 - mean2
  if min(len(first), len(second)) < 2:
    return Difference(difference, None, None, None)
  error1 = variance1 / len(first)
  error2 = variance2 / len(second)
  error = error1 + error2
  if error == 0.0:
    if difference == 0.0:
      return Difference(0.0, 0.0, 0.0, 1.0)
    return Difference(difference, None, None, None)
  # Shares of the squared error, since the errors' own squares may underflow.
  share1, share2 = error1 / error, error2 / error
  freedom = 1 / (share1**2 / (len(first) - 1) + share2**2 / (len(second) - 1))
  scale = math.sqrt(error)
  p_value = 2 * float(special.stdtr(freedom, -abs(difference) / scale))
  half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * scale
  return Difference(difference, difference - half, difference + half, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's step-down correction, in the given order.

  Rejecting if a corrected value is below alpha keeps the probability of any
  false rejection below alpha, whatever the dependence between the tests
  (Holm, "A simple sequentially rejective multiple test procedure",
  Scandinavian Journal of Statistics 6, 1979).
  """
  count = len(p_values)
  corrected = [0.0] * count
  largest = 0.0
  order = sorted(range(count), key=lambda i: p_values[i])
  for place, i in enumerate(order):
    largest = max(largest, min(1.0, (count - place) * p_values[i]))
    corrected[i] = largest
  return corrected


def answers_needed(
  budgets: Sequence[int],
  means: Sequence[float],
  quality: float,
  higher_is_better: bool,
) -> AnswersNeeded:
  """The fewest answers at which a curve of means reaches a quality.

  The curve is linear between budgets and is not extrapolated.

  Args:
    budgets: ascending, at least one.
    means: the curve's mean at each budget.
    quality: the value to reach, in the metric's unit.
    higher_is_better: the metric's direction.
  """
  sign = 1.0 if higher_is_better else -1.0
  goal = sign * quality
  curve = [sign * mean for mean in means]
  if curve[0] >= goal:
    return AnswersNeeded('at most', budgets[0])
  for i in range(1, len(curve)):
    if curve[i] >= goal:
      # curve[i - 1] < goal <= curve[i]: the slope is not zero.
      share = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
      return AnswersNeeded(
        'about', budgets[i - 1] + share * (budgets[i] - budgets[i - 1])
      )
  return AnswersNeeded('more than', budgets[-1])
