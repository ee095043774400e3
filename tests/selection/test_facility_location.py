import dataclasses

import hypothesis
from hypothesis import strategies as st
from inner_selection import posed, select, traced
import jax
import numpy as np
import plain_selection as reference
import pytest

from edsft_jax import selection
from edsft_jax.selection import checks, memory
from edsft_jax.selection.greedy import greedy
from edsft_jax.selection.look_ahead import likely_pick
from edsft_jax.selection.options import METHODS, Options
from edsft_jax.selection.partitioned import partitioned

SIMILARITIES = (
  selection.Rbf(width=0.3),
  selection.Rbf(width=30.0),
  selection.Rbf(gamma=0.5),
  selection.Cosine(),
  selection.Cosine(transform='clip'),
)


def clustered(n, d=6, seed=0):
  """Clusters of skewed sizes."""
  rng = np.random.default_rng(seed)
  centre = 2 * rng.normal(size=(9, d))
  share = 1 / np.arange(1, 10)
  label = rng.choice(9, n, p=share / share.sum())
  return (centre[label] + rng.normal(size=(n, d))).astype(np.float32)


UP_TO_24 = st.integers(1, 24)


@st.composite
def problems(draw, sizes=UP_TO_24):
  """Small pools full of equal rows, zero rows and exact ties."""
  n = draw(sizes)
  values = st.lists(st.integers(-1, 2), min_size=3 * n, max_size=3 * n)
  features = np.array(draw(values), np.float32).reshape(n, 3)
  order = draw(st.permutations(range(n)))
  initial = order[: draw(st.integers(0, min(3, n - 1)))]
  candidates = draw(st.sampled_from([None, sorted(order[: n // 2 + 1])]))
  weights = draw(
    st.sampled_from([None, list(range(n)), [1.0] * n, [0.0] * (n - 1) + [2.0]])
  )
  free = set(range(n) if candidates is None else candidates) - set(initial)
  return dict(
    features=features,
    budget=draw(st.integers(0, len(free))),
    initial=initial,
    candidates=candidates,
    weights=weights,
  )


# Sends small pools the way of large ones.
LARGE = Options(kernel_rows=0)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
  problems(), st.sampled_from(SIMILARITIES), st.sampled_from([0, 3000])
)
def test_equals_plain_greedy_on_small_pools(problem, similarity, few):
  result = select(Options(kernel_rows=few), similarity=similarity, **problem)
  s = reference.similarities_in_use(problem.pop('features'), similarity)
  indices, gains, objective = reference.facility_location(s, **problem)
  np.testing.assert_array_equal(result.indices, indices)
  np.testing.assert_array_equal(result.gains, gains)
  assert result.objective == objective
  assert result.indices.dtype == np.int64
  assert len(set(result.indices.tolist())) == problem['budget']


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  problems(),
  st.sampled_from(
    [s for s in SIMILARITIES if getattr(s, 'gamma', None) is None]
  ),
  st.floats(0, 1),
  st.integers(-20, 20),
  st.sampled_from([0, 3000]),
)
def test_cuts_top_ups_and_scales_change_no_pick(
  problem, similarity, share, exponent, few
):
  def picks(**changes):
    arguments = {**problem, **changes}
    result = select(
      Options(kernel_rows=few), similarity=similarity, **arguments
    )
    return result.indices.tolist()

  whole = picks()
  cut = round(share * problem['budget'])
  assert picks(budget=cut) == whole[:cut]
  chosen = [*problem['initial'], *whole[:cut]]
  assert picks(initial=chosen, budget=len(whole) - cut) == whole[cut:]
  scaled = problem['features'] * np.float32(2.0**exponent)
  assert picks(features=scaled) == whole


# Of 16 rows per tile, so that several devices have some.
BLOCKS = (
  dict(batch=8, panel=8, pairs=2, in_flight=1, tile_rows=16),
  dict(batch=24, panel=24, pairs=1, in_flight=3, max_cached=24, tile_rows=16),
)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  problem=problems(st.sampled_from([9, 60])),
  method=st.sampled_from(METHODS),
  memory_limit=st.sampled_from([None, 2000, 10**4]),
  # So few that most programs are compiled once.
  devices_and_blocks=st.sampled_from([(1, 0), (1, 1), (4, 0), (8, 1)]),
  way=st.sampled_from(
    [
      dict(kernel_rows=3000),
      dict(kernel_rows=0),
      dict(kernel_rows=0, small_residuals=0),
      dict(kernel_rows=0, use_residuals=False),
    ]
  ),
)
def test_block_sizes_and_devices_change_no_pick(
  problem, method, memory_limit, devices_and_blocks, way
):
  devices, blocks = devices_and_blocks
  problem |= dict(similarity=selection.Rbf(width=0.3), method=method)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  expected = select(Options(tile_rows=16), **problem)
  options = Options(**BLOCKS[blocks], **way)
  problem |= dict(memory_limit=memory_limit)
  result = select(options, mesh=mesh, **problem)
  if method == 'threshold':
    # How much slack is used depends on all but the devices.
    expected = select(options, **problem)
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)
  assert result.objective == expected.objective


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_similarities_are_those_of_the_documentation(similarity):
  features = clustered(80)
  features[7] = 0
  np.testing.assert_allclose(
    reference.similarities_in_use(features, similarity),
    reference.exact_similarities(features, similarity),
    atol=2e-6,
  )


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_similarities_sum_exactly_in_any_order(similarity):
  s = reference.similarities_in_use(clustered(300), similarity)
  np.testing.assert_array_equal(np.modf(s.astype(np.float64) * 2**24)[0], 0)
  # Nor do differences round, which coverage is compared by.
  exact = s.astype(np.float64) - s[:, :1]
  np.testing.assert_array_equal(s - s[:, :1], exact)


def wrong_at_last(cache, row_C, gain_U, guessed):
  """Guesses right at first, then the last candidate that is left."""
  if guessed:
    return len(row_C) - len(guessed)
  return likely_pick(cache, row_C, gain_U, [])


LISTED = dict(kernel_rows=0, small_residuals=0)
HOST = ('stale gains over residuals', 'fresh gains over residuals')
# Options that send small pools through every way that there is; regimes that
# are then used, and some that are not.
WAYS = {
  'kernel': (Options(), {'all similarities'}, {'look-ahead'}),
  'residuals first': (
    LARGE,
    {'pass for residuals', *HOST},
    {'look-ahead', 'lazy over the cache'},
  ),
  'right guess': (
    Options(**LISTED),
    {'look-ahead', 'refreshed gains', *HOST},
    {'pass for residuals', 'all similarities'},
  ),
  'wrong guess': (
    Options(**LISTED, guess=wrong_at_last),
    {'look-ahead', 'refreshed gains', 'pass for residuals', *HOST},
    {'all similarities'},
  ),
  'residuals later': (
    Options(**LISTED, symmetric=False),
    {'refreshed gains', 'pass for residuals', *HOST},
    {'look-ahead'},
  ),
  'no residuals': (
    # Two batches fit the cache: they push one another out.
    Options(**LISTED, use_residuals=False, max_cached=128),
    {'lazy over the cache'},
    {'pass for residuals', 'all similarities', *HOST},
  ),
}


@pytest.fixture(params=WAYS)
def way(request):
  """Options of one of all ways."""
  return WAYS[request.param][0]


@pytest.mark.parametrize('name', WAYS)
def test_options_lead_to_the_regimes_that_are_meant(name):
  options, entered, avoided = WAYS[name]
  _, trace = traced(
    options, clustered(300), 120, selection.Cosine(), initial=[5, 7]
  )
  assert entered <= set(trace)
  assert not avoided & set(trace)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_every_way_picks_the_same(similarity, way):
  features = clustered(300)
  features[::7] = features[0]
  weights = np.random.default_rng(1).integers(0, 4, size=300)
  result = select(
    way, features, 120, similarity, initial=[5, 7], weights=weights
  )
  s = reference.similarities_in_use(features, similarity)
  indices, gains, objective = reference.facility_location(
    s, 120, [5, 7], weights=weights
  )
  np.testing.assert_array_equal(result.indices, indices)
  np.testing.assert_array_equal(result.gains, gains)
  assert result.objective == objective


def test_a_guess_in_another_order_serves_as_well():
  features = clustered(300)
  expected = selection.facility_location(features, 100)
  guesses = iter(expected.indices[[0, 1, 4, 2, 5, 3, 6, 8]].tolist())
  options = Options(
    **LISTED,
    guess_drop=-1.0,
    max_guesses=7,
    guess=lambda *args: next(guesses),
  )
  result, trace = traced(options, features, 100)
  assert 'pass for residuals' not in trace
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)


