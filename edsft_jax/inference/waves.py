"""Groups rows by common prefixes, in waves that read prefixes together."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import itertools

import jax
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import packing
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference.choices import choose_shapes, compile_tokens
from edsft_jax.inference.prefixes import Group, can_share, find_groups
from edsft_jax.inference.throughput import Span

# Limit on padded lengths of prefixes, each with a program that reads them.
_MAX_LENGTHS = 8


@dataclasses.dataclass
class Row:
  """An input row: a prompt, or what targets are scored from, or both.

  Attributes:
    inputs: the prompt's tokens, then those of the targets except their last.
    num_scored: how many of the inputs are targets.
    indices: the targets, or the prompt.
    last: the last token of each target; none if nothing is scored.
    prefix_length: number of tokens that are read as part of a prefix.
    prefix_index: which of its wave's prefixes it follows.
  """

  inputs: tuple[int, ...]
  num_scored: int = 0
  indices: list[int] = dataclasses.field(default_factory=list)
  last: list[int] = dataclasses.field(default_factory=list)
  prefix_length: int = 0
  prefix_index: int = 0

  @classmethod
  def of_prompt(
    cls,
    index: int,
    ids: Sequence[int] | np.ndarray,
    prefix_length: int = 0,
    reference: Sequence[int] = (),
  ) -> 'Row':
    """The row of a prompt, and of a reference to score after it."""
    inputs = (*np.asarray(ids).tolist(), *reference[:-1])
    return cls(
      inputs,
      num_scored=len(reference[:-1]),
      indices=[index],
      last=[*reference[-1:]],
      prefix_length=prefix_length,
    )

  @property
  def own(self) -> tuple[int, ...]:
    """The inputs after the prefix."""
    return self.inputs[self.prefix_length :]

  @property
  def num_prompt_tokens(self) -> int:
    """Number of inputs before the targets."""
    return len(self.inputs) - self.num_scored

  def span(self, num_scored: int) -> Span:
    """What is read after the prefix."""
    return Span(self.prefix_length, len(self.inputs), num_scored)


@dataclasses.dataclass(frozen=True)
class Wave:
  """Prefixes that are read together, and the rows that follow them.

  Attributes:
    prefixes: token ids of each; none for rows without a prefix.
    length: their padded length; 0 without.
    num_prefixes: number of prefixes, with padding.
    rows: the rows.
    shapes: shapes for the rows without their prefixes.
    most_tokens: tokens after the prefixes of any wave that shares programs
      with this one, at most.
  """

  prefixes: list[tuple[int, ...]]
  length: int
  num_prefixes: int
  rows: list[Row]
  shapes: shapes_lib.Shapes
  most_tokens: int = 0

  @property
  def num_tokens(self) -> int:
    """Tokens after the prefixes."""
    return sum(len(row.own) for row in self.rows)

  @property
  def groups(self) -> list[list[int]]:
    """The rows that follow each prefix, or all, by their place in `rows`."""
    groups: list[list[int]] = [[] for _ in range(max(len(self.prefixes), 1))]
    for place, row in enumerate(self.rows):
      groups[row.prefix_index].append(place)
    return groups

  def padded_prefixes(self) -> tuple[np.ndarray, np.ndarray]:
    """The prefixes' tokens [N, P] and mask; see `pad_left`."""
    return shapes_lib.pad_left(self.prefixes, self.length, self.num_prefixes)


