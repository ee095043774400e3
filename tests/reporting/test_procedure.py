"""The report's procedure against its definitions, on a real study's items.

demo_items.npz has the items of all 40 cells of the quickstart, as it was when
every seed had the whole pool and budgets were 100, 200 and 400.
"""

import dataclasses
import math
import pathlib

import numpy as np
import plain_procedure as plain
import pytest
from scipy import stats

from edsft_jax import study
from edsft_jax.reporting import (
  comparison,
  procedure,
  results,
  savings,
  statistics,
  wording,
)

ITEMS = pathlib.Path(__file__).parent / 'fixtures' / 'demo_items.npz'
STRATEGIES = [
  'random',
  'min_margin',
  'facility_location',
  'weighted_task_diversity',
]
BUDGETS = [100, 200, 400]
SEEDS = [0, 1, 2]
FIXED = frozenset({'min_margin', 'facility_location'})
LEVEL = 0.95


@pytest.fixture(scope='module')
def demo():
  """Cell name -> metric -> values of the items; and the items' weights."""
  with np.load(ITEMS) as table:
    arrays = {name: table[name] for name in table.files}
  cells = {
    name: {
      metric: arrays[metric][i].astype(np.float64)
      for metric in ('loss', 'exact_match', 'rouge_l')
    }
    for i, name in enumerate(arrays['cells'])
  }
  return cells, arrays['num_reference_tokens'], arrays['tasks'].tolist()


def found(demo, fixed=FIXED, clustered=False, drop=(), budgets=BUDGETS):
  """The results of the demo, without some of its cells."""
  cells, tokens, tasks = demo
  count = len(tokens)
  clusters = np.arange(count)
  if clustered:
    clusters = np.unique(tasks, return_inverse=True)[1]
  items = {
    name: statistics.Items(weights / weights.sum(), clusters)
    for name, weights in (
      ('loss', tokens.astype(np.float64)),
      ('exact_match', np.ones(count)),
      ('rouge_l', np.ones(count)),
    )
  }
  evaluations = {}
  for name, values in cells.items():
    if name in drop:
      continue
    strategy, budget, seed = name.rsplit('-', 2)
    cell = study.Cell(strategy, int(budget[1:]), int(seed[4:]))
    evaluations[cell] = results.Evaluation(
      metrics={m: float(v @ items[m].weights) for m, v in values.items()},
      items=values,
    )
  return results.Results(
    metrics={
      name: results.Metric('heldout', name, name != 'loss', name)
      for name in items
    },
    evaluations=evaluations,
    absent=[],
    strategies=STRATEGIES,
    budgets=list(budgets),
    seeds=dict.fromkeys(STRATEGIES, SEEDS),
    pool_size=2169,
    items=items,
    fixed=fixed,
  )


def tables(demo, metric, budgets, drop=()):
  """strategy -> per seed, the items' values averaged over budgets."""
  cells, _, _ = demo
  made = {}
  for strategy in STRATEGIES:
    for seed in SEEDS:
      names = [f'{strategy}-k{budget}-seed{seed}' for budget in budgets]
      if not any(name in drop for name in names):
        rows = [cells[name][metric] for name in names]
        average = [sum(v) / len(v) for v in zip(*rows, strict=True)]
        made.setdefault(strategy, []).append(average)
  return made


def weights_and_clusters(demo, metric, clustered):
  _, tokens, tasks = demo
  weights = tokens.tolist() if metric == 'loss' else [1] * len(tokens)
  return weights, tasks if clustered else list(range(len(tokens)))


def brute_force(demo, metric, fixed, clustered=False, drop=(), budgets=BUDGETS):
  """place -> test, with place (strategy, budget), budget 0 for the curve."""
  weights, clusters = weights_and_clusters(demo, metric, clustered)
  made = {}
  for level in (budgets, *([b] for b in budgets)):
    table = tables(demo, metric, level, drop)
    rows = {s: [plain.mean(r, weights) for r in t] for s, t in table.items()}
    for strategy in STRATEGIES[1:]:
      key = strategy, level[0] if len(level) == 1 else 0
      made[key] = (
        rows,
        plain.test(rows, table, strategy, fixed, weights, clusters, LEVEL),
      )
  return made


