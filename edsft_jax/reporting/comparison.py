"""Compares each strategy with random: its whole curve, and single budgets."""

from collections.abc import Mapping, Sequence
import dataclasses
import enum

import numpy as np

from edsft_jax.reporting import procedure, results, savings, statistics
from edsft_jax.strategies.registry import LENGTH_MATCHED, RANDOM

# Numbers of seeds to give the detectable difference for, besides those that
# were run.
PLANNED_SEEDS = (5, 10)


class Verdict(enum.Enum):
  """The result of comparing a strategy with random."""

  BETTER = 'better than random'
  WORSE = 'worse than random'
  SAME = 'not distinguishable from random'
  INCOMPLETE = 'not tested: no seed has all budgets'
  ONE_SEED = 'not tested: a test needs two seeds of some strategy'
  NO_SPREAD = 'not tested: every seed gave the same value'
  NO_RANDOM = 'not tested: random has no results here'

  @property
  def conclusive(self) -> bool:
    """Whether a difference was found."""
    return self in (Verdict.BETTER, Verdict.WORSE)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A strategy compared with random, over its whole curve or at a budget.

  A control has random_length_matched instead of random, is over the whole
  curve, and its p-value is not corrected.

  Attributes:
    strategy: the strategy.
    budget: the budget; 0: all budgets, averaged.
    verdict: the result.
    difference: strategy minus random; None if random or the strategy lacks
      results.
    p_value: with Holm's correction; None if untested.
    detectable: seeds of each strategy -> the smallest difference that would be
      found four times in five, first for the seeds as run; empty if untested.
  """

  strategy: str
  budget: int
  verdict: Verdict
  difference: statistics.Difference | None = None
  p_value: float | None = None
  detectable: Mapping[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """All comparisons by one metric.

  Attributes:
    curves: strategy -> its whole curve compared with random: the primary
      comparisons, corrected for the number of strategies. The verdict on a
      strategy is that on its curve.
    budgets: (strategy, budget) -> comparison at that budget, corrected for all
      strategies and budgets.
    savings: strategy -> the answers that it saves; for strategies with results
      at two budgets or more.
    curvature_p: p-value of the test of whether the curves are lines in log2 of
      the budget; None if it cannot be made.
    levels: budget -> what the comparisons there were made from.
    control: the strategy that random_length_matched has the lengths of, minus
      random_length_matched; None if one of them has no results.
  """

  curves: Mapping[str, Comparison]
  budgets: Mapping[tuple[str, int], Comparison]
  savings: Mapping[str, savings.Saving]
  curvature_p: float | None
  levels: Mapping[int, procedure.Level]
  control: Comparison | None = None

  def interval(
    self, strategy: str, budget: int, confidence: float
  ) -> statistics.Interval | None:
    """Mean and interval of a strategy at a budget; None without results."""
    level = self.levels.get(budget)
    if level is None or strategy not in level.means:
      return None
    return level.interval(strategy, confidence)


def compare_all(
  found: results.Results, headline: str, confidence: float
) -> dict[str, Comparisons]:
  """Compares by every metric, the headline metric first."""
  names = sorted(found.metrics, key=lambda name: name != headline)
  return {name: compare(found, name, confidence) for name in names}


def compare(
  found: results.Results, metric: str, confidence: float
) -> Comparisons:
  """Compares every strategy with random, by the procedure of procedure.py.

  There are no comparisons if random is not among the strategies.
  """
  levels = {
    budget: level
    for budget in found.budgets
    if (level := level_at(found, metric, [budget], confidence))
  }
  names = [s for s in found.strategies if s != RANDOM]
  higher = found.metrics[metric].larger_is_better
  whole = level_at(found, metric, found.budgets, confidence)
  control = _control(found.matched, whole, higher, confidence)
  if RANDOM not in found.strategies:
    return Comparisons({}, {}, {}, None, levels, control)
  places = [
    (name, budget)
    for name in names
    for budget in found.budgets
    if budget in levels and name in levels[budget].means
  ]
  against_random = found.metrics[metric].against_random
  at_budgets = _judge(
    [(name, budget, levels[budget]) for name, budget in places],
    higher,
    confidence,
  )
  curves: dict[str, Comparison] = {}
  saved: dict[str, savings.Saving] = {}
  curvature_p = None
  shown = list(dict.fromkeys(name for name, _ in places))
  if whole is not None:
    tests = [(name, 0, whole) for name in shown]
    curves = {c.strategy: c for c in _judge(tests, higher, confidence)}
    # What is relative to random at each budget does not grow with it.
    if len(found.budgets) > 1 and RANDOM in whole.means and not against_random:
      saved, curvature_p = _savings(found, metric, whole, levels, confidence)
  for name in shown:
    curves.setdefault(name, Comparison(name, 0, Verdict.INCOMPLETE))
  return Comparisons(
    curves,
    {(c.strategy, c.budget): c for c in at_budgets},
    saved,
    curvature_p,
    levels,
    control,
  )


def level_at(
  found: results.Results,
  metric: str,
  budgets: Sequence[int],
  confidence: float,
) -> procedure.Level | None:
  """All strategies, averaged over these budgets; None without results.

  A seed counts if it has all of these budgets.
  """
  values = _complete(found, metric, budgets)
  if not values:
    return None
  return procedure.compare(
    {name: value.mean(1) for name, value in values.items()},
    found.items[metric],
    found.fixed,
    confidence,
    found.metrics[metric].against_random,
    (found.matched, LENGTH_MATCHED) if found.matched else None,
  )


def _complete(
  found: results.Results, metric: str, budgets: Sequence[int]
) -> dict[str, np.ndarray]:
  """Strategy -> item values [R, B, I] of the seeds that have all budgets."""
  complete = {}
  for name in found.strategies:
    rows = [found.item_values(name, budget, metric) for budget in budgets]
    seeds = [seed for seed in rows[0] if all(seed in row for row in rows)]
    if seeds:
      complete[name] = np.stack(
        [np.stack([row[seed] for row in rows]) for seed in seeds]
      )
  return complete


def _judge(
  places: Sequence[tuple[str, int, procedure.Level]],
  higher_is_better: bool,
  confidence: float,
) -> list[Comparison]:
  """Tests strategies at their levels, with Holm's correction over all."""
  tests = {
    (name, budget): level.tests[name]
    for name, budget, level in places
    if name in level.tests
  }
  tested = [key for key, test in tests.items() if test.difference.tested]
  corrected = dict(
    zip(
      tested,
      statistics.holm(
        np.array([tests[key].difference.p_value for key in tested])
      ).tolist(),
      strict=True,
    )
  )
  judged = []
  for name, budget, level in places:
    key = name, budget
    test, p_value = tests.get(key), corrected.get(key)
    if test is None:
      verdict = (
        Verdict.NO_RANDOM if RANDOM not in level.means else Verdict.INCOMPLETE
      )
      judged.append(Comparison(*key, verdict))
      continue
    judged.append(
      Comparison(
        *key,
        _verdict(test.difference, p_value, higher_is_better, confidence),
        test.difference,
        p_value,
        {}
        if p_value is None
        else _detectable(level, test, 1 - confidence, len(tested)),
      )
    )
  return judged


