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