CASES = [
  ('rouge_l', FIXED, False, (), BUDGETS),
  ('exact_match', frozenset(), False, (), BUDGETS),
  ('loss', FIXED, False, (), BUDGETS),
  # Two budgets are always on a line.
  ('loss', frozenset(), False, (), (100, 200)),
  ('rouge_l', FIXED, False, (), (100, 200)),
  ('loss', frozenset(), True, (), BUDGETS),
  ('rouge_l', frozenset(), False, ('min_margin-k200-seed1',), BUDGETS),
  (
    'loss',
    FIXED,
    True,
    ('random-k400-seed0', 'min_margin-k100-seed2'),
    BUDGETS,
  ),
]


@pytest.mark.parametrize(
  ('metric', 'fixed', 'clustered', 'drop', 'budgets'), CASES
)
def test_every_verdict_and_interval_is_that_of_the_definitions(
  demo, metric, fixed, clustered, drop, budgets
):
  compared = comparison.compare(
    found(demo, fixed, clustered, drop, budgets), metric, LEVEL
  )
  expected = brute_force(demo, metric, fixed, clustered, drop, budgets)
  higher = metric != 'loss'
  families = [
    {(s, 0): one for s, one in compared.curves.items()},
    dict(compared.budgets),
  ]
  assert [len(family) for family in families] == [3, 3 * len(budgets)]
  for family in families:
    corrected = plain.holm({key: expected[key][1]['p'] for key in family})
    for key, one in family.items():
      rows, wanted = expected[key]
      got = one.difference
      assert got.mean == pytest.approx(wanted['difference'], abs=1e-12)
      assert got.error.value == pytest.approx(wanted['error'], rel=1e-9)
      assert got.error.freedom == pytest.approx(wanted['freedom'], rel=1e-9)
      assert got.low == pytest.approx(wanted['low'], rel=1e-9)
      assert got.high == pytest.approx(wanted['high'], rel=1e-9)
      assert one.p_value == pytest.approx(corrected[key], rel=1e-9)
      verdict = 'not distinguishable from random'
      if corrected[key] < 1 - LEVEL:
        better = (wanted['difference'] > 0) == higher
        verdict = 'better than random' if better else 'worse than random'
      assert one.verdict.value == verdict
      sizes = {
        len(rows[key[0]]) if seeds is None else seeds: plain.detectable(
          rows, wanted, key[0], fixed, seeds, 1 - LEVEL, len(family)
        )
        for seeds in (None, 5, 10)
      }
      assert one.detectable == pytest.approx(sizes, rel=1e-9)


@pytest.mark.parametrize(
  ('metric', 'fixed', 'clustered', 'drop', 'budgets'), CASES
)
def test_every_saving_is_that_of_the_definitions(
  demo, metric, fixed, clustered, drop, budgets
):
  compared = comparison.compare(
    found(demo, fixed, clustered, drop, budgets), metric, LEVEL
  )
  weights, _ = weights_and_clusters(demo, metric, clustered)
  cells, _, _ = demo
  curves = {}
  for strategy in STRATEGIES:
    for seed in SEEDS:
      names = [f'{strategy}-k{budget}-seed{seed}' for budget in budgets]
      if not set(names) & set(drop):
        row = [plain.mean(cells[name][metric], weights) for name in names]
        curves.setdefault(strategy, []).append(row)
  beta, error, freedom, bend_p = plain.slope(curves, budgets)
  assert compared.curvature_p == (
    None if bend_p is None else pytest.approx(bend_p, rel=1e-6)
  )
  expected = brute_force(demo, metric, fixed, clustered, drop, budgets)
  sign = -1 if metric == 'loss' else 1
  for strategy, saving in compared.savings.items():
    _, whole = expected[strategy, 0]
    rows, middle = expected[strategy, 200]
    if bend_p is not None and bend_p < 0.05:
      assert saving.method == savings.ISOTONIC
      means = [
        sign * sum(v) / len(v) for v in zip(*curves[strategy], strict=True)
      ]
      goal = sign * sum(rows['random']) / len(rows['random'])
      half = stats.t(middle['freedom']).ppf(0.975) * middle['error']
      wanted = plain.isotonic_answers(means, goal, half, budgets)
    else:
      assert saving.method == savings.PARALLEL
      gamma = whole['difference']
      ends = plain.fieller(
        gamma, whole['error'], whole['freedom'], beta, error, freedom, LEVEL
      )
      assert sign * beta > 0
      if ends is None:
        assert not saving.known
        continue
      wanted = [200 * 2**-r for r in (gamma / beta, *ends[::-1])]
      wanted = [
        0.0 if w < 100 else math.inf if w > budgets[-1] else w for w in wanted
      ]
    got = saving.answers, saving.low, saving.high
    assert got == pytest.approx(tuple(wanted), rel=1e-4)
    assert saving.budget == 200


