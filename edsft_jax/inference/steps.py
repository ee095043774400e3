"""Divides prompts among workers, and into steps that are read together."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import math
from typing import NamedTuple

from edsft_jax.inference import packing
from edsft_jax.inference.shapes import BatchSizes
from edsft_jax.inference.waves import Row, Wave


class Step(NamedTuple):
  """Prompts to prefill next.

  Attributes:
    wave: the number of their wave.
    packed: the prompts, by the index of their rows.
    num_prompts: prompts that each packed row may have.
    cache_length: entries per slot for prompts, once they are inserted.
  """

  wave: int
  packed: packing.Packed
  num_prompts: int
  cache_length: int


@dataclasses.dataclass(frozen=True)
class Steps:
  """Chooses the steps of each worker.

  Attributes:
    sizes: the sizes of a worker's batch.
    num_workers: number of workers.
    cache_length: tokens of a prompt, those of its padded prefix included ->
      cache entries.
  """

  sizes: BatchSizes
  num_workers: int
  cache_length: Callable[[int], int]

  def of_worker(self, waves: Sequence[Wave], worker: int) -> list[Step]:
    """A worker's share of the rows of each wave, the shortest first.

    Args:
      waves: the waves, in rows of one index each.
      worker: which one, from 0.
    """
    shares = [
      # Turns, so that no worker always gets the larger share.
      self._share(wave, (worker + number) % self.num_workers)
      for number, wave in enumerate(waves)
    ]
    longest = max((n for share in shares for n in share), default=0)
    num_rows = sum(len(some) for share in shares for some in share.values())
    # If all rows fit into the slots at once, no row needs to move.
    least = longest if num_rows <= self.sizes.num_slots(longest) else 0
    steps: list[Step] = []
    for number, (wave, share) in enumerate(zip(waves, shares, strict=True)):
      # Rows only move to longer caches.
      by_length: dict[int, list[Row]] = {}
      for cache_length, some in sorted(share.items()):
        by_length.setdefault(max(cache_length, least), []).extend(some)
      for cache_length, some in by_length.items():
        steps += self._pack(number, wave, some, cache_length)
      least = max(by_length, default=least)
    return steps

  def num_rows(self, wave: Wave, length: int) -> int:
    """Packed rows of this length per call."""
    num_tokens = wave.most_tokens / self.num_workers
    total = wave.shapes.num_rows(length, num_tokens)
    return self.sizes.to_pack(length, total)

  def _share(self, wave: Wave, worker: int) -> dict[int, list[Row]]:
    """A worker's share of the rows of a wave, by cache length."""
    groups: list[list[Row]] = []
    for places in wave.groups:
      group = [wave.rows[i] for i in places]
      # Rows that follow the same prefix can share a packed row.
      if _num_tokens(group) < self.num_workers * wave.shapes.targets[0]:
        groups.append(group)
      else:
        groups += [[row] for row in group]
    groups.sort(key=_num_tokens)
    share: dict[int, list[Row]] = {}
    # Strided over the sorted rows, so that workers get equal shares.
    for row in itertools.chain(*groups[worker :: self.num_workers]):
      length = self.cache_length(wave.length + len(row.own))
      share.setdefault(length, []).append(row)
    return share

  def _pack(
    self, number: int, wave: Wave, rows: Sequence[Row], cache_length: int
  ) -> list[Step]:
    """Packs some rows of a wave, to be decoded with this cache length."""
    num_slots = self.sizes.num_slots(cache_length)
    # So that a step does not have to wait until all slots are free.
    most = max(-(-num_slots // 2), self.sizes.multiple)

    def num_rows(length: int) -> int:
      enough = self.sizes.up(math.ceil(most * wave.shapes.mean / length))
      return min(self.num_rows(wave, length), enough)

    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
      groups.setdefault(row.prefix_index, []).append(place)
    packed_rows = wave.shapes.pack(
      [len(row.own) for row in rows], [*groups.values()], most
    )
    by_index = [
      row._replace(sequences=[rows[i].indices[0] for i in row.sequences])
      for row in packed_rows
    ]
    return [
      Step(
        number,
        packed,
        wave.shapes.most_sequences(packed.length),
        cache_length,
      )
      for packed in packing.calls(by_index, num_rows, most)
    ]


def _num_tokens(rows: Sequence[Row]) -> int:
  """Tokens after the prefix."""
  return sum(len(row.own) for row in rows)