@pytest.mark.parametrize('memory_limit', [0, 10**5, 10**6, 10**7])
def test_memory_limit_changes_nothing(memory_limit):
  features = clustered(1200)
  expected = selection.facility_location(features, 150)
  result = selection.facility_location(features, 150, memory_limit=memory_limit)
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)


def test_residuals_that_outgrow_the_limit_are_given_up():
  features = np.concatenate([[[99.0] * 6], clustered(1200)])
  similarity = selection.Rbf(gamma=0.02)
  expected = selection.facility_location(features, 150, similarity)
  # The only candidate of the sample covers nothing but itself.
  options = dataclasses.replace(LARGE, sampled_candidates=1)
  result, trace = traced(
    options, features, 150, similarity, memory_limit=2 * 10**5
  )
  first = trace.index('pass for residuals')
  assert trace[first + 1] == 'residuals do not fit'
  np.testing.assert_array_equal(result.indices, expected.indices)


SLACK = {
  'residuals later': (dict(), 5 * 10**4, False),
  # A sample of the row whose similarities to all others are 0 misleads.
  'residuals made in vain': (
    dict(sparse_one_in=100, min_guess_rows=1, max_guess_rows=1),
    4 * 10**5,
    False,
  ),
  'residuals outgrown at first': (
    dict(sparse_one_in=1, sampled_candidates=1),
    4 * 10**5,
    True,
  ),
  # Several devices would use slack to the end.
  'all similarities': (dict(sparse_one_in=100), 10**7, True),
}


