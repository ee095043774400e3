"""Batches of examples, determined by the seed alone."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import jax
import numpy as np

from edsft_jax.models.responses import Example

# numpy when a batch is made, jax inside the loss.
Array = np.ndarray | jax.Array

# Padded lengths of batches; few, so that few programs are compiled.
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Packed rows are at least this long: there is less padding, and the number of
# rows varies less. A cell of the demo takes 14 s with 128, 24 s with 512, where
# attention slows a small model down, and 28 s with rows as short as the longest
# example.
_PACKED_LENGTH = 128
# Steps whose examples have at most _SHORT_EXAMPLE tokens have rows of half that
# length, which take a sixth off a step of the demo, by their attention. Their
# number is even, so that it varies as little as that of the longer rows, unless
# an odd number is the most that fits.
_SHORT_EXAMPLE = 48
_SHORT_LENGTH = 64


def num_steps(num_examples: int, epochs: int, batch_size: int) -> int:
  """Optimizer steps of a cell; the last may have fewer examples."""
  return -(-num_examples * epochs // batch_size)


def order(num_examples: int, epochs: int, seed: int) -> np.ndarray:
  """A permutation of the examples for each epoch, concatenated.

  Depends only on the arguments, not on the devices or on the step that a run
  resumes from.
  """
  key = jax.random.fold_in(jax.random.key(seed), _DATA)
  epoch_keys = [jax.random.fold_in(key, epoch) for epoch in range(epochs)]
  return np.concatenate(
    [np.asarray(jax.random.permutation(k, num_examples)) for k in epoch_keys]
  )


# Separate the random streams of the data order and of dropout from others of
# the same seed.
_DATA = 1
_DROPOUT = 2


def dropout_key(seed: int, step: int) -> jax.Array:
  """The random key of a step's dropout."""
  key = jax.random.fold_in(jax.random.key(seed), _DROPOUT)
  return jax.random.fold_in(key, step)


class MicroBatch(NamedTuple):
  """Rows of examples, one after the other, followed by padding.

  The B rows are divided into G groups, one for each shard of the batch axis, of
  N = B / G * L slots each.

  Attributes:
    tokens: int32 [B, L].
    segments: int32 [B, L], for each token the number of its example in the row,
      from 1; 0: padding.
    numbers: int32 [B, L], the number of each token among those of the step, in
      the order of its examples, from 0: what dropout depends on.
    targets: int32 [G, N], the tokens of responses in a group; then zeros.
    sources: int32 [G, N], the slot of each target's predecessor in its group.
    num_targets: int32 [G], number of targets.
  """

  tokens: Array
  segments: Array
  numbers: Array
  targets: Array
  sources: Array
  num_targets: Array

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and length, B and L."""
    rows, length = self.tokens.shape
    return rows, length


class Layout(NamedTuple):
  """How examples become micro-batches.

  Attributes:
    packing: several examples may share a row.
    max_rows: rows of a micro-batch at most; 0: any number.
    max_slots: tokens and padding of a micro-batch at most, unless that is less
      than a row for each group; 0: any number.
    groups: see `MicroBatch`; rows are a multiple of it.
  """

  packing: bool
  max_rows: int
  max_slots: int
  groups: int

  def length(self, longest: int, num_tokens: int) -> int:
    """The padded length of a micro-batch.

    Args:
      longest: tokens of its longest example.
      num_tokens: tokens of the step.
    """
    length = bucket(longest)
    if not self.packing or self.max_rows:
      return length
    if self.has_pairs(longest, num_tokens):
      return _SHORT_LENGTH
    share = bucket(num_tokens // self.groups)
    most = self.max_slots // self.groups
    return max(length, min(share, _PACKED_LENGTH, most))

  def has_pairs(self, longest: int, num_tokens: int) -> bool:
    """Whether rows have _SHORT_LENGTH tokens, and come in pairs.

    Args:
      longest: see `length`.
      num_tokens: see `length`.
    """
    return (
      self.packing
      and not self.max_rows
      and longest <= _SHORT_EXAMPLE
      and num_tokens // self.groups > _PACKED_LENGTH
      and self.max_slots >= 2 * _SHORT_LENGTH * self.groups
    )

  def rows(self, length: int) -> int:
    """Rows of a micro-batch of this length at most."""
    limits = []
    if self.max_rows:
      limits.append(self.max_rows)
    if self.max_slots:
      limits.append(max(self.max_slots // length, 1))
    return -(-min(limits) // self.groups) * self.groups

  def halved(self, shape: tuple[int, int], longest: int) -> 'Layout | None':
    """With micro-batches of half the slots that one of this shape has.

    Slots, not rows: longer examples of later steps must not make micro-batches
    larger again.

    Args:
      shape: rows and length of a micro-batch that does not fit into memory.
      longest: tokens of the longest example of its step.

    Returns:
      None if it has one row for each group, which cannot be shorter either.
    """
    rows, length = shape
    can_be_shorter = self.packing and length > bucket(longest)
    if rows == self.groups and not can_be_shorter:
      return None
    return self._replace(max_slots=rows * length // 2)


def micro_batches(
  examples: Sequence[Example], layout: Layout
) -> list[MicroBatch]:
  """The micro-batches of a step.

  With packing, all rows have one length: at least 128, or 64 for short
  examples, unless the step has fewer tokens, or rows or slots are limited.
  Without, examples are sorted by length, and each micro-batch has its own
  length. Lengths are rounded up to a few, so that few programs are compiled.
  """
  ends = itertools.accumulate(len(e.tokens) for e in examples)
  numbers = [e - len(x.tokens) for x, e in zip(examples, ends, strict=True)]
  # Longest first; the number of its first token goes with an example.
  ordered = sorted(
    zip(examples, numbers, strict=True), key=lambda x: -len(x[0].tokens)
  )
  result = []
  while ordered:
    lengths = [len(example.tokens) for example, _ in ordered]
    length = layout.length(lengths[0], sum(lengths))
    if layout.packing:
      rows = first_fit(lengths, length)
    else:
      rows = [[i] for i in range(min(layout.rows(length), len(ordered)))]
    most = layout.rows(length)
    multiple = layout.groups
    if (
      layout.has_pairs(lengths[0], sum(lengths)) and most % (2 * multiple) == 0
    ):
      multiple *= 2
    start = 0
    for num_rows in _sizes(len(rows), most, multiple):
      part = [
        [ordered[i] for i in row] for row in rows[start : start + num_rows]
      ]
      start += num_rows
      result.append(
        fill(
          [[example for example, _ in row] for row in part],
          (num_rows, length),
          layout.groups,
          [[number for _, number in row] for row in part],
        )
      )
    ordered = ordered[sum(map(len, rows)) :]
  return result


def _sizes(num_rows: int, most: int, multiple: int) -> list[int]:
  """Rows of each micro-batch of a step: as few micro-batches as possible.

  Their sizes differ by one `multiple` at most. If there are several, none is
  half of `most` or less, since only a further program would have it: the last
  one is padded instead.

  Args:
    num_rows: rows of the step.
    most: rows of a micro-batch at most, a multiple of `multiple`.
    multiple: what the sizes are multiples of.
  """
  units = -(-num_rows // multiple)
  number = -(-num_rows // most)
  size = -(-units // number)
  num_smaller = size * number - units
  if 2 * (size - 1) * multiple <= most:
    num_smaller = 0
  sizes = [size] * (number - num_smaller) + [size - 1] * num_smaller
  return [size * multiple for size in sizes]


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Packs sequences, longest first, each into the first row with room for it.

  Args:
    lengths: of the sequences, in falling order, none above `capacity`.
    capacity: tokens per row.

  Returns:
    The indices of the sequences of each row.
  """
  rows: list[list[int]] = []
  room: list[int] = []
  for index, length in enumerate(lengths):
    row = next((r for r, left in enumerate(room) if left >= length), len(rows))
    if row == len(rows):
      rows.append([])
      room.append(capacity)
    rows[row].append(index)
    room[row] -= length
  return rows


