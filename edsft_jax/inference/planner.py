"""Plans how rows are read that are all known before the first one runs.

Sharing a prefix saves its tokens, but needs more programs, and more padding,
since rows that follow different prefixes cannot share a packed row. So the time
of a few plans is estimated by counting tokens, keys and programs.
"""

import collections
from collections.abc import Mapping, Sequence
import functools
import itertools
import math
from typing import NamedTuple

import jax

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import packing, waves
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference.choices import (
  compile_tokens,
  key_cost,
  read_tokens,
)
from edsft_jax.inference.prefixes import Group
from edsft_jax.inference.waves import Row, Wave

# Tokens that a prefix must save to be shared; the best of these is chosen.
_MIN_SAVED = (0.0, 256.0, 1024.0, 4096.0, math.inf)
# Prefix tokens that are read, and kept, at a time.
_MAX_PREFIX_TOKENS = 2048


class Planned(NamedTuple):
  """A wave with its packed rows.

  Attributes:
    wave: the prefixes and the rows that follow them.
    calls: the rows, packed.
  """

  wave: Wave
  calls: list[packing.Packed]

  def targets(self, packed: packing.Packed) -> list[int]:
    """Indices of the targets that a call scores."""
    rows = [self.wave.rows[i] for i in packed.indices]
    return [index for row in rows for index in row.indices]


class Planner:
  """Decides which prefixes to share, and packs the rows after them."""

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    parts: Sequence[list[Row]],
    batch_tokens: int,
    num_passes: int,
  ):
    self._decoder = decoder
    self._mesh = mesh
    self._parts = parts
    self._batch_tokens = batch_tokens
    self._num_passes = num_passes
    self._read_tokens = read_tokens(decoder, mesh)
    self._key_cost = key_cost(decoder)
    self._compile_tokens = compile_tokens(decoder, mesh) / num_passes
    self._groups = waves.find(decoder, parts)

  def cheapest(self) -> list[list[Planned]]:
    """The plan of each part that takes the least time, by count."""
    candidates = map(self._saving, _MIN_SAVED)
    cost, groups = min(
      ((self._cost_of(groups), groups) for groups in candidates),
      key=lambda found: found[0],
    )
    # Each padded length of prefixes adds programs: drop those that do not pay.
    lengths = {p.wave.length for part in self._plan(groups) for p in part} - {0}
    for shorter, length in itertools.pairwise([0, *sorted(lengths)]):
      fewer = [_without_lengths(part, shorter, length) for part in groups]
      if (of_fewer := self._cost_of(fewer)) < cost:
        cost, groups = of_fewer, fewer
    # Last, since it decides what the rows take as their prefixes.
    return self._plan(groups)

  def _saving(self, least: float) -> list[list[Group]]:
    """The groups whose prefixes save at least this many tokens."""
    return [
      waves.without(part, lambda group: group.num_saved < least)
      for part in self._groups
    ]

  def _plan(self, groups: Sequence[Sequence[Group]]) -> list[list[Planned]]:
    """The plan in which these groups share prefixes."""
    planned = waves.plan(
      self._decoder,
      self._mesh,
      self._parts,
      groups,
      num_passes=self._num_passes,
      max_prefix_tokens=_MAX_PREFIX_TOKENS,
    )
    packed = [[(wave, _packed(wave)) for wave in part] for part in planned]
    most_rows: dict[tuple[int, int], int] = {}
    for wave, rows in itertools.chain(*packed):
      for length, num in collections.Counter(r.length for r in rows).items():
        shape = wave.length, length
        most_rows[shape] = max(most_rows.get(shape, 0), num)
    return [
      [
        Planned(
          wave,
          packing.calls(
            rows, functools.partial(self._at_once, most_rows, wave)
          ),
        )
        for wave, rows in part
      ]
      for part in packed
    ]

  def _at_once(
    self, most_rows: Mapping[tuple[int, int], int], wave: Wave, length: int
  ) -> int:
    """Rows of this length per call; `most_rows`: the most in any wave."""
    most = most_rows[wave.length, length]
    sizes = shapes_lib.BatchSizes(
      self._batch_tokens,
      wave.length,
      mesh_lib.batch_multiple(self._mesh),
      most,
      self._read_tokens,
    )
    return min(sizes.to_pack(length, most), sizes.num_slots(length))

  def _cost_of(self, groups: Sequence[Sequence[Group]]) -> float:
    """Time to compile and run everything once, in tokens without attention."""
    programs: set[tuple[int, ...]] = set()
    cost = 0.0
    for wave, calls in itertools.chain(*self._plan(groups)):
      prefixes = wave.num_prefixes, wave.length
      if wave.prefixes:
        programs.add(prefixes)
        cost += self._cost_of_rows(wave.num_prefixes, wave.length, 0)
      for packed in calls:
        shape = packed.num_rows, packed.length
        programs.add((*prefixes, *shape))
        cost += self._cost_of_rows(*shape, wave.length)
    return cost + len(programs) * self._compile_tokens

  def _cost_of_rows(self, num_rows: int, length: int, num_before: int) -> float:
    # On average, half of a row's keys come before a token.
    num_keys = num_before + length / 2
    return num_rows * length * (1 + self._key_cost * num_keys)


def _packed(wave: Wave) -> list[packing.Row]:
  """The rows of a wave, packed after their prefixes."""
  return wave.shapes.pack([len(row.own) for row in wave.rows], wave.groups)


def _without_lengths(
  groups: Sequence[Group], above: int, up_to: int
) -> list[Group]:
  """The groups, of which those with prefixes of these lengths share nothing."""
  return waves.without(groups, lambda group: above < group.length <= up_to)
