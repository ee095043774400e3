import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import plain_selection as reference
import pytest

from edsft_jax import selection
from edsft_jax.selection.distances import Sizes
from edsft_jax.selection.k_center import farthest_first
from edsft_jax.selection.nearest import lowered_bounds


def pool(n, d=5, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data())
def test_equals_plain_greedy_on_small_pools(data):
  # Few sizes: most programs are compiled once.
  n = data.draw(st.sampled_from([1, 2, 3, 7, 12, 20]))
  values = st.lists(st.integers(-2, 2), min_size=3 * n, max_size=3 * n)
  features = np.array(data.draw(values), np.float32).reshape(n, 3)
  order = data.draw(st.permutations(range(n)))
  initial = order[: data.draw(st.integers(0, min(3, n - 1)))]
  budget = data.draw(st.integers(0, n - len(initial)))
  first = data.draw(st.integers(0, n - 1))
  result = selection.k_center(features, budget, initial, first)
  assert len(set(result.indices.tolist()) - set(initial)) == budget
  # Distances that are equal on paper may differ in the last digit here: greedy
  # is replayed along our own picks.
  x = features.astype(np.float64)
  distance = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=-1))
  chosen = list(initial)
  for pick, gain in zip(result.indices, result.gains, strict=True):
    if chosen:
      nearest = distance[:, chosen].min(axis=1)
      np.testing.assert_allclose(nearest[pick], nearest.max(), atol=1e-5)
      np.testing.assert_allclose(gain, nearest[pick], atol=1e-5)
    else:
      assert pick == first
      assert np.isnan(gain)
    chosen.append(pick)
  radius = distance[:, chosen].min(axis=1, initial=np.inf).max()
  np.testing.assert_allclose(result.objective, radius, atol=1e-5)


@pytest.mark.parametrize('offset', [0.0, 1000.0])
def test_equals_plain_greedy_on_a_larger_pool(offset):
  features = pool(1500).astype(np.float64) + offset
  features[::50] = features[0]
  result = selection.k_center(features, 700, initial=[3, 9])
  indices, gains, radius = reference.k_center(features, 700, [3, 9])
  np.testing.assert_array_equal(result.indices, indices)
  np.testing.assert_allclose(result.gains, gains, rtol=1e-5)
  assert result.objective == pytest.approx(radius, rel=1e-5)


def test_small_distances_far_from_the_mean_are_exact():
  rng = np.random.default_rng(0)
  near = rng.normal(size=(200, 4)) * 1e-3
  features = np.concatenate([near + 10, near[::-1] * 1.5 - 10])
  result = selection.k_center(features, 300)
  indices, gains, _ = reference.k_center(features, 300)
  np.testing.assert_array_equal(result.indices, indices)
  np.testing.assert_allclose(result.gains, gains, rtol=1e-4)


@pytest.mark.parametrize('scale', [2.0**-60, 2.0**40])
def test_scaling_by_a_power_of_two_scales_the_gains(scale):
  expected = selection.k_center(pool(600), 100)
  result = selection.k_center(pool(600) * np.float32(scale), 100)
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains * scale)


@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(st.randoms(use_true_random=False))
def test_permuted_rows_are_picked_alike(random):
  features = pool(300)
  order = list(range(1, 300))
  random.shuffle(order)
  order = np.array([0, *order])
  expected = selection.k_center(features, 100)
  result = selection.k_center(features[order], 100)
  np.testing.assert_array_equal(order[result.indices], expected.indices)
  np.testing.assert_allclose(result.gains, expected.gains, rtol=1e-9)
  assert result.objective == pytest.approx(expected.objective, rel=1e-9)


def test_prefixes_and_topping_up():
  whole = selection.k_center(pool(900), 500)
  for budget in (0, 1, 2, 255, 300):
    part = selection.k_center(pool(900), budget)
    np.testing.assert_array_equal(part.indices, whole.indices[:budget])
  rest = selection.k_center(pool(900), 200, initial=whole.indices[:300])
  np.testing.assert_array_equal(rest.indices, whole.indices[300:])
  assert rest.objective == whole.objective


def test_more_ties_than_a_block_holds():
  # Every two rows are equally far apart.
  result = selection.k_center(np.eye(700), 700)
  assert result.indices.tolist() == list(range(700))
  np.testing.assert_allclose(result.gains[1:], np.sqrt(2), rtol=1e-6)


def test_differences_that_float32_cannot_tell_decide():
  # Rows a_i e_i: the farthest of those that are left is that of the largest a.
  length = 1 + 1e-9 * np.random.default_rng(0).permutation(700)
  result = selection.k_center(np.diag(length), 700)
  order = np.argsort(-length)
  assert result.indices.tolist() == [0, *order[order != 0]]


@pytest.mark.parametrize('block', [2, 3, 7])
def test_ties_across_the_edge_of_a_block(block):
  for seed in range(6):
    features = np.random.default_rng(seed).integers(0, 4, size=(60, 3))
    # No two are equal; as many of each seed, so that they share programs.
    features = np.unique(features, axis=0)[::-1][:34]
    result = farthest_first(
      features, len(features), (), 0, None, None, Sizes(farthest=block)
    )
    indices, _, _ = reference.k_center(features, len(features))
    np.testing.assert_array_equal(result.indices, indices)


# Of 16 rows per tile, so that several devices have some.
SIZES = (
  Sizes(farthest=3, batch=8, exact=5, tile_rows=16),
  Sizes(farthest=16, batch=2, exact=40, tile_rows=16),
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  data=st.data(),
  # Few sizes, and all prompts picked: most programs are compiled once.
  n=st.sampled_from([9, 60]),
  devices_and_blocks=st.sampled_from([(1, 0), (1, 1), (4, 0), (8, 1)]),
)
def test_block_sizes_and_devices_change_no_pick(data, n, devices_and_blocks):
  devices, blocks = devices_and_blocks
  values = st.lists(st.integers(-2, 2), min_size=3 * n, max_size=3 * n)
  features = np.array(data.draw(values), np.float32).reshape(n, 3)
  initial = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, 3))]
  first = data.draw(st.integers(0, n - 1))
  arguments = features, n - len(initial), initial, first
  expected = farthest_first(*arguments, None, None, Sizes(tile_rows=16))
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  result = farthest_first(*arguments, mesh, None, SIZES[blocks])
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)
  assert result.objective == expected.objective


def test_equal_rows_come_last_in_order():
  features = np.repeat([[0.0], [5.0], [1.0]], 3, axis=0)
  result = selection.k_center(features, 9, first=1)
  assert result.indices.tolist() == [1, 3, 6, 0, 2, 4, 5, 7, 8]
  np.testing.assert_allclose(result.gains[1:], [5, 1, 0, 0, 0, 0, 0, 0])
  assert result.objective == 0


def test_bounds_are_lowered_only_in_the_tiles_that_are_wanted():
  point = pool(48)
  norm = np.square(point).sum(axis=1)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  lowered = lowered_bounds(
    point.reshape(3, 16, 5),
    norm.reshape(3, 16),
    np.full((3, 16), np.inf, np.float32),
    # All chosen ones, none of them, and those from the 7th on.
    np.array([0, 21, 7], np.int32),
    point[::-1],
    norm[::-1],
    np.int32(21),
    mesh=mesh,
    batch=8,
  )
  square = np.square(point[:, None] - point[::-1][None, :21]).sum(axis=2)
  expected = np.full((3, 16), np.inf)
  expected[0] = square[:16].min(axis=1)
  expected[2] = square[32:, 7:].min(axis=1)
  np.testing.assert_allclose(lowered, expected, atol=1e-4)