def _detectable(
  level: procedure.Level, test: procedure.Test, alpha: float, num_tests: int
) -> dict[int, float]:
  return {
    test.seeds if seeds is None else seeds: float(
      level.detectable(test, seeds, alpha, num_tests)
    )
    for seeds in (None, *PLANNED_SEEDS)
  }


def _control(
  strategy: str,
  whole: procedure.Level | None,
  higher_is_better: bool,
  confidence: float,
) -> Comparison | None:
  """The control of a strategy, which is a single test of its own."""
  if whole is None or whole.control is None:
    return None
  test = whole.control
  tested = test.difference.tested
  p_value = float(test.difference.p_value) if tested else None
  return Comparison(
    strategy,
    0,
    _verdict(test.difference, p_value, higher_is_better, confidence),
    test.difference,
    p_value,
    _detectable(whole, test, 1 - confidence, 1) if tested else {},
  )


def _verdict(
  difference: statistics.Difference,
  p_value: float | None,
  higher_is_better: bool,
  confidence: float,
) -> Verdict:
  if p_value is None:
    unknown = np.equal(difference.error.freedom, 0)
    return Verdict.ONE_SEED if unknown else Verdict.NO_SPREAD
  if p_value >= 1 - confidence:
    return Verdict.SAME
  if (difference.mean > 0) == higher_is_better:
    return Verdict.BETTER
  return Verdict.WORSE


def _savings(
  found: results.Results,
  metric: str,
  whole: procedure.Level,
  levels: Mapping[int, procedure.Level],
  confidence: float,
) -> tuple[dict[str, savings.Saving], float | None]:
  """The saving of every tested strategy, and the test of curvature."""
  items = found.items[metric]
  curves = {
    name: statistics.seed_means(value, items)
    for name, value in _complete(found, metric, found.budgets).items()
  }
  higher = found.metrics[metric].larger_is_better
  slope = savings.common_slope(curves, found.budgets)
  bent = slope.curvature_p < savings.CURVATURE_LEVEL
  middle = levels[savings.reference_budget(found.budgets)]
  saved = {}
  for name, test in whole.tests.items():
    if bent:
      saved[name] = savings.by_isotonic_curves(
        curves[name].mean(0).tolist(),
        float(middle.means[RANDOM].mean()),
        middle.tests[name].difference.error,
        found.budgets,
        higher,
        confidence,
      )
    else:
      saved[name] = savings.by_parallel_curves(
        test.difference.mean,
        test.difference.error,
        slope,
        found.budgets,
        higher,
        confidence,
      )
  p_value = float(slope.curvature_p)
  return saved, None if np.isnan(p_value) else p_value
