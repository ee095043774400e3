"""The order of examples and the learning rates, step by step."""

import math

import numpy as np
import pytest

from edsft_jax.finetuning import batches
from edsft_jax.finetuning.schedules import learning_rates
from edsft_jax.models.responses import Example


@pytest.mark.parametrize(('num', 'epochs'), [(1, 1), (7, 3), (10, 2)])
def test_each_epoch_sees_each_example_once(num, epochs):
  order = batches.order(num, epochs, seed=5).reshape(epochs, num)
  assert np.array_equal(np.sort(order), np.tile(np.arange(num), (epochs, 1)))


def test_order_depends_on_seed_and_epoch_alone():
  order = batches.order(50, 3, seed=5)
  assert np.array_equal(order, batches.order(50, 3, seed=5))
  assert np.array_equal(order[:100], batches.order(50, 2, seed=5))
  assert not np.array_equal(order, batches.order(50, 3, seed=6))
  assert not np.array_equal(order[:50], order[50:100])


@pytest.mark.parametrize(
  ('num', 'epochs', 'size', 'steps'),
  [(100, 3, 16, 19), (5, 2, 4, 3), (8, 2, 4, 4), (1, 1, 16, 1)],
)
def test_steps_cover_every_epoch(num, epochs, size, steps):
  assert batches.num_steps(num, epochs, size) == steps