def fill(
  packed: packing.Packed, rows: Sequence[Row]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Prefixes [B] of packed rows, and what `packing.fill` returns.

  Args:
    packed: indices into `rows`.
    rows: the sequences; those of a packed row follow the same prefix.
  """
  prefix_B = np.zeros(packed.num_rows, np.int32)
  for number, (index, *_) in enumerate(packed.rows):
    prefix_B[number] = rows[index].prefix_index
  own = {index: rows[index].own for index in packed.indices}
  return prefix_B, *packing.fill(packed, own)


def fill_scored(
  packed: packing.Packed,
  rows: Sequence[Row],
  num_sequences: int,
  num_choices: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
  """What `row_likelihood` scores of packed rows.

  Args:
    packed: indices into `rows`.
    rows: the sequences.
    num_sequences: S, that each packed row may have.
    num_choices: C, last tokens that each sequence may have.

  Returns:
    How many inputs are targets [B, S], and the last tokens [B, S, C].
  """
  num_scored_BxS = np.zeros((packed.num_rows, num_sequences), np.int32)
  last_BxSxC = np.zeros((*num_scored_BxS.shape, num_choices), np.int32)
  for number, indices in enumerate(packed.rows):
    for place, row in enumerate(rows[index] for index in indices):
      num_scored_BxS[number, place] = row.num_scored
      last_BxSxC[number, place, : len(row.last)] = row.last
  return num_scored_BxS, last_BxSxC


def plan(
  decoder: models.Decoder,
  mesh: jax.sharding.Mesh,
  parts: Sequence[list[Row]],
  groups: Sequence[Sequence[Group]],
  *,
  num_passes: int,
  max_prefix_tokens: int,
  min_saved: float = 0.0,
  continued: bool = False,
) -> list[list[Wave]]:
  """The waves of each part; sets the rows' prefixes.

  All parts have the same shapes, so that they share programs.

  Args:
    decoder: the model.
    mesh: the devices.
    parts: rows that are run by one call.
    groups: the rows of each part that may share a prefix, see `find`.
    num_passes: see `choose_shapes`.
    max_prefix_tokens: prefix tokens per wave, more for one that is longer.
    min_saved: tokens that prefixes must save for each of their padded lengths;
      otherwise, nothing is shared.
    continued: see `Shapes.of`.
  """
  prefixes = [group for part in groups for group in part if group.length]
  lengths = shapes_lib.padded_lengths(
    [group.length for group in prefixes] or [1],
    _MAX_LENGTHS,
    compile_tokens(decoder, mesh) / num_passes,
  )
  num_saved = sum(group.num_saved for group in prefixes)
  if num_saved < min_saved * len(lengths):
    groups = [_alone(rows) for rows in parts]
  grouped = [
    _with_lengths(rows, some) for rows, some in zip(parts, groups, strict=True)
  ]
  by_length = [_by_prefix_length(part, lengths) for part in grouped]
  waves: list[list[Wave]] = [[] for _ in parts]
  for length in sorted(set().union(*by_length)):
    some = [found.get(length, []) for found in by_length]
    own = [[len(row.own) for row in group] for part in some for group in part]
    # Rows that follow different prefixes do not share a packed row.
    shapes = choose_shapes(
      decoder,
      mesh,
      [*itertools.chain(*own)],
      num_passes,
      _places(map(len, own)) if length else None,
      continued,
    )
    if length:
      # Parts share programs only if their waves have equally many prefixes.
      most = min(max(max_prefix_tokens // length, 1), max(map(len, some)))
      multiple = mesh_lib.batch_multiple(mesh)
      size = -(-most // multiple) * multiple
      new = [_with_prefixes(length, part, shapes, size) for part in some]
    else:
      new = [_without_prefixes(part, shapes) for part in some]
    num_tokens = max(wave.num_tokens for wave in itertools.chain(*new))
    for of_part, more in zip(waves, new, strict=True):
      of_part += [dataclasses.replace(w, most_tokens=num_tokens) for w in more]
  return waves


def find(
  decoder: models.Decoder, parts: Sequence[list[Row]]
) -> list[list[Group]]:
  """Groups of each part's rows, by what they may read as a prefix."""
  if not can_share(decoder.config):
    return [_alone(rows) for rows in parts]
  # The token before the first target may not be in the prefix.
  return [
    find_groups([row.inputs[: row.num_prompt_tokens - 1] for row in rows])
    for rows in parts
  ]


def without(
  groups: Sequence[Group], is_dropped: Callable[[Group], bool]
) -> list[Group]:
  """The groups, of which the dropped ones share nothing."""
  result: list[Group] = []
  for group in groups:
    if is_dropped(group):
      result += [Group([i], 0) for i in group.indices]
    else:
      result.append(group)
  return result


def _places(sizes: Iterable[int]) -> list[range]:
  """The places of each group's rows, one group after the other."""
  ends = [*itertools.accumulate(sizes, initial=0)]
  return [range(start, end) for start, end in itertools.pairwise(ends)]


def _alone(rows: Sequence[Row]) -> list[Group]:
  return [Group([i], 0) for i in range(len(rows))]


def _with_lengths(
  rows: Sequence[Row], groups: Sequence[Group]
) -> list[list[Row]]:
  """The rows of each group; sets their `prefix_length`, resets the index."""
  for group in groups:
    for i in group.indices:
      rows[i].prefix_length = group.length
      rows[i].prefix_index = 0
  return [[rows[i] for i in group.indices] for group in groups]


def _by_prefix_length(
  groups: list[list[Row]], lengths: Sequence[int]
) -> dict[int, list[list[Row]]]:
  """Padded length of the prefix -> groups; 0: without a prefix."""
  result: dict[int, list[list[Row]]] = {}
  for group in sorted(groups, key=lambda group: group[0].prefix_length):
    prefix = group[0].prefix_length
    length = shapes_lib.smallest(lengths, prefix) if prefix else 0
    result.setdefault(length, []).append(group)
  return result


def _without_prefixes(
  groups: list[list[Row]], shapes: shapes_lib.Shapes
) -> list[Wave]:
  """One wave, if there are any rows."""
  rows = [*itertools.chain(*groups)]
  return [Wave([], 0, 0, rows, shapes)] if rows else []


def _with_prefixes(
  length: int, groups: list[list[Row]], shapes: shapes_lib.Shapes, size: int
) -> list[Wave]:
  """Waves of groups whose prefixes have the same padded length.

  Args:
    length: that length.
    groups: rows of each prefix.
    shapes: shapes for the rows without their prefixes.
    size: prefixes per wave, with padding.
  """
  waves = []
  for start in range(0, len(groups), size):
    some = groups[start : start + size]
    for index, group in enumerate(some):
      for row in group:
        row.prefix_index = index
    prefixes = [group[0].inputs[: group[0].prefix_length] for group in some]
    rows = [row for group in some for row in group]
    waves.append(Wave(prefixes, length, size, rows, shapes))
  return waves
