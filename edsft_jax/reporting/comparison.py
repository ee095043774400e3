"""Compares each strategy with random at the same budget."""

from collections.abc import Mapping
import dataclasses
import enum

from edsft_jax.reporting import results, statistics, wording
from edsft_jax.strategies.registry import RANDOM


class Verdict(enum.Enum):
  """The result of comparing a strategy with random at a budget."""

  BETTER = 'better than random'
  WORSE = 'worse than random'
  SAME = 'not distinguishable from random'
  ONE_SEED = 'not tested: a test needs two seeds on each side'
  NO_SPREAD = 'not tested: every seed gave the same value'
  NO_RANDOM = 'not tested: random has no results at this budget'


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A strategy compared with random at one budget.

  Attributes:
    difference: strategy minus random; None without random.
    p_value: corrected for all comparisons of this metric; None if untested.
    needed: answers that random needs to be as good; None without random.
  """

  strategy: str
  budget: int
  verdict: Verdict
  difference: statistics.Difference | None = None
  p_value: float | None = None
  needed: statistics.AnswersNeeded | None = None

  @property
  def conclusive(self) -> bool:
    """Whether the test found a difference."""
    return self.verdict in (Verdict.BETTER, Verdict.WORSE)


def compare(
  found: results.Results, metric: str, confidence: float
) -> dict[tuple[str, int], Comparison]:
  """Compares every strategy with random at every budget.

  p-values have Holm's correction over all tests of the metric. Empty if random
  is not among the strategies.
  """
  if RANDOM not in found.strategies:
    return {}
  higher = found.metrics[metric].larger_is_better
  curve = {
    budget: statistics.mean_interval(values, confidence).mean
    for budget in found.budgets
    if (values := found.values(RANDOM, budget, metric))
  }
  differences = {
    (strategy, budget): statistics.welch(
      values, found.values(RANDOM, budget, metric), confidence
    )
    for strategy in found.strategies
    for budget in curve
    if strategy != RANDOM and (values := found.values(strategy, budget, metric))
  }
  tested = {
    key: difference.p_value
    for key, difference in differences.items()
    if difference.p_value is not None
  }
  corrected = dict(
    zip(tested, statistics.holm(list(tested.values())), strict=True)
  )
  comparisons = {}
  for strategy in found.strategies:
    for budget in found.budgets:
      key = strategy, budget
      values = found.values(*key, metric)
      if strategy == RANDOM or not values:
        continue
      if not curve:
        comparisons[key] = Comparison(*key, Verdict.NO_RANDOM)
        continue
      count = min(len(values), len(found.at(RANDOM, budget)))
      mean = statistics.mean_interval(values, confidence).mean
      difference, p_value = differences.get(key), corrected.get(key)
      comparisons[key] = Comparison(
        *key,
        verdict=_verdict(difference, p_value, count, higher, confidence),
        difference=difference,
        p_value=p_value,
        needed=statistics.answers_needed(
          list(curve), list(curve.values()), mean, higher
        ),
      )
  return comparisons


def _verdict(
  difference: statistics.Difference | None,
  p_value: float | None,
  count: int,
  higher_is_better: bool,
  confidence: float,
) -> Verdict:
  if difference is None:
    return Verdict.NO_RANDOM
  if p_value is None:
    return Verdict.ONE_SEED if count < 2 else Verdict.NO_SPREAD
  if p_value >= 1 - confidence:
    return Verdict.SAME
  if (difference.mean > 0) == higher_is_better:
    return Verdict.BETTER
  return Verdict.WORSE


def conclusions(
  comparisons: Mapping[tuple[str, int], Comparison], with_random: bool
) -> list[str]:
  """Summarises the comparisons of a metric, the most important first."""
  if not with_random:
    return [
      'Random is not among the strategies of this study, so there is nothing '
      'to compare with.'
    ]
  if not comparisons:
    return ['No other strategy has results to compare with random.']
  sentences = [
    sentence
    for verdict in (Verdict.BETTER, Verdict.WORSE)
    for strategy in dict.fromkeys(c.strategy for c in comparisons.values())
    if (sentence := _sentence(strategy, verdict, comparisons))
  ]
  if sentences:
    return sentences
  if all(c.p_value is None for c in comparisons.values()):
    reasons = dict.fromkeys(c.verdict.value for c in comparisons.values())
    return [
      f'No strategy can be compared with random yet ({"; ".join(reasons)}).'
    ]
  return [
    'No strategy is distinguishable from random at any budget: these runs do '
    'not show that choosing prompts saves answers.'
  ]


def _sentence(
  strategy: str,
  verdict: Verdict,
  comparisons: Mapping[tuple[str, int], Comparison],
) -> str:
  """Where this verdict on a strategy holds, as a sentence; '' if nowhere."""
  found = [
    c
    for c in comparisons.values()
    if c.strategy == strategy and c.verdict is verdict
  ]
  if not found:
    return ''
  first, *others = found
  places = [
    f'{first.budget:,} answers (random needs {first.needed} for the same '
    'quality)',
    *(f'{c.budget:,} ({c.needed})' for c in others),
  ]
  return f'{strategy} is {verdict.value} at {wording.listed(places)}.'
