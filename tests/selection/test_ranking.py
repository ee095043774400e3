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


def _plain_matched(values, picks, seed, initial, num_nearest):
  """As the docstring says, one list at a time."""
  rng = np.random.default_rng(seed)
  free = [i for i in rng.permutation(len(values)).tolist() if i not in initial]
  free.sort(key=lambda i: values[i])
  drawn = []
  for pick in picks:
    below = sum(values[i] < values[pick] for i in free)
    equal = sum(values[i] == values[pick] for i in free)
    size = min(num_nearest, len(free))
    first = (below + below + equal) // 2 - size // 2
    first = min(max(first, 0), len(free) - size)
    drawn.append(free.pop(first + int(rng.integers(size))))
  return drawn


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.lists(st.integers(0, 5), min_size=1, max_size=12),
  st.integers(1, 4),
  st.data(),
)
def test_matched_picks_are_drawn_from_the_nearest_values(values, near, data):
  order = data.draw(st.permutations(range(len(values))))
  initial = order[: data.draw(st.integers(0, len(values)))]
  picks = data.draw(st.permutations(range(len(values))))
  picks = picks[: len(values) - len(initial)]
  result = selection.random_matched(values, picks, 3, initial, near)
  expected = _plain_matched(values, picks, 3, initial, near)
  assert result.indices.tolist() == expected
  for m in range(len(picks)):
    shorter = selection.random_matched(values, picks[:m], 3, initial, near)
    assert shorter.indices.tolist() == expected[:m]


def test_equal_values_are_drawn_alike():
  counts = np.zeros(60)
  for seed in range(600):
    counts[selection.random_matched(np.ones(60), [7], seed).indices[0]] += 1
  # 10 each, give or take five standard deviations.
  assert counts.max() < 26
