import hypothesis
from hypothesis import strategies as st
import numpy as np
import plain_selection as reference
import pytest

from edsft_jax import selection


def pool(n, d=3, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d))


def last_gain(features, budget, width):
  """By trying every candidate for every pick."""
  s = reference.similarities_in_use(features, selection.Rbf(width=width))
  return reference.facility_location(s, budget)[1][-1]


def test_flags_widths():
  widths = [1e-6, 0.3, 0.03, 1000.0]
  curves, degenerate, _ = selection.gains_curves(pool(400), 80, widths)
  assert curves.shape == (4, 80)
  assert (np.diff(curves, axis=1) <= 0).all()
  assert degenerate == ('flat', '', '', 'collapsed')
  for width, curve in zip(widths, curves, strict=True):
    one = selection.facility_location(pool(400), 80, selection.Rbf(width=width))
    np.testing.assert_array_equal(curve, one.gains)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  st.lists(st.integers(0, 6), min_size=4, max_size=20),
  st.lists(
    st.sampled_from([1e-4, 0.01, 0.1, 0.3, 1.0, 9.0]),
    min_size=1,
    max_size=4,
    unique=True,
  ),
  st.floats(0, 1),
)
def test_curves_and_flags_follow_their_definitions(row, widths, share):
  features = pool(7, 2)[row]
  budget = 1 + round(share * (len(row) - 1))
  curves, degenerate, _ = selection.gains_curves(features, budget, widths)
  for width, curve, flaw in zip(widths, curves, degenerate, strict=True):
    s = reference.similarities_in_use(features, selection.Rbf(width=width))
    _, gains, _ = reference.facility_location(s, budget)
    np.testing.assert_array_equal(curve, gains)
    later = gains[budget // 2 :]
    if later[-1] < 0.01:
      assert flaw == 'collapsed'
    elif all(0.9 <= gain <= 1.1 for gain in later):
      assert flaw == 'flat'
    else:
      assert flaw == ''


@pytest.mark.parametrize('budget', [4, 12, 24])
@pytest.mark.parametrize('clusters', [0, 5])
def test_the_width_is_the_largest_at_which_the_last_pick_gains_one(
  budget, clusters
):
  features = pool(120)
  if clusters:
    centre = 3 * pool(clusters, seed=1)
    features = features * 0.3 + centre[np.arange(120) % clusters]
  found = selection.kernel_width(features, budget)
  assert found.pick == budget
  assert last_gain(features, budget, found.width) == pytest.approx(1, abs=0.03)
  for larger in np.geomspace(1.3, 30, 20) * found.width:
    assert last_gain(features, budget, larger) < 1
  # Its own curve is among them.
  assert list(found.widths) == sorted(set(found.widths))
  for width, curve in zip(found.widths, found.curves, strict=True):
    assert curve[-1] == pytest.approx(last_gain(features, budget, width))
  assert found.width in found.widths


@pytest.mark.parametrize(
  'widths', [[1e-4], [30.0], [0.01, 3.0], [0.3, 0.03], [1e-4, 90.0]]
)
def test_the_grid_grows_until_the_answer_is_inside(widths):
  expected = selection.kernel_width(pool(200), 20)
  found = selection.kernel_width(pool(200), 20, widths)
  assert found.width == pytest.approx(expected.width, rel=0.05)
  assert min(found.widths) < found.width < max(found.widths)
  suggested = selection.gains_curves(pool(200), 20, widths).suggested
  assert suggested == found.width
  assert len(found.widths) <= 13


def test_near_the_size_of_the_pool_an_earlier_pick_decides():
  features = np.repeat(pool(40), 2, axis=0)
  # After 40 picks all is covered.
  found = selection.kernel_width(features, 70)
  assert found.pick == 35
  assert found.width == selection.kernel_width(features, 35).width


def test_identical_rows_have_any_width():
  found = selection.kernel_width(np.ones((9, 2)), 8)
  assert (found.width, found.pick) == (1.0, 0)
  assert set(found.degenerate) == {'collapsed'}
  assert selection.gains_curves(np.ones((9, 2)), 8, [2.0]).suggested == 1.0


def test_a_single_pick_ends_the_search_for_a_width():
  found = selection.kernel_width(pool(50), 1)
  assert (found.width, found.pick) == (100.0, 1)
  assert selection.kernel_width(pool(50), 1, [200.0]).width == 200.0


@pytest.mark.parametrize(
  ('budget', 'widths', 'message'),
  [
    (0, [1.0], 'budget 0'),
    (4, [], 'widths is empty'),
    (4, [1.0, 0.0], 'width 0.0'),
    (99, [1.0], 'budget 99'),
  ],
)
def test_refuses(budget, widths, message):
  with pytest.raises(ValueError, match=message):
    selection.gains_curves(np.ones((5, 2)), budget, widths)
  with pytest.raises(ValueError, match=message):
    selection.kernel_width(np.ones((5, 2)), budget, widths)
