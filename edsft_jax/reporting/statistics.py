"""Statistics of a study: pooled variances, tests against random, power.

The item values of a strategy are arrays [..., R, I]: R seeds, I evaluation
items, at one budget or averaged over budgets. Leading axes hold independent
studies, so that a simulation of many studies computes what a report does.

scipy.special is imported where it is used, so that only commands that make a
report wait for it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

# A number, or an array with one number for each of many studies.
Numbers = Any

# The chance to find a difference of the detectable size.
POWER = 0.8

# A standard error smaller than this share of the difference is rounding.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Items:
  """The evaluation items of a task, for one metric.

  Attributes:
    weights: [I], the weights of the items in the metric's mean; their sum is 1.
    clusters: [I], numbers from 0; items with the same number share a source.
  """

  weights: np.ndarray
  clusters: np.ndarray

  @classmethod
  def independent(cls, count: int) -> 'Items':
    """Items of the same weight that share nothing."""
    return cls(np.full(count, 1 / count), np.arange(count))


@dataclasses.dataclass(frozen=True)
class Variance:
  """An estimate of a variance.

  Attributes:
    value: the estimate.
    freedom: its degrees of freedom; with 0, the value is 0.
  """

  value: Numbers
  freedom: float


@dataclasses.dataclass(frozen=True)
class Error:
  """The standard error of a difference or mean.

  Attributes:
    value: the standard error.
    freedom: degrees of freedom of its t distribution; 0: unknown.
  """

  value: Numbers
  freedom: Numbers


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over seeds with its confidence interval.

  Attributes:
    mean: arithmetic mean over seeds.
    low: lower end, or None if the study has no variance to judge by.
    high: upper end, or None.
    count: number of seeds.
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
  """A strategy minus random, with its interval and p-value.

  Attributes:
    mean: the difference of the means.
    error: its standard error.
    low: lower end of the interval, NaN without a test.
    high: upper end of the interval, NaN without a test.
    p_value: two-sided p-value without correction, NaN without a test.
  """

  mean: Numbers
  error: Error
  low: Numbers
  high: Numbers
  p_value: Numbers

  @property
  def tested(self) -> bool:
    """Whether there was a variance to test with."""
    return bool(np.isfinite(self.p_value))


def seed_means(values: np.ndarray, items: Items) -> np.ndarray:
  """The metric of each seed, [..., R]: the weighted mean over items."""
  return values @ items.weights


def pooled_variance(means: Sequence[np.ndarray]) -> Variance:
  """The variance over seeds, pooled over strategies.

  The sum of squares within strategies over its degrees of freedom, the sum of
  R - 1; with the same number of seeds everywhere, the mean of the variances.

  Args:
    means: of each strategy, the metric by seed, [..., R].
  """
  freedom = sum(mean.shape[-1] - 1 for mean in means)
  if freedom == 0:
    return Variance(0.0, 0)
  squares = 0.0
  for mean in means:
    # Relative to the first seed, seeds that agree have a variance of exactly 0.
    shifted = mean - mean[..., :1]
    centred = shifted - shifted.mean(-1, keepdims=True)
    squares = squares + (centred**2).sum(-1)
  return Variance(squares / freedom, freedom)


def item_variance(
  values: np.ndarray, random_values: np.ndarray, items: Items
) -> Numbers:
  """The variance of a difference because other items could have been drawn.

  Items are paired: d_i is the difference of item i, averaged over seeds. Its
  variance over items, less what the seeds alone add to it, max(0, var_i(d) -
  e_s^2 / R_s - e_0^2 / R_0) / n, where e^2 is the variance of the interaction
  of items and seeds. Weighted items enter by their part in the weighted mean.
  Clusters of items are drawn as a whole: their sums take the place of the
  items, with the correction C / (C - 1).

  With a single seed, e^2 is unknown and taken for 0: the result is then too
  large rather than too small.

  Args:
    values: [..., R_s, I] of the strategy.
    random_values: [..., R_0, I] of random.
    items: their weights and clusters; with one cluster, the result is 0.
  """
  count = int(items.clusters.max()) + 1
  if count < 2:
    return 0.0
  sums, noise = zip(
    *(_cluster_sums(each, items, count) for each in (values, random_values)),
    strict=True,
  )
  squares = ((sums[0] - sums[1]) ** 2).sum(-1)
  correction = count / (count - 1)
  return correction * np.maximum(squares - noise[0] - noise[1], 0.0)


def _cluster_sums(
  values: np.ndarray, items: Items, count: int
) -> tuple[np.ndarray, Numbers]:
  """Parts of clusters in the mean over seeds, [..., C], and their noise.

  The noise is what seeds add to the sum of squares of the parts.
  """
  centred = values - seed_means(values, items)[..., None]
  parts = centred * items.weights
  if count < values.shape[-1]:
    order = np.argsort(items.clusters, kind='stable')
    starts = np.searchsorted(items.clusters[order], np.arange(count))
    parts = np.add.reduceat(parts[..., order], starts, axis=-1)
  mean = parts.mean(-2)
  seeds = values.shape[-2]
  if seeds == 1:
    return mean, 0.0
  squares = ((parts - mean[..., None, :]) ** 2).sum((-2, -1))
  return mean, squares / (seeds - 1) / seeds


@dataclasses.dataclass(frozen=True)
class Noise:
  """The variance over seeds at one budget, or of the whole curve.

  A deterministic strategy that always sees the whole pool has a single list of
  prompts, whatever the seed, so its seeds show no variance of the picks. Such
  strategies are pooled separately, and the variance that random shows serves
  as the variance of their picks, which does not shrink with more seeds. It
  includes what the initialisation adds. Without that, one study in ten with 10
  seeds found a difference where there is none, because the difference of the
  two variances is often near 0 by chance.

  Attributes:
    drawn: of strategies whose lists differ from seed to seed, and random.
    num_drawn: how many these are; fewer, if they are not independent.
    fixed: of strategies with a single list; None if there are none.
    num_fixed: how many these are.
  """

  drawn: Variance
  num_drawn: float
  fixed: Variance | None = None
  num_fixed: int = 0

  @classmethod
  def of(
    cls,
    means: Mapping[str, np.ndarray],
    fixed: frozenset[str],
    all_vary: bool = False,
  ) -> 'Noise':
    """Pools the variances.

    Args:
      means: strategy -> the metric by seed, [..., R].
      fixed: names of strategies with a single list of prompts.
      all_vary: whether the metric varies with random's list for each of them.
    """
    drawn = [
      mean for name, mean in means.items() if all_vary or name not in fixed
    ]
    single = [mean for name, mean in means.items() if name in fixed]
    variance = pooled_variance(drawn)
    count: float = len(drawn)
    if all_vary and drawn:
      count = num_independent(len(drawn))
      freedom = variance.freedom * count / len(drawn)
      variance = Variance(variance.value, freedom)
    return cls(
      variance,
      count,
      pooled_variance(single) if single else None,
      len(single),
    )

  def with_seeds(self, seeds: int) -> 'Noise':
    """The same variances, known from that many seeds of each strategy."""
    return Noise(
      Variance(self.drawn.value, self.num_drawn * (seeds - 1)),
      self.num_drawn,
      self.fixed and Variance(self.fixed.value, self.num_fixed * (seeds - 1)),
      self.num_fixed,
    )

  def error(
    self,
    seeds: int,
    random_seeds: int | None,
    items: Numbers,
    is_fixed: bool,
  ) -> Error:
    """The standard error of a strategy's mean, or its difference from random.

    sqrt(sigma^2 (1 / R_s + 1 / R_0) + v_I), with the degrees of freedom of
    sigma^2. For a strategy with a single list, the first term is sigma_s^2 /
    R_s + sigma^2 (1 + 1 / R_0), where sigma_s^2 is that of such strategies.

    Args:
      seeds: R_s.
      random_seeds: R_0; None: of the mean itself.
      items: v_I, see item_variance.
      is_fixed: whether the strategy has a single list of prompts.
    """
    variance = self.drawn.value / random_seeds if random_seeds else 0.0
    if is_fixed and self.fixed is not None:
      variance = variance + self.fixed.value / seeds + self.drawn.value
    else:
      variance = variance + self.drawn.value / seeds
    return Error(np.sqrt(variance + items), self.drawn.freedom)


def num_independent(count: int) -> float:
  """The effective number of independent variances among `count` strategies.

  For a metric relative to random: random contributes half of each variance, so
  two of them have a correlation of 1/2, and S variances are worth
  S / (1 + (S - 1) / 4) independent ones.
  """
  return 4 * count / (count + 3)


def quantile(share: float, freedom: Numbers) -> Numbers:
  """The quantile of Student's t distribution; NaN without freedom."""
  from scipy import special

  return special.stdtrit(np.where(np.equal(freedom, 0), np.nan, freedom), share)


