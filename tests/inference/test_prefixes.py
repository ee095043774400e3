"""Groups of rows with common prefixes against all groupings."""

import dataclasses

import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.inference import prefixes
from edsft_jax.mesh import make_mesh


def _common(rows) -> int:
  first, last = min(rows), max(rows)
  for n, (a, b) in enumerate(zip(first, last, strict=False)):
    if a != b:
      return n
  return min(len(first), len(last))


def _saved(groups) -> int:
  return sum((len(g.indices) - 1) * g.length for g in groups)


def _partitions(rows):
  """Every way to split rows into groups."""
  if not rows:
    yield []
    return
  first, *rest = rows
  for groups in _partitions(rest):
    yield [[first], *groups]
    for n, group in enumerate(groups):
      yield [*groups[:n], [first, *group], *groups[n + 1 :]]


def _most_saved(rows, min_length: int) -> int:
  return max(
    sum(
      (len(group) - 1) * common
      for group in groups
      if (common := _common(group)) >= min_length
    )
    for groups in _partitions(rows)
  )


def test_hardly_any_grouping_saves_more():
  most = total = 0
  for seed in range(40):
    rng = np.random.default_rng(seed)
    rows = [
      tuple(rng.integers(0, 2, rng.integers(0, 9)).tolist()) for _ in range(7)
    ]
    min_length = seed % 3 + 1
    groups = prefixes.find_groups(rows, min_length)
    assert sorted(i for g in groups for i in g.indices) == list(range(7))
    for group in groups:
      members = [rows[i] for i in group.indices]
      assert group.length <= _common(members)
      assert group.length >= min_length or len(members) == 1
    total += _saved(groups)
    most += _most_saved(rows, min_length)
  assert 0.98 * most < total <= most


def test_subjects_have_a_prefix_each():
  """The common header of all rows is not worth giving up theirs."""
  header = [7] * 20
  rows = [
    [*header, *[subject] * 50, 100 + question]
    for question in range(4)
    for subject in range(3)
  ]
  groups = prefixes.find_groups(rows)
  assert [g.length for g in groups] == [70] * 3
  assert groups[1].indices == [1, 4, 7, 10]


def test_no_rows_have_no_groups():
  assert prefixes.find_groups([]) == []


@pytest.mark.parametrize(
  ('rows', 'prefix'),
  [
    ([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 9]], [1, 2]),
    # A row's last token stays its own.
    ([[1, 2, 3], [1, 2, 3, 4]], [1, 2]),
    ([np.array([7, 8, 9]), [7, 8, 9]], [7, 8]),
    ([[1, 2], [2, 2]], []),
    ([[1], [1, 2]], []),
    ([], []),
  ],
)
def test_common_prefix(rows, prefix):
  assert prefixes.common_prefix(rows) == prefix


def test_a_prefix_is_read_once_if_that_saves_more_than_it_costs(goldens):
  mesh = make_mesh(devices=jax.devices()[:1])
  rows = [[*range(3, 23), i] for i in range(60)]

  def chosen(rows, golden='mistral_v4'):
    # As large as a real model, but only shapes.
    small = goldens[golden].decoder.config
    config = dataclasses.replace(small, mlp_width=10**6)
    decoder = models.Decoder(config, rngs=None)
    return inference.choose_prefix(decoder, mesh, rows)

  assert chosen(rows) == rows[0][:20]
  assert chosen(rows[:9]) == []
  # Too short to be worth a cache.
  assert chosen([row[10:] for row in rows]) == []
  # Keys depend on how long a row is.
  assert chosen(rows, 'dynamic_v4') == []
