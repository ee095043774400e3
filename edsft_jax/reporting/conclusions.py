"""What a study shows, in sentences; the verdicts are those on whole curves."""

from collections.abc import Mapping, Sequence

from edsft_jax.reporting import money, results, savings, wording
from edsft_jax.reporting.comparison import Comparison, Comparisons, Verdict
from edsft_jax.strategies.registry import LENGTH_MATCHED, RANDOM


def conclusions(
  found: results.Results,
  metric: str,
  compared: Comparisons,
  prices: Mapping[str, float],
) -> list[str]:
  """Summarises the comparisons of a metric, the most important first."""
  if RANDOM not in found.strategies:
    return [
      'Random is not among the strategies of this study, so there is nothing '
      'to compare with.',
      *_control(compared),
    ]
  if not compared.curves:
    return ['No other strategy has results to compare with random.']
  sentences = [
    _sentence(one, compared, found.budgets, prices)
    for verdict in (Verdict.BETTER, Verdict.WORSE)
    for one in compared.curves.values()
    if one.verdict is verdict
  ]
  if sentences:
    return [*sentences, *_control(compared)]
  if all(c.p_value is None for c in compared.curves.values()):
    reasons = dict.fromkeys(c.verdict.value for c in compared.curves.values())
    return [
      f'No strategy can be compared with random yet ({"; ".join(reasons)}).'
    ]
  return [*_nothing_found(found, metric, compared), *_control(compared)]


def _control(compared: Comparisons) -> list[str]:
  """Whether a strategy differs from random prompts of the same lengths."""
  one = compared.control
  if one is None or one.difference is None or one.p_value is None:
    return []
  other = f'{LENGTH_MATCHED}, random prompts of the same lengths'
  numbers = (
    f'{wording.signed(one.difference.mean)}, '
    f'{wording.signed(one.difference.low)} to '
    f'{wording.signed(one.difference.high)}'
  )
  if one.verdict.conclusive:
    word = 'better' if one.verdict is Verdict.BETTER else 'worse'
    return [f'Control: {one.strategy} is {word} than {other} ({numbers}).']
  return [
    f'Control: {one.strategy} is not distinguishable from {other} ({numbers}); '
    f'detectable: {wording.detectable(one.detectable)}.'
  ]


def _sentence(
  one: Comparison,
  compared: Comparisons,
  budgets: Sequence[int],
  prices: Mapping[str, float],
) -> str:
  """A verdict on a strategy, the difference, and what it saves or costs."""
  difference = one.difference
  assert difference is not None
  sentence = (
    f'{one.strategy} is {one.verdict.value} over the whole curve, by '
    f'{abs(difference.mean):.3f} on average ({wording.signed(difference.low)} '
    f'to {wording.signed(difference.high)})'
  )
  saving = compared.savings.get(one.strategy)
  if saving is None:
    return f'{sentence}.'
  if not saving.known:
    return f'{sentence}; how many answers that saves is undetermined.'
  sentence += (
    f': for what random reaches with {saving.budget:,} answers, it needs '
    f'{wording.answers_interval(saving, budgets)}'
  )
  if saved := money.saved(saving, one.strategy, prices):
    amounts = wording.money_interval(saving, budgets, saved)
    sentence += f'; money saved: {amounts}'
  return f'{sentence}.'


def _nothing_found(
  found: results.Results, metric: str, compared: Comparisons
) -> list[str]:
  """That nothing differs, who was ahead, and what would have been found."""
  sentences = [
    'No strategy is distinguishable from random over the whole curve: these '
    'runs do not show that choosing prompts saves answers.'
  ]
  higher = found.metrics[metric].larger_is_better
  tested = [c for c in compared.curves.values() if c.difference is not None]
  behind = [
    c for c in tested if c.difference and (c.difference.mean < 0) == higher
  ]
  if len(behind) == len(tested) and tested:
    sentences.append(
      'Random has the best mean of all strategies here, though this may be due '
      'to chance.'
    )
  sizes = [c.detectable for c in tested if c.detectable]
  if sizes:
    largest = max(sizes, key=lambda size: next(iter(size.values())))
    sentences.append(
      'Four of five such studies would find a difference of '
      f'{wording.detectable(largest)}.'
    )
  return sentences


def about_lists(found: results.Results) -> list[str]:
  """The strategies whose verdicts are about a single list of prompts."""
  fixed = [name for name in found.strategies if name in found.fixed]
  if not fixed:
    return []
  return [
    f'All seeds of {wording.listed(fixed)} have the same list of prompts: '
    'another pool would give another list, and perhaps another verdict.'
  ]


def at_budgets(compared: Comparisons) -> list[str]:
  """A sentence per verdict on what single budgets show."""
  sentences = []
  for verdict in (Verdict.BETTER, Verdict.WORSE):
    places: dict[str, list[str]] = {}
    for one in compared.budgets.values():
      if one.verdict is verdict:
        places.setdefault(one.strategy, []).append(f'{one.budget:,}')
    if places:
      listed = '; '.join(
        f'{strategy} at {wording.listed(budgets)} answers'
        for strategy, budgets in places.items()
      )
      sentences.append(f'At single budgets, {verdict.value}: {listed}.')
  return sentences


def other_metrics(
  found: results.Results,
  compared: Mapping[str, Comparisons],
  headline: str,
) -> list[str]:
  """A sentence per further metric: which strategies are better or worse by it.

  A last one warns of differences by chance, if any was found.
  """
  sentences = []
  any_found = False
  for name, comparisons in compared.items():
    tested = [c for c in comparisons.curves.values() if c.p_value is not None]
    if name == headline or not tested:
      continue
    parts = [
      f'{wording.listed(strategies)} '
      f'{"is" if len(strategies) == 1 else "are"} {verdict.value}'
      for verdict in (Verdict.BETTER, Verdict.WORSE)
      if (strategies := [c.strategy for c in tested if c.verdict is verdict])
    ]
    any_found = any_found or bool(parts)
    parts = parts or ['no strategy is distinguishable from random']
    sentences.append(
      f'By {found.metrics[name].label}, {wording.listed(parts)}.'
    )
  if any_found:
    sentences.append(
      f'{found.metrics[headline].label} alone decides (report.metric): of '
      'several metrics, some may differ by chance.'
    )
  return sentences


def about_savings(compared: Comparisons, confidence: float) -> str:
  """How savings were computed; '' without any."""
  if not compared.savings:
    return ''
  methods = {saving.method for saving in compared.savings.values()}
  if savings.ISOTONIC in methods:
    return (
      'The curves are not lines in the logarithm of the number of answers (p '
      f'{_probability(compared.curvature_p)} for curvature), so savings come '
      'from isotonic interpolation: each curve is made monotone, and an '
      f'interval has all numbers of answers that a {confidence:.0%} interval '
      'of the difference allows.'
    )
  tested = (
    f'no curvature was found, p {_probability(compared.curvature_p)}'
    if compared.curvature_p is not None
    else 'two budgets cannot show whether that is so'
    if len(compared.levels) == 2
    else 'whether that is so could not be tested'
  )
  return (
    'Savings come from parallel curves: quality is taken to be linear in the '
    'logarithm of the number of answers, with the same slope for all '
    f"strategies ({tested}); the intervals are Fieller's, {confidence:.0%}."
  )


def _probability(p: float | None) -> str:
  return 'unknown' if p is None else wording.probability(p)
