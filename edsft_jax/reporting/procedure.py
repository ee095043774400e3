"""How strategies are compared with random, at one budget or as whole curves.

Values are arrays [..., R, I] per strategy: R seeds, I evaluation items; leading
axes hold independent studies, as in statistics.py.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from edsft_jax.reporting import statistics
from edsft_jax.reporting.statistics import Difference, Items, Noise, Numbers
from edsft_jax.strategies.registry import RANDOM


@dataclasses.dataclass(frozen=True)
class Test:
  """A strategy compared with another one, as a rule with random.

  Attributes:
    difference: strategy minus the other.
    seeds: of the strategy.
    random_seeds: of random, or the other; None if the metric is relative to it.
    item_variance: v_I, the part of the squared error that other items cause.
    is_fixed: whether the strategy has the same list of prompts in all seeds.
  """

  difference: Difference
  seeds: int
  random_seeds: int | None
  item_variance: Numbers
  is_fixed: bool


@dataclasses.dataclass(frozen=True)
class Level:
  """All strategies at one budget, or averaged over all budgets.

  Attributes:
    means: strategy -> the metric by seed, [..., R].
    noise: the pooled variance over seeds.
    fixed: strategies that have the same list of prompts in all seeds.
    tests: strategy -> its comparison with random; empty without random.
    against_random: whether the metric is relative to random at the same budget
      and for the same seed, so that its own value is constant.
    control: the comparison of two further strategies that was asked for; None
      if they have no results.
  """

  means: Mapping[str, np.ndarray]
  noise: Noise
  fixed: frozenset[str]
  tests: Mapping[str, Test]
  against_random: bool = False
  control: Test | None = None

  def interval(self, strategy: str, confidence: float) -> statistics.Interval:
    """The strategy's mean over seeds, with its interval; of one study."""
    means = self.means[strategy]
    if self.against_random and strategy == RANDOM:
      value = float(means.mean())
      return statistics.Interval(value, value, value, len(means))
    error = self.noise.error(len(means), None, 0.0, strategy in self.fixed)
    return statistics.mean_interval(means, error, confidence)

  def detectable(
    self, test: Test, seeds: int | None, alpha: float, num_tests: int
  ) -> Numbers:
    """The smallest difference that is found four times in five.

    Args:
      test: of the strategy.
      seeds: of every strategy, and of random, which may have more; None: as
        they are.
      alpha: the level of all tests together.
      num_tests: how many share this level.
    """
    error = test.difference.error
    if seeds is not None:
      random_seeds = test.random_seeds and max(seeds, test.random_seeds)
      error = self.noise.with_seeds(seeds).error(
        seeds,
        random_seeds,
        test.item_variance,
        test.is_fixed,
      )
    return statistics.detectable(error, alpha, num_tests)


def compare(
  values: Mapping[str, np.ndarray],
  items: Items,
  fixed: frozenset[str],
  confidence: float,
  against_random: bool = False,
  control: tuple[str, str] | None = None,
) -> Level:
  """Compares every strategy with random.

  Args:
    values: strategy -> item values, [..., R, I]; seeds may differ in number.
    items: weights and clusters of the items.
    fixed: deterministic strategies, if every seed has the whole pool.
    confidence: of the intervals, for a single comparison.
    against_random: whether the values are relative to random for the same seed,
      as win rates are: random's own are constant, and the variance of the
      others includes random's.
    control: two strategies to compare with each other, too: first minus second.
  """
  means = {
    name: statistics.seed_means(value, items) for name, value in values.items()
  }
  varying = means
  if against_random:
    varying = {name: mean for name, mean in means.items() if name != RANDOM}
  noise = Noise.of(varying, fixed, all_vary=against_random)

  def test(name: str, other: str) -> Test:
    seeds, other_seeds = means[name].shape[-1], means[other].shape[-1]
    random_seeds = None if against_random and other == RANDOM else other_seeds
    variance = statistics.item_variance(values[name], values[other], items)
    error = noise.error(seeds, random_seeds, variance, name in fixed)
    mean = means[name].mean(-1) - means[other].mean(-1)
    return Test(
      statistics.difference(mean, error, confidence),
      seeds,
      random_seeds,
      variance,
      name in fixed,
    )

  names = [name for name in values if name != RANDOM]
  return Level(
    means,
    noise,
    fixed,
    {name: test(name, RANDOM) for name in names} if RANDOM in values else {},
    against_random,
    test(*control) if control and set(control) <= set(values) else None,
  )
