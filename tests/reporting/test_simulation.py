"""Simulated studies; scripts/simulate_statistics.py has 20,000 per case."""

import numpy as np
from places import script_module
import pytest

from edsft_jax import study
from edsft_jax.reporting import comparison, results, savings, statistics


@pytest.fixture(scope='module')
def script():
  return script_module('simulate_statistics')


def rates(script, studies, **case):
  """What happens in studies of a case."""
  return script.simulate([script.Case(**case)], studies)[0].rates()


def test_simulated_studies_that_differ_in_nothing(script):
  found = rates(script, 400, seeds=3, ratio=1.0, slope=2.0)
  assert found['false_verdicts'] <= 0.06
  assert found['false_savings'] <= 0.05
  # Four standard errors of 400 studies with dependent strategies.
  assert found['covered'] == pytest.approx(0.95, abs=0.03)
  assert found['saving_covered'] >= 0.93


def test_simulated_gaps_are_found(script):
  found = rates(script, 200, seeds=3, gap=2.0, slope=2.0)
  assert found['found'] >= 0.75
  assert found['false_verdicts'] <= 0.06


def test_simulated_flat_curves_cannot_tell(script):
  found = rates(script, 200, seeds=3, ratio=0.5)
  assert found['saving_known'] <= 0.06
  assert found['false_savings'] <= 0.01


def test_simulated_lists_that_never_change_are_not_taken_for_many(script):
  found = rates(script, 150, seeds=10, ratio=0.5, slope=2.0, whole_pool=True)
  assert found['false_verdicts'] <= 0.03


def report_of(script, case, values):
  """What the report says of one study, from its item values [R, B, I]."""
  evaluations = {
    study.Cell(name, budget, seed): results.Evaluation(
      metrics={'score': float(value_I.mean())}, items={'score': value_I}
    )
    for name, value_RxBxI in values.items()
    for seed, value_BxI in enumerate(value_RxBxI)
    for budget, value_I in zip(script.BUDGETS, value_BxI, strict=True)
  }
  others = [name for name in values if name != 'random']
  found = results.Results(
    metrics={'score': results.Metric('heldout', 'score', True, 'score')},
    evaluations=evaluations,
    absent=[],
    strategies=list(values),
    budgets=list(script.BUDGETS),
    seeds={name: list(range(case.seeds)) for name in values},
    pool_size=case.seeds * script.PART,
    items={'score': statistics.Items.independent(script.ITEMS)},
    fixed=frozenset(others if case.whole_pool else ()),
  )
  return comparison.compare(found, 'score', script.CONFIDENCE)


def count(script, case, said):
  """What script.Counts has of one study, from what the report says of it."""
  bent = said.curvature_p < savings.CURVATURE_LEVEL
  x_B = np.log2(script.BUDGETS)
  doubling_B = x_B - x_B[1]
  curve_B = case.slope * doubling_B + case.bend * doubling_B**2
  counts = script.Counts(studies=1, bent=float(bent))
  for s, (name, one) in enumerate(said.curves.items()):
    gap = case.gap if s < case.better else 0.0
    saving = said.savings[name]
    log_answers = x_B[1] - gap / case.slope
    if bent:
      log_answers = np.interp(0.0, curve_B + gap, x_B)
    better = one.verdict is comparison.Verdict.BETTER
    counts.covered += (one.difference.low <= gap <= one.difference.high) / 5
    counts.saving_covered += (saving.low <= 2**log_answers <= saving.high) / 5
    counts.saving_known += saving.known / 5
    if gap:
      counts.found += better / case.better
    else:
      wrong = float(one.verdict.conclusive)
      counts.false_verdicts = max(counts.false_verdicts, wrong)
      saves = saving.high < script.BUDGETS[1]
      counts.false_savings += saving.known and saves and better
  return counts.rates()


@pytest.mark.parametrize(
  'how',
  [
    {'slope': 2.0, 'gap': 2.0, 'better': 2},
    {'slope': 2.0, 'gap': 1.0, 'bend': -0.8, 'shared': 0.5},
    {'slope': 2.0, 'ratio': 1.0, 'whole_pool': True},
  ],
)
def test_simulation_counts_what_the_report_says_of_each_study(script, how):
  case = script.Case(seeds=3, **how)
  draws = script.draw(case.seeds, case.whole_pool, 12, np.random.default_rng(0))
  values = script.item_values(case, draws)
  counts = script.Counts()
  script.judge(case, values, counts)
  single = [
    count(
      script,
      case,
      report_of(script, case, {name: all_[n] for name, all_ in values.items()}),
    )
    for n in range(12)
  ]
  assert counts.rates() == pytest.approx(
    {name: np.mean([one[name] for one in single]) for name in single[0]}
  )


def test_lists_of_strategies_differ_as_much_as_is_said(script):
  rng = np.random.default_rng(0)
  parts = script.draw(3, False, 400, rng).worth
  # The worth of 20, 40 and 80 prompts; 40 have a spread of 1.
  assert parts.std((0, 1, 2)) == pytest.approx([2**0.5, 1, 2**-0.5], rel=0.05)
  whole = script.draw(3, True, 2, rng).worth
  assert (whole[:, 1:] == whole[:, 1:, :1]).all()
  assert (whole[:, 0, 1:] != whole[:, 0, :1]).all()