def fill(
  rows: Sequence[Sequence[Example]],
  shape: tuple[int, int],
  groups: int,
  numbers: Sequence[Sequence[int]] | None = None,
) -> MicroBatch:
  """A micro-batch of these rows; those that are missing are padding.

  Args:
    rows: examples.
    shape: B and L.
    groups: see `MicroBatch`.
    numbers: the number of each example's first token; None: not needed.
  """
  num_rows, length = shape
  tokens_BxL = np.zeros(shape, np.int32)
  segments_BxL = np.zeros(shape, np.int32)
  numbers_BxL = np.zeros(shape, np.int32)
  is_target_BxL = np.zeros(shape, bool)
  for r, row in enumerate(rows):
    end = 0
    for segment, example in enumerate(row, start=1):
      start, end = end, end + len(example.tokens)
      tokens_BxL[r, start:end] = example.tokens
      segments_BxL[r, start:end] = segment
      if numbers is not None:
        first_number = numbers[r][segment - 1]
        numbers_BxL[r, start:end] = first_number + np.arange(end - start)
      # Nothing predicts the first token of an example.
      first = max(end - example.num_response, start + 1)
      is_target_BxL[r, first:end] = True
  num_slots = num_rows * length // groups
  targets_GxN = np.zeros((groups, num_slots), np.int32)
  sources_GxN = np.zeros((groups, num_slots), np.int32)
  is_target_GxN = is_target_BxL.reshape(groups, num_slots)
  for group, tokens_N in enumerate(tokens_BxL.reshape(groups, num_slots)):
    (slots,) = np.nonzero(is_target_GxN[group])
    targets_GxN[group, : len(slots)] = tokens_N[slots]
    sources_GxN[group, : len(slots)] = slots - 1
  return MicroBatch(
    tokens_BxL,
    segments_BxL,
    numbers_BxL,
    targets_GxN,
    sources_GxN,
    is_target_GxN.sum(axis=1, dtype=np.int32),
  )


def bucket(length: int) -> int:
  """The padded length for a batch: the next in a short list.

  Depends only on the batch, so a step is the same whatever other cells the
  study has. Above 32, each exceeds the one before by at most half: 16, 32, 48,
  64, 96, 128, 192, ... 512, 768, 1024, 1536, ...
  """
  for size in _LENGTHS:
    if length <= size:
      return size
  size = _LENGTHS[-1]
  while size < length:
    if length <= size * 3 // 2:
      return size * 3 // 2
    size *= 2
  return size