def _examples(*lengths) -> list[Example]:
  rng = np.random.default_rng(len(lengths))
  return [
    Example(rng.integers(3, 99, size=n).tolist(), n // 3, False, False)
    for n in lengths
  ]


def _contents(micro_batches) -> list[tuple[list[int], list[int]]]:
  """Tokens and response of every example, sorted."""
  found = []
  for batch in micro_batches:
    groups, num_slots = batch.targets.shape
    is_target = np.zeros((groups, num_slots), bool)
    for group, number in enumerate(batch.num_targets):
      slots = batch.sources[group, :number] + 1
      is_target[group, slots] = True
      tokens_N = batch.tokens.reshape(groups, num_slots)[group]
      assert np.array_equal(tokens_N[slots], batch.targets[group, :number])
    is_target = is_target.reshape(batch.tokens.shape)
    for tokens, segments, targets in zip(
      batch.tokens, batch.segments, is_target, strict=True
    ):
      assert not np.any(tokens[segments == 0])
      found += [
        (tokens[segments == n].tolist(), tokens[targets & (segments == n)])
        for n in range(1, segments.max() + 1)
      ]
  return sorted((tokens, response.tolist()) for tokens, response in found)


LAYOUTS = [
  batches.Layout(packing, max_rows, max_slots, groups)
  for packing in (True, False)
  for max_rows, max_slots, groups in ((0, 64, 1), (3, 0, 1), (1, 0, 4))
]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_micro_batches_have_each_example_once(layout):
  examples = _examples(4, 20, 9, 1, 33, 12, 12, 40, 2)
  found = batches.micro_batches(examples, layout)
  assert _contents(found) == sorted(
    (e.tokens, e.tokens[max(len(e.tokens) - e.num_response, 1) :])
    for e in examples
  )
  for batch in found:
    rows, length = batch.tokens.shape
    assert rows % layout.groups == 0
    assert rows <= layout.rows(length)


def test_packing_fills_rows_in_order_of_length():
  assert batches.first_fit([9, 7, 4, 3, 3, 1], 10) == [[0, 5], [1, 3], [2, 4]]

  def shape(lengths, max_rows=0, groups=1) -> tuple[int, int]:
    layout = batches.Layout(True, max_rows, 4096, groups)
    (packed,) = batches.micro_batches(_examples(*lengths), layout)
    return packed.tokens.shape

  short, long = (20, 5, 30, 11, 14), (200, 400, 300, 110, 140)
  assert shape(short) == (1, 96)
  assert shape(short, max_rows=3) == (3, 32)
  assert shape(short, groups=2) == (2, 48)
  assert shape(long) == (3, 512)
  assert shape((600, *long)) == (3, 768)


@pytest.mark.parametrize(
  ('lengths', 'max_slots', 'groups', 'shapes'),
  [
    # Three to a row.
    ([20] * 16, 1024, 1, [(6, 64)]),
    ([20] * 13, 1024, 1, [(6, 64)]),
    ([20] * 13, 1024, 2, [(8, 64)]),
    # Too few tokens, and an example that is too long.
    ([20] * 6, 1024, 1, [(1, 128)]),
    ([60], 1024, 1, [(1, 64)]),
    ([*[20] * 15, 49], 1024, 1, [(3, 128)]),
    # No more rows than fit.
    ([20] * 27, 320, 1, [(5, 64), (4, 64)]),
  ],
)
def test_short_examples_share_short_rows_in_pairs(
  lengths, max_slots, groups, shapes
):
  layout = batches.Layout(True, 0, max_slots, groups)
  found = batches.micro_batches(_examples(*lengths), layout)
  assert [batch.tokens.shape for batch in found] == shapes


@pytest.mark.parametrize(
  ('num_rows', 'max_rows', 'groups', 'sizes'),
  [
    (4, 4, 1, [4]),
    (7, 4, 1, [4, 3]),
    (10, 4, 1, [4, 3, 3]),
    (17, 4, 1, [4, 4, 3, 3, 3]),
    # Two of 2 rows, or one, would take a program that no other step has.
    (5, 4, 1, [3, 3]),
    (17, 16, 1, [9, 9]),
    # Multiples of the groups.
    (20, 16, 4, [12, 12]),
    (37, 16, 4, [16, 12, 12]),
  ],
)
def test_micro_batches_have_two_sizes_at_most(
  num_rows, max_rows, groups, sizes
):
  layout = batches.Layout(True, max_rows, 0, groups)
  found = batches.micro_batches(_examples(*[64] * num_rows), layout)
  assert [batch.shape[0] for batch in found] == sizes


def test_without_packing_similar_lengths_share_a_micro_batch():
  examples = _examples(20, 5, 30, 6, 90, 15)
  found = batches.micro_batches(examples, batches.Layout(False, 2, 0, groups=1))
  assert [b.tokens.shape for b in found] == [(2, 96), (2, 32), (2, 16)]


@pytest.mark.parametrize(
  ('layout', 'halves'),
  [
    (batches.Layout(True, 0, 1000, groups=2), [(6, 128), (4, 128), (2, 128)]),
    (batches.Layout(True, 10, 0, groups=2), [(10, 96), (6, 96), (4, 96)]),
    (batches.Layout(False, 0, 1000, groups=2), [(10, 96), (6, 96), (4, 96)]),
  ],
)
def test_half_a_micro_batch(layout, halves):
  examples, found = _examples(*[90] * 10), []
  while layout is not None and len(found) <= len(halves):
    found.append(_largest(examples, layout))
    layout = layout.halved(found[-1], longest=90)
  assert found == [*halves, (2, 96)]


def _largest(examples, layout) -> tuple[int, int]:
  micro_batches = batches.micro_batches(examples, layout)
  return max((batch.shape for batch in micro_batches), key=math.prod)


@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize('max_rows', [0, 6, 40])
@pytest.mark.parametrize('groups', [1, 3])
def test_half_a_micro_batch_is_smaller_and_remains_so(
  packing, max_rows, groups
):
  """In the same step, and no larger than before in any other."""
  rng = np.random.default_rng(groups)
  layout = batches.Layout(
    packing, max_rows, 0 if max_rows else 1024 * groups, groups
  )
  for most in (20, 90, 500):
    examples = _examples(*rng.integers(2, most, size=16))
    before = _largest(examples, layout)
    longest = max(len(e.tokens) for e in examples)
    halved = layout.halved(before, longest)
    if halved is None:
      assert before == (groups, batches.bucket(longest))
      continue
    assert math.prod(_largest(examples, halved)) < math.prod(before)
    for other_most in (20, 90, 500, 1000):
      others = _examples(*rng.integers(2, other_most, size=16))
      assert math.prod(_largest(others, halved)) <= max(
        math.prod(_largest(others, layout)),
        groups * batches.bucket(max(len(e.tokens) for e in others)),
      )


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
  rates = learning_rates('cosine', 0.4, 40, warmup_fraction=0.1)
  np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
  assert np.all(np.diff(rates[4:]) < 0)
  np.testing.assert_allclose(rates[4 + 18], 0.2, rtol=1e-6)  # Half way down.
  np.testing.assert_allclose(
    rates[-1], 0.2 * (1 + np.cos(np.pi * 35 / 36)), rtol=1e-4
  )


@pytest.mark.parametrize(('steps', 'fraction'), [(1, 0.05), (3, 1.0), (2, 0.0)])
def test_learning_rate_of_short_runs(steps, fraction):
  rates = learning_rates('cosine', 0.4, steps, fraction)
  assert rates.shape == (steps,)
  assert np.all(rates > 0)
  assert rates.max() == np.float32(0.4)


def test_bucket():
  lengths = np.arange(1, 5000)
  sizes = np.array([batches.bucket(int(n)) for n in lengths])
  assert (sizes >= lengths).all()
  assert (np.diff(sizes) >= 0).all()
  assert len(set(sizes)) <= 17
  large = lengths > 16
  assert (sizes[large] <= 2 * lengths[large]).all()
  assert [batches.bucket(n) for n in (1, 16, 17, 512, 513, 769, 1025)] == [
    16,
    16,
    32,
    512,
    768,
    1024,
    1536,
  ]