@pytest.mark.parametrize('name', SLACK)
def test_slack_ends_at_one_pick_for_any_number_of_devices(name):
  changes, memory_limit, is_exact = SLACK[name]
  options = Options(small_residuals=0, **changes)
  features = np.random.default_rng(0).normal(size=(250, 12))
  features[0] = 99
  similarity = selection.Rbf(gamma=0.04)
  exact = select(options, features, 20, similarity)
  one, four = (
    select(
      options,
      features,
      20,
      similarity,
      method='threshold',
      epsilon=0.5,
      memory_limit=memory_limit,
      mesh=jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',)),
    )
    for devices in (1, 4)
  )
  np.testing.assert_array_equal(one.indices, four.indices)
  np.testing.assert_array_equal(one.gains, four.gains)
  assert (one.indices.tolist() == exact.indices.tolist()) == is_exact


def test_all_candidates_picked_before_nothing_gains(way):
  features = clustered(40)
  for method in ('greedy', 'threshold', 'partitioned'):
    result = select(way, features, 40, method=method)
    assert sorted(result.indices.tolist()) == list(range(40))


def test_prefixes_are_the_answers_for_smaller_budgets():
  features = clustered(700)
  whole = selection.facility_location(features, 300)
  for budget in (0, 1, 2, 17, 130):
    part = selection.facility_location(features, budget)
    np.testing.assert_array_equal(part.indices, whole.indices[:budget])
    np.testing.assert_array_equal(part.gains, whole.gains[:budget])


def test_topping_up_goes_on_where_greedy_stopped():
  features = clustered(700)
  whole = selection.facility_location(features, 60)
  rest = selection.facility_location(features, 40, initial=whole.indices[:20])
  np.testing.assert_array_equal(rest.indices, whole.indices[20:])
  np.testing.assert_allclose(rest.gains, whole.gains[20:])
  assert rest.objective == whole.objective


