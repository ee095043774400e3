"""Progress never falls, never stalls, and ends with the budget."""

import collections

from inner_selection import select
import jax
import numpy as np
import pytest

from edsft_jax import selection
from edsft_jax.selection.distances import Sizes
from edsft_jax.selection.k_center import farthest_first
from edsft_jax.selection.log_determinant import Rows, greedy_map
from edsft_jax.selection.options import METHODS, Options
from edsft_jax.selection.progress import Progress

FEATURES = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
# 19 tiles, 190 pairs of tiles and 19 panels.
SMALL = dict(kernel_rows=0, tile_rows=16, pairs=1, batch=16, panel=16)
WAYS = {
  'all similarities': dict(),
  'pass for residuals': SMALL,
  'look-ahead': dict(SMALL, small_residuals=0),
  'panels': dict(SMALL, symmetric=False),
  'lazy over the cache': dict(SMALL, use_residuals=False),
}


class Calls(list):
  """Notes what it is called with."""

  def __call__(self, picks, budget):
    self.append((picks, budget))

  def check(self, budget):
    """Holds for every function and every way."""
    picks = [p for p, _ in self]
    assert {b for _, b in self} == {budget}
    assert picks == sorted(picks)
    assert picks[0] == 0
    assert self[-1] == (budget, budget)

  def before_any_pick(self):
    return sum(picks == 0 for picks, _ in self)


def assert_equal(result, expected):
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)
  assert result.objective == expected.objective


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('way', WAYS)
def test_facility_location_tells_of_every_pick(way, method):
  calls = Calls()
  options = Options(**WAYS[way])
  expected = select(options, FEATURES, 50, method=method)
  result = select(options, FEATURES, 50, method=method, progress=calls)
  assert_equal(result, expected)
  calls.check(50)
  assert {picks for picks, _ in calls} == set(range(51))


@pytest.mark.parametrize(
  ('way', 'least'),
  [
    ('pass for residuals', 190),
    ('look-ahead', 190),
    ('panels', 19),
    ('lazy over the cache', 190),
  ],
)
def test_facility_location_tells_of_work_without_picks(way, least):
  calls = Calls()
  select(Options(**WAYS[way]), FEATURES, 50, progress=calls)
  assert calls.before_any_pick() >= least


def test_lazy_picks_tell_of_every_batch():
  calls = Calls()
  options = Options(**WAYS['lazy over the cache'])
  select(options, FEATURES, 50, progress=calls)
  # Every pick is told of twice: when it covers, and when it counts.
  after = collections.Counter(picks for picks, _ in calls)
  assert max(after[picks] for picks in range(2, 50)) >= 2 + 8


def test_only_picks_of_the_last_partitioned_run_count():
  calls = Calls()
  selection.facility_location(
    FEATURES, 50, method='partitioned', progress=calls
  )
  # At least two runs of 50 picks come before it.
  assert calls.before_any_pick() >= 100


@pytest.mark.parametrize('devices', [1, 8])
def test_facility_location_on_devices(devices):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  calls = Calls()
  selection.facility_location(FEATURES, 50, mesh=mesh, progress=calls)
  calls.check(50)


def test_nothing_to_gain_and_nothing_to_pick():
  for features, budget in ((np.ones((9, 2)), 9), (np.ones((0, 2)), 0)):
    for function in (
      selection.facility_location,
      selection.k_center,
      selection.log_determinant,
    ):
      calls = Calls()
      function(features, budget, progress=calls)
      calls.check(budget)


@pytest.mark.parametrize(('farthest', 'exact'), [(8, 1), (64, 4)])
def test_k_center(farthest, exact):
  calls = Calls()
  sizes = Sizes(farthest, batch=4, exact=16, tile_rows=16)
  arguments = FEATURES, 50, range(240), 0, None
  expected = farthest_first(*arguments, None, sizes)
  assert_equal(farthest_first(*arguments, calls, sizes), expected)
  calls.check(50)
  # Told of: 19 parts, twice, when distances are prepared; blocks of initial
  # positions; parts of 16 looked at exactly, of the 60 rows that are left or of
  # 8; the block of the first picks. Besides: the start, equal rows, what is put
  # on devices, and the bounds, which are lowered once.
  blocks = -(-240 // farthest) + 1
  assert calls.before_any_pick() == 2 * 19 + blocks + exact + 4
  assert len({picks for picks, _ in calls}) >= 50 // farthest


def test_log_determinant():
  expected = selection.log_determinant(FEATURES, 50, initial=[3])
  calls = Calls()
  result = selection.log_determinant(FEATURES, 50, initial=[3], progress=calls)
  assert_equal(result, expected)
  calls.check(50)


@pytest.mark.parametrize('devices', [1, 8])
def test_log_determinant_in_steps(devices):
  initial = np.arange(20)
  expected = selection.log_determinant(FEATURES, 50, initial=initial)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  calls = Calls()
  report = Progress(calls, 50)
  rows = Rows.of(selection.Rbf(width=1.0), FEATURES, mesh, report)
  # Seven steps of 70 float64 and 4 float32 for each of 300 rows.
  seven = 7 * 300 * (70 * 8 + 4 * 4)
  picks, gains = greedy_map(rows, initial, 50, 1e-6, report, seven)
  np.testing.assert_array_equal(picks[20:], expected.indices)
  np.testing.assert_array_equal(gains[20:], expected.gains)
  # Initial positions are not picks.
  picks = [picks for picks, _ in calls]
  assert picks == sorted(picks)
  assert set(picks) == {0, 1, 8, 15, 22, 29, 36, 43, 50}


def test_gains_curves_count_the_picks_of_all_widths():
  calls = Calls()
  selection.gains_curves(FEATURES, 20, [0.1, 1.0, 3.0], progress=calls)
  calls.check(60)
  assert {picks for picks, _ in calls} == set(range(61))


class Enough(Exception):
  """What a caller raises who does not want to wait."""


@pytest.mark.parametrize(
  'function',
  [
    selection.facility_location,
    selection.k_center,
    selection.log_determinant,
  ],
)
def test_what_the_callback_raises_ends_the_selection(function):
  def stop(picks, budget):
    raise Enough

  with pytest.raises(Enough):
    function(FEATURES, 50, progress=stop)
