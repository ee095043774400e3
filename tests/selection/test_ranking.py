import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from edsft_jax import selection


def test_top_takes_the_lowest_index_of_equals():
  scores = [1.0, 3.0, 2.0, 3.0, -np.inf, 1.0]
  result = selection.top(scores, 4)
  assert result.indices.tolist() == [1, 3, 2, 0]
  assert result.gains.tolist() == [3, 3, 2, 1]
  assert result.objective == 9
  result = selection.top(scores, 3, largest=False, initial=[0])
  assert result.indices.tolist() == [4, 5, 2]
  assert result.indices.dtype == np.int64


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0]), min_size=1, max_size=8),
  st.booleans(),
  st.data(),
)
def test_no_set_has_better_scores(scores, largest, data):
  order = data.draw(st.permutations(range(len(scores))))
  initial = order[: data.draw(st.integers(0, len(scores)))]
  free = sorted(order[len(initial) :])
  result = selection.top(scores, len(free), largest, initial)
  picks = result.indices.tolist()
  assert sorted(picks) == free
  have = sum(scores[i] for i in initial)
  assert result.objective == have + result.gains.sum()
  best = max if largest else min
  for m in range(len(free) + 1):
    sums = {
      chosen: sum(scores[i] for i in chosen)
      for chosen in itertools.combinations(free, m)
    }
    value = best(sums.values())
    assert result.gains[:m].sum() == value
    # Of the best sets the one whose last members come first in the pool.
    assert tuple(sorted(picks[:m])) == min(
      chosen for chosen, total in sums.items() if total == value
    )


def test_random_takes_every_order_alike():
  counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
  for seed in range(1200):
    result = selection.random(5, 2, seed, initial=[4])
    counts[tuple(result.indices.tolist())] += 1
  # 100 each, give or take four standard deviations.
  assert max(abs(count - 100) for count in counts.values()) < 40


def test_random_is_one_order_a_seed():
  whole = selection.random(50, 50, seed=3).indices
  assert sorted(whole.tolist()) == list(range(50))
  part = selection.random(50, 20, seed=3)
  np.testing.assert_array_equal(part.indices, whole[:20])
  assert np.isnan(part.gains).all()
  assert np.isnan(part.objective)
  assert part.upper_bound is None
  rest = selection.random(50, 30, seed=3, initial=whole[:20])
  np.testing.assert_array_equal(rest.indices, whole[20:])
  assert whole.tolist() != selection.random(50, 50, seed=4).indices.tolist()


@pytest.mark.parametrize(
  ('scores', 'kwargs', 'message'),
  [
    ([1, np.nan], dict(budget=1), 'scores has NaN at 1'),
    ([[1, 2]], dict(budget=1), 'scores have shape'),
    (['a', 'b'], dict(budget=1), 'scores has dtype'),
    ([1, 2], dict(budget=3), 'budget 3 exceeds'),
    ([1, 2], dict(budget=1.5), 'budget 1.5 is not'),
    ([1, 2], dict(budget=2, initial=[0]), 'choose from: 1'),
  ],
)
def test_top_refuses(scores, kwargs, message):
  with pytest.raises(ValueError, match=message):
    selection.top(scores, **kwargs)


def test_random_refuses():
  with pytest.raises(ValueError, match='budget 4 exceeds'):
    selection.random(3, 4, seed=0)
  with pytest.raises(ValueError, match='seed -1'):
    selection.random(3, 1, seed=-1)
