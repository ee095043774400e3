import numpy as np
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
