"""Groups rows that share a prefix into waves, which are scored one by one."""

from collections.abc import Sequence
import dataclasses
import itertools

import jax

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference import workers
from edsft_jax.inference.engine import choose_shapes
from edsft_jax.inference.prefixes import can_share, find_groups

# Prefix tokens that are read, and kept, at a time; more for a longer prefix.
_POOL_TOKENS = 2048


@dataclasses.dataclass
class Row:
  """An input row, and the targets that are scored from it.

  Attributes:
    inputs: the tokens of its targets, but for their last one.
    num_scored: how many of the inputs are targets.
    indices: the targets.
    last: the last token of each target.
    prefix: number of tokens that are read as part of a prefix.
    slot: the place of its prefix among those that are read together.
  """

  inputs: tuple[int, ...]
  num_scored: int
  indices: list[int] = dataclasses.field(default_factory=list)
  last: list[int] = dataclasses.field(default_factory=list)
  prefix: int = 0
  slot: int = 0

  @property
  def own(self) -> tuple[int, ...]:
    """The inputs after the prefix."""
    return self.inputs[self.prefix :]


@dataclasses.dataclass(frozen=True)
class Wave:
  """Prefixes that are read together, and the rows that follow them.

  Attributes:
    prefixes: token ids of each; none for rows without a prefix.
    length: their padded length; 0 without.
    num_prefixes: number of prefixes, with padding.
    rows: the rows.
    shapes: padded lengths of the rows without their prefixes.
  """

  prefixes: list[tuple[int, ...]]
  length: int
  num_prefixes: int
  rows: list[Row]
  shapes: shapes_lib.Shapes


def plan(
  decoder: models.Decoder,
  mesh: jax.sharding.Mesh,
  parts: Sequence[list[Row]],
  num_passes: int,
) -> list[list[Wave]]:
  """The waves of each part; sets the rows' prefixes and slots.

  All parts have the same shapes, so that they share programs.

  Args:
    decoder: the model.
    mesh: the devices.
    parts: rows that are scored by one call.
    num_passes: see `choose_shapes`.
  """

  def choose(lengths: list[int]) -> shapes_lib.Shapes:
    return choose_shapes(decoder, mesh, lengths, num_passes)

  grouped = [_grouped(decoder, rows) for rows in parts]
  prefixes = [g[0].prefix for groups in grouped for g in groups if g[0].prefix]
  shapes = choose(prefixes or [1])
  by_length = [_by_prefix_length(groups, shapes) for groups in grouped]
  waves: list[list[Wave]] = [[] for _ in parts]
  for length in sorted(set().union(*by_length)):
    some = [found.get(length, []) for found in by_length]
    shapes = choose([len(row.own) for gs in some for g in gs for row in g])
    if length:
      # Parts share programs only if each wave has as many prefixes.
      most = min(max(_POOL_TOKENS // length, 1), max(map(len, some)))
      multiple = mesh_lib.batch_multiple(mesh)
      size = -(-most // multiple) * multiple
      new = [_with_prefixes(length, groups, shapes, size) for groups in some]
    else:
      num_workers = workers.num_workers(mesh)
      new = [_without_prefixes(groups, shapes, num_workers) for groups in some]
    for of_part, more in zip(waves, new, strict=True):
      of_part += more
  return waves


def _grouped(decoder: models.Decoder, rows: list[Row]) -> list[list[Row]]:
  """Rows that share a prefix together; sets their `prefix`."""
  if not can_share(decoder.config):
    return [[row] for row in rows]
  # The token before the first target may not be in the prefix.
  shared = find_groups(
    [row.inputs[: len(row.inputs) - row.num_scored - 1] for row in rows]
  )
  for group in shared:
    for i in group.indices:
      rows[i].prefix = group.length
  return [[rows[i] for i in group.indices] for group in shared]


def _by_prefix_length(
  groups: list[list[Row]], shapes: shapes_lib.Shapes
) -> dict[int, list[list[Row]]]:
  """Padded length of the prefix -> groups; 0: without a prefix."""
  result: dict[int, list[list[Row]]] = {}
  for group in sorted(groups, key=lambda group: group[0].prefix):
    prefix = group[0].prefix
    length = shapes.length(prefix) if prefix else 0
    result.setdefault(length, []).append(group)
  return result


def _without_prefixes(
  groups: list[list[Row]], shapes: shapes_lib.Shapes, num_workers: int
) -> list[Wave]:
  """A wave for each worker."""
  # Equal shares, of long rows and of short ones.
  rows = sorted(itertools.chain(*groups), key=lambda row: len(row.own))
  shares = [rows[n::num_workers] for n in range(num_workers)]
  return [Wave([], 0, 0, share, shapes) for share in shares if share]


def _with_prefixes(
  length: int, groups: list[list[Row]], shapes: shapes_lib.Shapes, size: int
) -> list[Wave]:
  """Waves of groups whose prefixes have the same padded length.

  Args:
    length: that length.
    groups: rows of each prefix.
    shapes: padded lengths of the rows without their prefixes.
    size: prefixes per wave, with padding.
  """
  waves = []
  for start in range(0, len(groups), size):
    some = groups[start : start + size]
    for slot, group in enumerate(some):
      for row in group:
        row.slot = slot
    prefixes = [group[0].inputs[: group[0].prefix] for group in some]
    rows = [row for group in some for row in group]
    waves.append(Wave(prefixes, length, size, rows, shapes))
  return waves
