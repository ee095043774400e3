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


# A matrix of clipped cosines is not positive semi-definite.
SIMILARITIES = st.sampled_from([selection.Rbf(width=0.5), selection.Cosine()])


@st.composite
def pools(draw):
  """Twelve rows, equal ones among them, and up to three chosen already."""
  values = st.lists(st.integers(-1, 2), min_size=36, max_size=36)
  features = np.array(draw(values), np.float32).reshape(12, 3)
  order = draw(st.permutations(range(12)))
  return features, order[: draw(st.integers(0, 3))]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(pools(), SIMILARITIES)
def test_no_pick_misses_the_best_determinant(pool, similarity):
  features, initial = pool
  # Always eight in all: compiled once.
  result = selection.log_determinant(
    features, 8 - len(initial), similarity, jitter=0.1, initial=initial
  )
  assert len({*initial, *result.indices.tolist()}) == 8
  s = reference.similarities_in_use(features, similarity) + 0.1 * np.eye(12)

  def value(chosen):
    return np.linalg.slogdet(s[np.ix_(chosen, chosen)])[1]

  chosen = list(initial)
  for pick, noted in zip(result.indices.tolist(), result.gains, strict=True):
    before = value(chosen) if chosen else 0.0
    gains = {
      j: value([*chosen, j]) - before for j in range(12) if j not in chosen
    }
    assert noted == pytest.approx(gains[pick], abs=1e-5)
    assert gains[pick] >= max(gains.values()) - 1e-5
    chosen.append(pick)
  assert result.objective == pytest.approx(value(chosen), abs=1e-5)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  st.lists(st.integers(0, 9), min_size=12, max_size=12),
  st.integers(0, 99),
  SIMILARITIES,
  st.integers(-20, 20),
  st.permutations(range(12)),
)
def test_cuts_top_ups_scales_and_orders_change_nothing(
  row, seed, similarity, exponent, order
):
  # Ties only between equal rows, except for the first pick.
  features = np.random.default_rng(seed).normal(size=(10, 4))[row]

  def select(features, budget, initial=()):
    return selection.log_determinant(
      features, budget, similarity, jitter=0.1, initial=initial
    )

  whole = select(features, 8)
  for equal in set(row):
    picks = [i for i in whole.indices.tolist() if row[i] == equal]
    assert picks == [i for i in range(12) if row[i] == equal][: len(picks)]
  part = select(features, 3)
  np.testing.assert_array_equal(part.indices, whole.indices[:3])
  np.testing.assert_allclose(part.gains, whole.gains[:3], atol=1e-12)
  rest = select(features, 5, whole.indices[:3])
  np.testing.assert_array_equal(rest.indices, whole.indices[3:])
  np.testing.assert_array_equal(rest.gains, whole.gains[3:])
  assert rest.objective == whole.objective
  scaled = select(features * 2.0**exponent, 8)
  np.testing.assert_array_equal(scaled.indices, whole.indices)
  np.testing.assert_array_equal(scaled.gains, whole.gains)
  permuted = select(features[order], 7, [order.index(whole.indices[0])])
  assert permuted.objective == pytest.approx(whole.objective, abs=1e-5)


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