def test_both_ways_to_savings_are_among_the_cases(demo):
  methods = {
    saving.method
    for metric, *how in CASES
    for saving in comparison.compare(
      found(demo, *how), metric, LEVEL
    ).savings.values()
  }
  assert methods == {savings.PARALLEL, savings.ISOTONIC}


def test_the_demo_shows_harm(demo):
  """Welch by budget with Holm over all nine said: not distinguishable."""
  compared = comparison.compare(found(demo), 'rouge_l', LEVEL)
  verdicts = {name: one.verdict.name for name, one in compared.curves.items()}
  assert verdicts == {
    'min_margin': 'WORSE',
    'facility_location': 'SAME',
    'weighted_task_diversity': 'WORSE',
  }


def test_an_interval_of_a_mean_is_pooled(demo):
  compared = comparison.compare(found(demo, frozenset()), 'rouge_l', LEVEL)
  rows, _ = brute_force(demo, 'rouge_l', frozenset())['min_margin', 200]
  variance, freedom = plain.pooled(rows.values())
  half = stats.t(freedom).ppf(0.975) * math.sqrt(variance / 3)
  for strategy in STRATEGIES:
    interval = compared.interval(strategy, 200, LEVEL)
    assert interval.mean == pytest.approx(sum(rows[strategy]) / 3)
    assert interval.half_width == pytest.approx(half)


def test_a_list_that_never_changes_gets_the_variance_of_picks():
  drawn, single = statistics.Variance(4.0, 4), statistics.Variance(1.0, 6)
  noise = statistics.Noise(drawn, 2, single, 3)
  error = noise.error(3, 3, 0.5, is_fixed=True)
  assert error.value**2 == pytest.approx(4 / 3 + 1 / 3 + 4 + 0.5)
  assert error.freedom == 4
  # More seeds repeat the list.
  many = noise.with_seeds(1000).error(1000, 1000, 0.5, is_fixed=True)
  assert many.value**2 == pytest.approx(4.5, abs=0.01)
  error = noise.error(3, 3, 0.5, is_fixed=False)
  assert error.value**2 == pytest.approx(8 / 3 + 0.5)
  assert error.freedom == 4


# The formulas.


def test_item_variance_of_equal_items_is_as_written():
  """max(0, var_i(d) - e_s^2 / R_s - e_0^2 / R_0) / n."""
  rng = np.random.default_rng(0)
  y_s, y_0 = rng.normal(size=(3, 40)), rng.normal(size=(5, 40))
  y_s += np.linspace(0, 6, 40)
  noise = 0.0
  for y in (y_s, y_0):
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    noise += (rest**2).sum() / ((len(y) - 1) * 39) / len(y)
  d = y_s.mean(0) - y_0.mean(0)
  got = statistics.item_variance(y_s, y_0, statistics.Items.independent(40))
  assert got == pytest.approx((d.var(ddof=1) - noise) / 40)
  nothing = statistics.item_variance(y_0, y_0, statistics.Items.independent(40))
  assert nothing == 0


def test_many_studies_at_once_are_as_one_by_one():
  rng = np.random.default_rng(1)
  values = {s: rng.normal(size=(4, 3, 20)) for s in ('random', 'a', 'b')}
  items = statistics.Items(rng.dirichlet(np.ones(20)), np.arange(20) % 6)
  for fixed in (frozenset(), frozenset({'a'})):
    together = procedure.compare(values, items, fixed, LEVEL)
    for n in range(4):
      alone = procedure.compare(
        {s: v[n] for s, v in values.items()}, items, fixed, LEVEL
      )
      for s in ('a', 'b'):
        one, all_ = alone.tests[s].difference, together.tests[s].difference
        for field in ('mean', 'low', 'high', 'p_value'):
          assert getattr(all_, field)[n] == pytest.approx(getattr(one, field))


