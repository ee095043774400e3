"""Coverage of the pool by picks, against all pairs of distances."""

import numpy as np
import pytest

from edsft_jax.reporting import coverage

BUDGETS = (3, 5, 12)
SIZE = 60


def _features():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(SIZE, 7)) + 100
  # Some prompts are almost the same as others, the first ones most of all.
  distance_20x1 = 1e-3 * np.arange(1, 21)[:, None]
  rows[40:] = rows[:20] + distance_20x1 * rng.normal(size=(20, 7))
  return rows.astype(np.float32)


def _brute_force(order, part):
  rows = _features().astype(float)
  pairs = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
  others = pairs + np.diag(np.full(SIZE, np.inf))
  near = np.quantile(others.min(1), 0.05)
  part = np.arange(SIZE) if part is None else part
  nearest = [pairs[part][:, order[:b]].min(1) for b in BUDGETS]
  is_near = [
    any(pairs[i, j] <= near for j in order[:place])
    for place, i in enumerate(order)
  ]
  return coverage.Coverage(
    [n.max() for n in nearest],
    [n.mean() for n in nearest],
    [np.mean(is_near[:b]) for b in BUDGETS],
  )


@pytest.mark.parametrize('part', [None, np.arange(0, SIZE, 2)])
def test_coverage_is_that_of_all_pairs(part):
  rng = np.random.default_rng(1)
  places = np.arange(SIZE) if part is None else part
  orders = [rng.permutation(places)[:12] for _ in range(3)]
  # Near duplicates follow each other.
  twins = np.array([0, 40, 1, 41, 2, 42, *range(20, 26)])
  lists = {
    'one': [coverage.Picks(orders[0], part), coverage.Picks(orders[1], part)],
    'same': [coverage.Picks(orders[2], part)] * 2,
    'twins': [coverage.Picks(twins, part)],
  }
  found = coverage.measure(_features(), lists, BUDGETS)
  assert {*found} == {*lists}
  for name, some in lists.items():
    wanted = [_brute_force(one.order, one.part) for one in some]
    for field in ('radius', 'mean', 'near_duplicates'):
      expected = np.mean([getattr(one, field) for one in wanted], axis=0)
      np.testing.assert_allclose(
        getattr(found[name], field), expected, rtol=1e-4, atol=1e-6
      )
  assert found['twins'].near_duplicates[0] > 0