@pytest.mark.parametrize('scale', [2.0**-40, 2.0**20])
def test_scaling_by_a_power_of_two_changes_nothing(scale):
  features = clustered(400)
  expected = selection.facility_location(features, 100)
  result = selection.facility_location(scale * features, 100)
  np.testing.assert_array_equal(result.indices, expected.indices)


@pytest.mark.parametrize('offset', [0.0, 30.0, 1000.0])
@pytest.mark.parametrize('width', [0.05, 1.0])
def test_regret_in_a_float64_replay(offset, width):
  features = clustered(600).astype(np.float64) + offset
  similarity = selection.Rbf(width=width)
  result = select(LARGE, features, 150, similarity)
  s = reference.exact_similarities(features, similarity)
  assert reference.worst_regret(s, result.indices) < 1e-5
  covered = s[:, result.indices].max(axis=1).sum()
  assert result.objective == pytest.approx(covered, rel=1e-5)
  assert result.gains.sum() == pytest.approx(result.objective, rel=1e-6)


@pytest.mark.parametrize(
  'width', [0.3, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_regret_on_five_thousand_rows(width):
  features = clustered(5000, d=16).astype(np.float64) + 30
  result = selection.facility_location(
    features, 1000, selection.Rbf(width=width)
  )
  x = features - features.mean(axis=0)
  norm = np.square(x).sum(axis=1)
  distance = norm[:, None] + norm - 2 * x @ x.T
  np.fill_diagonal(distance, 0)
  s = np.exp(-np.maximum(distance, 0) / (width * 2 * norm.mean()))
  assert reference.replay(s, result.indices) < 1e-5
  covered = s[:, result.indices].max(axis=1).sum()
  assert result.objective == pytest.approx(covered, rel=1e-5)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.randoms(use_true_random=False))
def test_permuted_rows_reach_the_same_objective(random):
  features = clustered(60).round()
  order = list(range(60))
  random.shuffle(order)
  similarity = selection.Rbf(width=0.3)
  expected = selection.facility_location(features, 20, similarity)
  result = selection.facility_location(features[order], 20, similarity)
  assert result.objective == pytest.approx(expected.objective, rel=1e-2)
  s = reference.exact_similarities(features[order], similarity)
  assert reference.worst_regret(s, result.indices) < 1e-5


@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('row', [0.0, 1.5])
def test_equal_rows_are_picked_in_order(similarity, row):
  result = selection.facility_location(np.full((9, 4), row), 9, similarity)
  assert result.indices.tolist() == list(range(9))
  assert not result.gains[1:].any()


def test_copies_gain_exactly_nothing():
  features = np.repeat(clustered(40, d=50), 2, axis=0)
  result = selection.facility_location(features, 80)
  assert (result.indices[:40] % 2 == 0).all()
  assert (result.gains[:40] > 0).all()
  assert result.indices[40:].tolist() == list(range(1, 80, 2))
  assert not result.gains[40:].any()


def test_one_row_and_no_row():
  one = selection.facility_location(np.ones((1, 2)), 1)
  assert one.indices.tolist() == [0]
  assert one.objective == one.gains[0] == 1
  none = selection.facility_location(np.ones((0, 2)), 0)
  assert none.indices.tolist() == []
  assert none.objective == none.upper_bound == 0


def test_lowest_index_once_nothing_gains():
  features = np.repeat(np.eye(4), 3, axis=0)
  result = selection.facility_location(
    features, 12, selection.Cosine('clip'), weights=[0] * 3 + [1] * 9
  )
  assert result.indices.tolist() == [3, 6, 9, 0, 1, 2, 4, 5, 7, 8, 10, 11]
  assert result.gains.tolist() == [3.0] * 3 + [0.0] * 9


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(SIMILARITIES))
def test_bounds_hold_and_greedy_keeps_its_promise(seed, similarity):
  features = np.random.default_rng(seed).normal(size=(9, 3))
  initial = [4] if seed % 2 else []
  result = selection.facility_location(features, 5, similarity, initial)
  s = reference.exact_similarities(features, similarity)
  best = reference.best_sets(s, 5, initial)
  before = s[:, initial].max(axis=1, initial=0.0).sum()
  for m, optimum in enumerate(best):
    assert result.upper_bound_at(m) >= optimum - 1e-5
    reached = before + result.gains[:m].sum()
    assert reached - before >= (1 - 1 / np.e) * (optimum - before) - 1e-5
  assert result.upper_bound == result.upper_bound_at(5)
  assert result.upper_bound_at(0) == pytest.approx(before, abs=1e-6)