def test_holm_against_its_definition():
  p_values = np.random.default_rng(2).uniform(size=(50, 7)) ** 3
  for row, got in zip(p_values, statistics.holm(p_values), strict=True):
    wanted = plain.holm(dict(enumerate(row)))
    assert got.tolist() == pytest.approx([wanted[i] for i in range(7)])


@pytest.mark.parametrize('means', [(1.0, 3.0, 2.0, 5.0), (4.0, 1.0, 2.0, 2.0)])
@pytest.mark.parametrize('goal', [0.5, 1.0, 2.2, 2.5, 4.0, 6.0])
def test_isotonic_answers_against_a_grid(means, goal):
  budgets = [10, 20, 40, 80]
  # t(1) has the quantile 12.7 at .975.
  error = statistics.Error(0.5 / stats.t(1).ppf(0.975), 1)
  got = savings.by_isotonic_curves(means, goal, error, budgets, True, LEVEL)
  wanted = plain.isotonic_answers(means, goal, 0.5, budgets)
  assert (got.answers, got.low, got.high) == pytest.approx(wanted, rel=1e-3)
  lower = savings.by_isotonic_curves(
    [-m for m in means], -goal, error, budgets, False, LEVEL
  )
  assert lower == got


def test_a_curve_that_does_not_rise_cannot_tell_savings():
  slope = savings.Slope(-0.5, statistics.Error(0.01, 8), 0.5)
  error = statistics.Error(0.1, 8)
  one = savings.by_parallel_curves(0.2, error, slope, BUDGETS, True, LEVEL)
  assert not one.known
  one = savings.by_parallel_curves(-0.2, error, slope, BUDGETS, False, LEVEL)
  assert one.known
  assert one.answers < 200
  unsure = savings.Slope(-0.5, statistics.Error(0.4, 8), 0.5)
  one = savings.by_parallel_curves(-0.2, error, unsure, BUDGETS, False, LEVEL)
  assert wording.answers_interval(one, BUDGETS) == 'undetermined'


def _win_rates(rng, seeds, gap, num_studies):
  """Studies of random and two strategies, compared for the same seed.

  The first strategy is better by `gap`, the second as good as random.
  """
  quality = rng.normal(scale=2.0, size=(3, num_studies, seeds, 1))
  quality[1] += gap
  items = rng.normal(scale=10.0, size=(2, num_studies, seeds, 50))
  rate = 50 + quality[1:] - quality[0] + items
  return {'random': np.full_like(rate[0], 50.0), 'a': rate[0], 'b': rate[1]}


@pytest.mark.parametrize('fixed', [frozenset(), frozenset({'a', 'b'})])
def test_rates_against_random_are_tested_by_their_own_variance(fixed):
  """Random's own rate never varies, which says nothing about the others."""
  rng = np.random.default_rng(0)
  items = statistics.Items.independent(50)

  def found(gap, against_random=True):
    values = _win_rates(rng, 3, gap, 2000)
    level = procedure.compare(values, items, fixed, 0.95, against_random)
    p_values = [level.tests[name].difference.p_value for name in ('a', 'b')]
    return [float(np.mean(p < 0.05)) for p in p_values]

  assert max(found(0.0)) < 0.06
  if not fixed:
    better, same = found(8.0)
    assert better > 0.7
    assert same < 0.06


def test_a_rate_against_random_has_no_savings_and_random_no_interval(demo):
  relative = found(demo)
  metrics = {
    name: dataclasses.replace(metric, against_random=True)
    for name, metric in relative.metrics.items()
  }
  evaluations = {
    cell: dataclasses.replace(
      one,
      items={
        name: values * 0 + 50 if cell.strategy == 'random' else values
        for name, values in one.items.items()
      },
    )
    for cell, one in relative.evaluations.items()
  }
  relative = dataclasses.replace(
    relative, metrics=metrics, evaluations=evaluations
  )
  compared = comparison.compare(relative, 'rouge_l', LEVEL)
  assert not compared.savings
  assert set(compared.curves) == set(STRATEGIES) - {'random'}
  assert all(one.detectable for one in compared.curves.values())
  interval = compared.interval('random', 200, LEVEL)
  assert interval.low == interval.high == pytest.approx(50)