def mean_interval(
  means: np.ndarray, error: Error, confidence: float
) -> Interval:
  """The mean over seeds, [R], and its interval by the pooled variance."""
  mean = float(means.mean())
  if np.equal(error.freedom, 0):
    return Interval(mean, None, None, len(means))
  half = float(quantile((1 + confidence) / 2, error.freedom) * error.value)
  return Interval(mean, mean - half, mean + half, len(means))


def difference(mean: Numbers, error: Error, confidence: float) -> Difference:
  """Tests a difference by Student's t.

  A difference cannot be tested without degrees of freedom, or if its standard
  error is 0 but it is not, since it cannot be judged without any spread. A
  difference of 0 with an error of 0 has a p-value of 1.
  """
  from scipy import special

  half = quantile((1 + confidence) / 2, error.freedom) * error.value
  no_spread = error.value <= _ROUNDING * np.abs(mean)
  divisor = np.where(
    no_spread, np.where(np.equal(mean, 0), 1.0, np.nan), error.value
  )
  freedom = np.where(np.equal(error.freedom, 0), np.nan, error.freedom)
  p_value = 2 * special.stdtr(freedom, -np.abs(mean / divisor))
  # NaN where nothing is tested.
  half = half + 0.0 * p_value
  return Difference(mean, error, mean - half, mean + half, p_value)


def holm(p_values: np.ndarray) -> np.ndarray:
  """Holm's step-down correction along the last axis.

  Rejecting if a corrected value is below alpha keeps the probability of any
  false rejection below alpha, whatever the dependence between the tests
  (Holm, "A simple sequentially rejective multiple test procedure",
  Scandinavian Journal of Statistics 6, 1979).
  """
  count = p_values.shape[-1]
  order = np.argsort(p_values, axis=-1, kind='stable')
  scaled = np.take_along_axis(p_values, order, -1) * np.arange(count, 0, -1)
  stepped = np.minimum(np.maximum.accumulate(scaled, axis=-1), 1.0)
  corrected = np.empty_like(stepped)
  np.put_along_axis(corrected, order, stepped, -1)
  return corrected


def detectable(error: Error, alpha: float, num_tests: int) -> Numbers:
  """The smallest difference that is found in four of five studies.

  (t_{1 - alpha / 2m} + t_{.8}) SE: the hardest of m tests under Holm's
  correction. NaN without degrees of freedom.
  """
  critical = quantile(1 - alpha / (2 * num_tests), error.freedom)
  return (critical + quantile(POWER, error.freedom)) * error.value
