"""Packs sequences into rows of few lengths, which need little padding.

A row holds several sequences, one after the other, that do not see each other.
Rows are short, since every token's attention is computed over a whole row;
longer ones are only for sequences that need them.
"""

import bisect
from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

# Sequences per row at most, as a share of its length: shorter ones leave some
# of the row empty.
_MIN_LENGTH = 8


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
  return max(row_length // max(shortest, _MIN_LENGTH), 1)


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


def pack(
  lengths: Sequence[int],
  shapes: Sequence[int],
  num_rows: Callable[[int, int], int],
  groups: Sequence[Sequence[int]] | None = None,
  shortest: int = 1,
) -> list[Packed]:
  """Packs sequences, the longest first, where they leave the least room.

  Args:
    lengths: tokens of each sequence.
    shapes: tokens per row to choose from, ascending.
    num_rows: (tokens per row, number of such rows) -> rows per call.
    groups: indices of sequences that may share a row; None: all may.
    shortest: see `most_sequences`.

  Returns:
    The calls, those with the longest rows first.

  Raises:
    ValueError: a sequence is longer than every row.
  """
  rows: list[tuple[int, list[int]]] = []
  for group in [range(len(lengths))] if groups is None else groups:
    rows += _pack_group(lengths, group, shapes, shortest)
  calls = []
  for length in reversed(shapes):
    some = [row for size, row in rows if size == length]
    at_once = num_rows(length, len(some))
    calls += [
      Packed(some[start : start + at_once], length, at_once)
      for start in range(0, len(some), at_once)
    ]
  return calls


def _pack_group(
  lengths: Sequence[int],
  group: Sequence[int],
  shapes: Sequence[int],
  shortest: int,
) -> list[tuple[int, list[int]]]:
  """Tokens per row, and the sequences of each row."""
  rows: list[tuple[int, list[int]]] = []
  # (room, number) of the rows that take more sequences.
  has_room: list[tuple[int, int]] = []
  for index in sorted(group, key=lambda i: -lengths[i]):
    size = lengths[index]
    at = bisect.bisect_left(has_room, (size, 0))
    if at < len(has_room):
      room, number = has_room.pop(at)
    else:
      place = bisect.bisect_left(shapes, size)
      if place == len(shapes):
        raise ValueError(
          f'a prompt has {size} tokens, the shapes are for at most {shapes[-1]}'
        )
      room, number = shapes[place], len(rows)
      rows.append((shapes[place], []))
    length, row = rows[number]
    row.append(index)
    if len(row) < most_sequences(length, shortest):
      bisect.insort(has_room, (room - size, number))
  return rows


def fill(
  packed: Packed, sequences: Sequence[Sequence[int]]
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
