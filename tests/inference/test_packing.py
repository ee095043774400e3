"""Packed rows: each sequence once, little padding, and seen alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.inference import packing
from edsft_jax.inference.prefixes import Prefixes
from edsft_jax.inference.shapes import ShapeOptions, Shapes, pad_left

LENGTHS = np.random.default_rng(1).integers(1, 130, 90).tolist()
SHAPES = (48, 136)


def _at_once(length: int) -> int:
  return 2 if length == 136 else 3


def _calls(groups=None, shortest=1) -> list[packing.Packed]:
  shapes = Shapes((136,), SHAPES, SHAPES, shortest, 60, (1.0, 1.0))
  groups = groups or [range(len(LENGTHS))]
  return packing.calls(shapes.pack(LENGTHS, groups), _at_once)


@pytest.mark.parametrize('shortest', [1, 20])
def test_every_sequence_is_in_one_row_with_room_for_it(shortest):
  calls = _calls(shortest=shortest)
  assert sorted(i for c in calls for i in c.indices) == list(range(90))
  slots = 0
  for call in calls:
    assert call.num_rows == _at_once(call.length)
    assert len(call.rows) <= call.num_rows
    slots += call.num_rows * call.length
    for row in call.rows:
      assert sum(LENGTHS[i] for i in row) <= call.length
      assert len(row) <= packing.most_sequences(call.length, shortest)
    rows, places = call.places
    assert [call.rows[r][p] for r, p in zip(rows, places, strict=True)] == (
      call.indices
    )
  assert slots < 1.1 * sum(LENGTHS)
  assert [call.length for call in calls] == sorted(
    (call.length for call in calls), reverse=True
  )


def test_groups_do_not_share_rows():
  groups = [list(range(30)), list(range(30, 90))]
  calls = _calls(groups)
  assert sorted(i for c in calls for i in c.indices) == list(range(90))
  for call in calls:
    for row in call.rows:
      assert len({i < 30 for i in row}) == 1


def test_a_call_holds_no_more_sequences_than_asked_for():
  shapes = Shapes((136,), SHAPES, SHAPES, 1, 60, (1.0, 1.0))
  rows = shapes.pack(LENGTHS, [range(len(LENGTHS))], most=3)
  calls = packing.calls(rows, _at_once, 4)
  assert sorted(i for c in calls for i in c.indices) == list(range(90))
  assert max(len(call.indices) for call in calls) == 4
  for call in calls:
    assert len(call.rows) <= call.num_rows
    assert max(map(len, call.rows)) <= 3
  # None could take the first row of the next one.
  for call, following in itertools.pairwise(calls):
    assert (
      len(call.rows) == call.num_rows
      or len(call.indices) + len(following.rows[0]) > 4
    )


def test_a_sequence_longer_than_every_row_is_refused():
  with pytest.raises(ValueError, match='a prompt has 137 tokens'):
    packing.pack([3, 137], SHAPES, [[0, 1]], packing.most_sequences)


def test_the_number_of_sequences_does_not_grow_with_the_row():
  assert packing.most_sequences(256) == 32
  assert packing.most_sequences(100_000) == 64
  rows = packing.pack(
    [1] * 200, (100_000,), [range(200)], packing.most_sequences
  )
  assert [len(row.sequences) for row in rows] == [64, 64, 64, 8]


def test_rows_are_no_longer_than_a_group_fills_them():
  lengths = [30, 50, 20, 60, 110, 100]
  groups = [[0, 1], [2, 3], [4], [5]]
  options = ShapeOptions(compile_tokens=0, row_length=256)
  shapes = Shapes.of(lengths, options, groups)
  assert shapes.row_lengths == (80, 104, 112)
  rows = shapes.pack(lengths, groups)
  assert [row.length for row in rows] == [80, 80, 112, 104]
  # 110, 100 and 30 in one row, the others in the second.
  assert Shapes.of(lengths, options).row_lengths == (136, 240)
  # There are results for no more than two sequences in a row of 16.
  tiny = Shapes((128,), (16, 128), (128,), 1, 2, (1.0, 1.0))
  assert [row.length for row in tiny.pack([1, 2] * 4, [range(8)])] == [128]


def test_prompts_to_continue_share_rows_with_those_of_their_cache_length():
  lengths = [10, 10, 60, 60]
  options = ShapeOptions(compile_tokens=0, max_cache_lengths=2, row_length=72)
  read = Shapes.of(lengths, options)
  assert read.row_lengths == (72,)
  continued = Shapes.of(lengths, options, continued=True)
  assert continued.cache_lengths == (16, 64)
  assert continued.row_lengths == (24, 64)


def _row_lengths(lengths, compile_tokens):
  return packing.row_lengths(
    lengths, shortest=256, step=8, key_cost=1e-3, compile_tokens=compile_tokens
  )


def test_rows_are_as_long_as_needed_and_shorter_where_that_pays():
  assert _row_lengths([3, 20], 0) == (24,)  # No more than there is.
  assert _row_lengths([20] * 1000, 0) == (256,)
  lengths = [20] * 1000 + [1000]
  assert _row_lengths([*lengths, 400], 0) == (256, 504, 1000)
  assert _row_lengths(lengths, 0) == (256, 1000)
  # 20,000 tokens attend to 124 keys more in rows of 504, 248 more in 1,000.
  assert _row_lengths(lengths, 20_000 * 0.123) == (256, 1000)
  assert _row_lengths(lengths, 20_000 * 0.125) == (504, 1000)
  assert _row_lengths(lengths, 20_000 * 0.249) == (1000,)


@pytest.mark.parametrize(
  'case', ['mistral_v4', 'gemma3_v4', 'phi3_v5', 'dynamic_v5']
)
@pytest.mark.parametrize('num_before', [0, 5])
def test_a_sequence_in_a_packed_row_is_as_alone(goldens, case, num_before):
  decoder = goldens[case].decoder
  rng = np.random.default_rng(2)
  before, *sequences = (
    rng.integers(3, decoder.config.vocab_size, size).tolist()
    for size in (num_before, 9, 13, 1, 14)
  )
  packed = packing.Packed([[1, 0], [3, 2]], 32, 3)
  tokens, segments = map(jnp.asarray, packing.fill(packed, sequences))
  cache = None
  if before:
    prefix = jnp.asarray([before])
    read = Prefixes.read(decoder, prefix, prefix >= 0)
    cache = read.extended(jnp.zeros(3, jnp.int32), 32)
  found = jax.jit(models.Decoder.packed, static_argnums=4)(
    decoder, tokens, segments, cache, 1
  )
  read_alone = jax.jit(models.Decoder.__call__, static_argnums=4)
  for index, (row, start) in enumerate([(0, 13), (0, 0), (1, 14), (1, 0)]):
    ids, mask = pad_left([[*before, *sequences[index]]], 20)
    alone = read_alone(decoder, ids, mask, None, 1)
    here = slice(start, start + len(sequences[index]))
    for name in ('hidden_BxLxD', 'features_BxLxD'):
      np.testing.assert_allclose(
        getattr(found, name)[row, here],
        getattr(alone, name)[0, -len(sequences[index]) :],
        rtol=1e-4,
        atol=1e-5,
      )