def test_bounds_are_useful(way):
  result = select(way, clustered(900), 90)
  assert result.objective >= 0.85 * result.upper_bound
  with pytest.raises(ValueError, match='exceeds the budget'):
    result.upper_bound_at(91)


@pytest.mark.parametrize('epsilon', [0.02, 0.3])
def test_threshold_picks_nearly_the_best(epsilon, way):
  features = clustered(400)
  similarity = selection.Rbf(width=0.2)
  result = select(
    way, features, 100, similarity, method='threshold', epsilon=epsilon
  )
  assert len(set(result.indices.tolist())) == 100
  s = reference.exact_similarities(features, similarity)
  covered = np.zeros(400)
  for pick, noted in zip(result.indices, result.gains, strict=True):
    gain = np.maximum(s - covered[:, None], 0).sum(axis=0)
    assert gain[pick] >= (1 - epsilon) * gain.max() - 1e-5
    assert noted == pytest.approx(gain[pick], abs=1e-4)
    covered = np.maximum(covered, s[:, pick])
  assert result.objective == pytest.approx(covered.sum(), rel=1e-5)
  part = select(
    way, features, 30, similarity, method='threshold', epsilon=epsilon
  )
  np.testing.assert_array_equal(part.indices, result.indices[:30])


def test_partitioned_comes_near_greedy():
  features = clustered(600)
  exact = selection.facility_location(features, 40)
  result = selection.facility_location(features, 40, method='partitioned')
  assert len(set(result.indices.tolist())) == 40
  assert 0.95 * exact.objective <= result.objective <= result.upper_bound
  s = reference.exact_similarities(features, selection.Rbf(width=1.0))
  covered = s[:, result.indices].max(axis=1).sum()
  assert result.objective == pytest.approx(covered, rel=1e-5)
  assert result.gains.sum() == pytest.approx(result.objective, rel=1e-6)


