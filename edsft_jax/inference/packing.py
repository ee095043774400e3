"""Packs sequences into rows of few lengths, which need little padding.

A row holds several sequences, one after the other. None attends to another.
Rows are short, since every token's attention is computed over a whole row;
longer ones are only for sequences that need them.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Limits on the sequences of a row: its length divided by the first, and the
# second. Results and a mask of the row are computed for the limit, however few
# sequences it has.
_MIN_LENGTH = 8
_MOST_SEQUENCES = 64


@dataclasses.dataclass(frozen=True)
class Packed:
  """Rows that are read by one call.

  Attributes:
    rows: the sequences of each row, by index.
    length: tokens per row, L.
    num_rows: number of rows with padding, B.
  """

  rows: list[list[int]]
  length: int
  num_rows: int

  @property
  def indices(self) -> list[int]:
    """The sequences of all rows."""
    return [index for row in self.rows for index in row]

  @property
  def places(self) -> tuple[list[int], list[int]]:
    """The row of each sequence, and its number in that row, from 0."""
    return (
      [number for number, row in enumerate(self.rows) for _ in row],
      [place for row in self.rows for place in range(len(row))],
    )


def most_sequences(row_length: int, shortest: int = 1) -> int:
  """Number of sequences that a row of this length may have, S.

  Args:
    row_length: tokens per row.
    shortest: tokens of the shortest sequence.
  """
  most = row_length // max(shortest, _MIN_LENGTH)
  return min(max(most, 1), _MOST_SEQUENCES)


def row_lengths(
  lengths: Sequence[int],
  *,
  shortest: int,
  step: int,
  key_cost: float,
  compile_tokens: float,
) -> tuple[int, ...]:
  """Chooses the lengths of rows for sequences of these lengths.

  The longest row holds the longest sequence; the others are about half, a
  quarter ... as long. One is left out if the attention that it saves takes less
  time than compiling a program.

  Args:
    lengths: tokens of each sequence.
    shortest: tokens of the shortest rows, about.
    step: row lengths are multiples of this.
    key_cost: time to attend to one more key, as a share of the time for a token
      without attention.
    compile_tokens: see `ShapeOptions`.

  Returns:
    Tokens per row, ascending.
  """
  length_N = np.maximum(lengths, 1)
  longest = max(length_N.max(), min(shortest, length_N.sum()))
  num_halves = max(round(np.log2(longest / shortest)), 0)
  candidates = [
    int(-(-longest // (step * 2**i)) * step) for i in range(num_halves, -1, -1)
  ]
  chosen: list[int] = []
  num_tokens = 0
  place_N = np.searchsorted(candidates, length_N)
  for place, length in enumerate(candidates[:-1]):
    num_tokens += int(length_N[place_N == place].sum())
    # On average, half of a row's keys come before a token.
    num_keys = (candidates[place + 1] - length) / 2
    if num_tokens * num_keys * key_cost > compile_tokens:
      chosen.append(length)
      num_tokens = 0
  return (*chosen, candidates[-1])


class Row(NamedTuple):
  """A packed row: its length, and the sequences by index."""

  length: int
  sequences: list[int]


def pack(
  lengths: Sequence[int],
  targets: Sequence[int],
  groups: Sequence[Sequence[int]],
  most: Callable[[int], float],
) -> list[Row]:
  """Packs sequences, the longest first, where they leave the least room.

  Args:
    lengths: tokens of each sequence.
    targets: tokens that rows are filled up to, ascending.
    groups: indices of sequences that may share a row.
    most: target of a row -> sequences that it may have, see `most_sequences`.

  Returns:
    The rows, each as long as its sequences together.

  Raises:
    ValueError: a sequence is longer than every row.
  """
  rows: list[Row] = []
  for group in groups:
    rows += _pack_group(lengths, group, targets, most)
  return rows


def calls(
  rows: Sequence[Row],
  num_rows: Callable[[int], int],
  most: float = math.inf,
) -> list[Packed]:
  """The calls that read rows, those with the longest ones first.

  A call that would not be full takes shorter rows as well, whose place would
  otherwise be empty.

  Args:
    rows: packed rows.
    num_rows: tokens per row -> rows per call.
    most: sequences per call at most; not fewer than in one row.
  """
  result: list[Packed] = []
  num_sequences = 0
  for row in sorted(rows, key=lambda row: -row.length):
    num_sequences += len(row.sequences)
    last = result[-1] if result else None
    if last is None or len(last.rows) == last.num_rows or num_sequences > most:
      last = Packed([], row.length, num_rows(row.length))
      result.append(last)
      num_sequences = len(row.sequences)
    last.rows.append(row.sequences)
  return result


def _pack_group(
  lengths: Sequence[int],
  group: Sequence[int],
  targets: Sequence[int],
  most: Callable[[int], float],
) -> list[Row]:
  rows: list[list[int]] = []
  targets_of_rows: list[int] = []
  # (room, number) of the rows that take more sequences.
  has_room: list[tuple[int, int]] = []
  for index in sorted(group, key=lambda i: -lengths[i]):
    size = lengths[index]
    at = bisect.bisect_left(has_room, (size, 0))
    if at < len(has_room):
      room, number = has_room.pop(at)
    else:
      place = bisect.bisect_left(targets, size)
      if place == len(targets):
        raise ValueError(
          f'a prompt has {size} tokens, the shapes are for at most '
          f'{targets[-1]}'
        )
      room, number = targets[place], len(rows)
      rows.append([])
      targets_of_rows.append(room)
    rows[number].append(index)
    if len(rows[number]) < most(targets_of_rows[number]):
      bisect.insort(has_room, (room - size, number))
  return [Row(sum(lengths[i] for i in row), row) for row in rows]


def fill(
  packed: Packed, sequences: Mapping[int, Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32 [B, L] and segments, see `models.Decoder.packed`."""
  tokens = np.zeros((packed.num_rows, packed.length), np.int32)
  segments = np.zeros((packed.num_rows, packed.length), np.int32)
  for number, row in enumerate(packed.rows):
    end = 0
    for segment, index in enumerate(row, start=1):
      start, end = end, end + len(sequences[index])
      tokens[number, start:end] = sequences[index]
      segments[number, start:end] = segment
  return tokens, segments


def sequence_masks(segments_BxL: jax.Array, num_segments: int) -> jax.Array:
  """Bool [B, S, L], true at the tokens of each sequence of packed rows."""
  segment_S = 1 + jnp.arange(num_segments)
  return segments_BxL[:, None] == segment_S[:, None]
