"""Which prompts are read together: little padding, equal shares."""

import itertools

import numpy as np

from edsft_jax.inference.shapes import BatchSizes, ShapeOptions, Shapes
from edsft_jax.inference.steps import Steps
from edsft_jax.inference.waves import Row, Wave


def _packed(waves, cache_length):
  """The packed rows of all steps, per worker."""
  num_rows = sum(len(wave.rows) for wave in waves)
  sizes = BatchSizes(6000, 9, 1, num_rows // 2, read_tokens=1500)
  for worker in range(2):
    steps = Steps(sizes, 2, cache_length).of_worker(waves, worker)
    for step in steps:
      most = sizes.num_slots(step.cache_length)
      assert len(step.packed.indices) <= -(-most // 2)
    yield [step.packed for step in steps]


def _counts(waves, cache_length):
  """Per worker: own tokens, slots of packed rows, and prompts, of all steps."""
  rows = [row for wave in waves for row in wave.rows]
  for packed in _packed(waves, cache_length):
    yield (
      sum(len(rows[i].own) for p in packed for i in p.indices),
      sum(p.num_rows * p.length for p in packed),
      sum(len(p.indices) for p in packed),
    )


def test_steps_have_little_padding_and_workers_equal_shares():
  lengths = np.random.default_rng(3).integers(8, 400, 600)
  options = ShapeOptions(compile_tokens=500)
  shapes = Shapes.of(lengths, options, continued=True)
  rows = [Row.of_prompt(i, [5] * n) for i, n in enumerate(lengths)]
  waves = [Wave([], 0, 0, rows, shapes, int(lengths.sum()))]
  (tokens, slots, num), (others, more_slots, more) = _counts(
    waves, shapes.cache_length
  )
  assert num == more == 300
  assert abs(tokens - others) < 0.01 * tokens
  assert tokens + others > 0.9 * (slots + more_slots)


def test_a_large_group_is_divided_and_small_ones_stay_together():
  prefixes = [(3,) * 20, (4,) * 20, (5,) * 20, (6,) * 20]
  sizes = [200, 2, 2, 2]
  rows = []
  for number, size in enumerate(sizes):
    for _ in range(size):
      ids = [*prefixes[number], *[7] * 40]
      rows.append(Row.of_prompt(len(rows), ids, 20))
      rows[-1].prefix_index = number
  places = np.cumsum([0, *sizes])
  groups = [range(*ends) for ends in itertools.pairwise(places)]
  options = ShapeOptions(compile_tokens=500)
  shapes = Shapes.of([40] * len(rows), options, groups)
  assert shapes.row_lengths == (80, 240)
  waves = [Wave(prefixes, 20, 4, rows, shapes, 40 * len(rows))]
  (tokens, slots, _), (others, more_slots, _) = _counts(waves, lambda _: 60)
  assert abs(tokens - others) <= 80
  assert tokens + others > 0.85 * (slots + more_slots)
  packed = itertools.chain(*_packed(waves, lambda _: 60))
  found = [row for call in packed for row in call.rows]
  assert sorted(sorted(row) for row in found if row[0] >= 200) == [
    [200, 201],
    [202, 203],
    [204, 205],
  ]
