import hypothesis
from hypothesis import strategies as st
import numpy as np
import plain_selection as reference
import pytest

from edsft_jax import selection


def test_flags_widths_and_suggests_one_between():
  features = np.random.default_rng(0).normal(size=(400, 3))
  widths = [1e-6, 0.03, 0.3, 1000.0]
  curves, degenerate, suggested = selection.gains_curves(features, 80, widths)
  assert curves.shape == (4, 80)
  assert (np.diff(curves, axis=1) <= 0).all()
  assert degenerate == ('flat', '', '', 'collapsed')
  assert suggested in (0.03, 0.3)
  for width, curve in zip(widths, curves, strict=True):
    one = selection.facility_location(features, 80, selection.Rbf(width=width))
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
def test_follows_the_rule(row, widths, share):
  features = np.random.default_rng(0).normal(size=(7, 2))[row]
  budget = 1 + round(share * (len(row) - 1))
  curves, degenerate, suggested = selection.gains_curves(
    features, budget, widths
  )
  flags, decays = {}, {}
  for width, curve, flaw in zip(widths, curves, degenerate, strict=True):
    s = reference.similarities_in_use(features, selection.Rbf(width=width))
    _, gains, _ = reference.facility_location(s, budget)
    np.testing.assert_array_equal(curve, gains)
    later = gains[budget // 2 :]
    if later[-1] < 0.01:
      flags[width] = 'collapsed'
    elif all(0.9 <= gain <= 1.1 for gain in later):
      flags[width] = 'flat'
    else:
      flags[width] = ''
      decays[width] = np.log(later[0] / later[-1])
    assert flaw == flags[width]
  flat = [width for width, flaw in flags.items() if flaw == 'flat']
  if decays:
    most = max(decays.values())
    best = min(width for width, decay in decays.items() if decay == most)
  else:
    best = max(flat) if flat else min(widths)
  assert suggested == best


def test_suggests_the_one_that_decays_most_to_the_end():
  features = np.random.default_rng(0).normal(size=(400, 3))
  widths = [0.3, 0.03]
  curves, degenerate, suggested = selection.gains_curves(features, 80, widths)
  assert degenerate == ('', '')
  decay = curves[:, 40] / curves[:, -1]
  assert suggested == widths[int(np.argmax(decay))]


def test_suggests_even_when_all_are_degenerate():
  features = np.random.default_rng(0).normal(size=(60, 3))
  assert selection.gains_curves(features, 9, [1e-6, 1e-5])[2] == 1e-5
  assert selection.gains_curves(features, 9, [1e5, 1e4])[2] == 1e4
  same = selection.gains_curves(np.ones((5, 2)), 5, [1.0, 2.0])
  assert same.degenerate == ('collapsed', 'collapsed')


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