@st.composite
def clumps(draw, most):
  """Up to `most` rows in four clumps, in which no two rows are equal."""
  label = draw(st.lists(st.integers(0, 3), min_size=6, max_size=most))
  noise = np.random.default_rng(draw(st.integers(0, 99)))
  centre = 4 * np.eye(4)[label]
  return (centre + noise.normal(size=centre.shape) / 4).astype(np.float32)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  features=clumps(11),
  epsilon=st.sampled_from([0.1, 0.5]),
  initial=st.sampled_from([[], [4]]),
  first=st.sampled_from([1, 2]),
)
def test_threshold_keeps_its_promise(features, epsilon, initial, first):
  similarity = selection.Rbf(gamma=0.2)
  # Without residuals, and after as few exact picks as there can be, all is
  # slack.
  result = select(
    Options(kernel_rows=0, refreshed_picks=first, use_residuals=False),
    *(features, 5, similarity, initial),
    method='threshold',
    epsilon=epsilon,
  )
  s = reference.exact_similarities(features, similarity)
  best = reference.best_sets(s, 5, initial)
  before = best[0]
  for m, optimum in enumerate(best):
    chosen = [*initial, *result.indices[:m]]
    reached = s[:, chosen].max(axis=1, initial=0.0).sum()
    assert result.gains[:m].sum() == pytest.approx(reached - before, abs=1e-5)
    # Every pick gains at least 1 - epsilon of the best: no less than
    # 1 - 1/e - epsilon, which is what is promised.
    share = 1 - np.exp(epsilon - 1)
    assert reached - before >= share * (optimum - before) - 1e-5
    assert result.upper_bound_at(m) >= optimum - 1e-5


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(
  features=clumps(13),
  initial=st.sampled_from([[], [4]]),
  random=st.randoms(use_true_random=False),
)
def test_partitioned_keeps_its_promise(features, initial, random):
  similarity = selection.Rbf(gamma=0.2)
  s = reference.exact_similarities(features, similarity)
  best = reference.best_sets(s, 2, initial)
  reached = []
  # The partition is of positions: permuted rows are parted differently.
  for _ in range(8):
    order = list(range(len(features)))
    random.shuffle(order)
    runs = []

    def noted(problem, plan, runs=runs):
      runs.append((problem.pick_C, greedy(problem, plan)))
      return runs[-1][1]

    problem, plan = posed(
      Options(),
      features[order],
      2,
      similarity,
      [order.index(i) for i in initial],
      method='partitioned',
    )
    result = partitioned(problem, plan, run=noted).selection(problem)
    *parts, (union, _) = runs
    assert len(parts) >= 2
    offered = np.concatenate([picks for picks, _ in parts])
    free = [p for p, row in enumerate(order) if row not in initial]
    np.testing.assert_array_equal(np.sort(offered), free)
    picked = [picks[run.candidates] for picks, run in parts]
    np.testing.assert_array_equal(union, np.sort(np.concatenate(picked)))
    assert result.objective == max(run.objective for _, run in runs)
    chosen = [order[pick] for pick in result.indices]
    covered = s[:, [*initial, *chosen]].max(axis=1).sum()
    assert result.objective == pytest.approx(covered, abs=1e-5)
    assert result.objective <= best[2] + 1e-5
    for m, optimum in enumerate(best):
      assert result.upper_bound_at(m) >= optimum - 1e-5
    reached.append(result.objective - best[0])
    # For certain: some part has its share of the best set.
    share = (1 - 1 / np.e) / len(parts)
    assert reached[-1] >= share * (best[2] - best[0]) - 1e-5
  # In expectation over the partition, of which this is a sample.
  assert np.mean(reached) >= (1 - 1 / np.e) / 2 * (best[2] - best[0]) - 1e-5


@pytest.mark.parametrize('method', ['threshold', 'partitioned'])
def test_other_methods_on_pools_that_run_out(method):
  result = selection.facility_location(
    np.repeat(np.eye(3), 3, axis=0), 8, method=method, initial=[4]
  )
  assert sorted([*result.indices.tolist(), 4]) == list(range(9))
  empty = selection.facility_location(np.ones((0, 2)), 0, method=method)
  assert empty.indices.tolist() == []


def test_a_large_host_does_not_raise_the_memory_limit():
  mesh = checks.mesh(None)
  assert memory.limit(None, mesh, lambda: 6 * 2**30) == 2**30
  assert memory.limit(None, mesh, lambda: 2**40) == 2.5 * 2**30
  assert memory.limit(2**40, mesh) == 2**40
  assert 0 < memory.limit(None, mesh) <= 2.5 * 2**30


def test_what_the_memory_limit_cost_is_returned():
  features = np.random.default_rng(0).normal(size=(1500, 3))
  options = Options(kernel_rows=0)
  expected = select(options, features, 300, memory_limit=2**30)
  assert expected.memory_use.enough
  assert expected.memory_use.limit == 2**30
  little = select(options, features, 300, memory_limit=2**18)
  np.testing.assert_array_equal(little.indices, expected.indices)
  use = little.memory_use
  assert not use.enough
  assert use.picks > expected.memory_use.picks
  assert use.seconds > 0
  # What was wanted is about what is enough.
  more = select(options, features, 300, memory_limit=2 * use.wanted)
  assert more.memory_use.enough
  # All similarities fit.
  assert selection.facility_location(features, 9).memory_use is None
