import hypothesis
from hypothesis import strategies as st
import numpy as np
import plain_selection as reference
import pytest

from edsft_jax import selection


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
  st.integers(0, 2**32 - 1),
  st.sampled_from(
    [selection.Rbf(width=0.5), selection.Cosine(), selection.Rbf(gamma=0.2)]
  ),
)
def test_equals_whole_determinants(seed, similarity):
  features = np.random.default_rng(seed).normal(size=(12, 4))
  initial = [3, 1] if seed % 2 else []
  result = selection.log_determinant(
    features, 6, similarity, jitter=1e-3, initial=initial
  )
  s = reference.similarities_in_use(features, similarity)
  indices, gains, objective = reference.log_determinant(s, 6, 1e-3, initial)
  np.testing.assert_array_equal(result.indices, indices)
  np.testing.assert_allclose(result.gains, gains, atol=1e-6)
  assert result.objective == pytest.approx(objective, abs=1e-6)


def test_equal_rows_are_picked_once_each():
  result = selection.log_determinant(np.ones((6, 3)), 6)
  assert result.indices.tolist() == list(range(6))
  assert np.isfinite(result.gains).all()
  features = np.repeat(np.random.default_rng(0).normal(size=(5, 3)), 4, axis=0)
  result = selection.log_determinant(features, 20)
  assert sorted(result.indices.tolist()) == list(range(20))
  assert len({i // 4 for i in result.indices[:5].tolist()}) == 5


def test_prefixes_nest():
  features = np.random.default_rng(0).normal(size=(90, 4))
  whole = selection.log_determinant(features, 30)
  part = selection.log_determinant(features, 10)
  np.testing.assert_array_equal(part.indices, whole.indices[:10])
  assert selection.log_determinant(features, 0).indices.tolist() == []


def test_refuses_what_does_not_fit():
  with pytest.raises(ValueError, match=r'50 x 100 numbers.*memory_limit'):
    selection.log_determinant(np.eye(100), 50, memory_limit=100)
