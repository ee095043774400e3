"""The part of the pool that each seed chooses from.

With study.pool_fraction below 1.0, the pool is shuffled once and cut, so that
the parts of different seeds are disjoint. All strategies of a seed choose
from the same part. With the whole pool, a deterministic strategy would choose
the same prompts for every seed.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import ml_collections
import numpy as np

from edsft_jax import errors, store, study


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of a pool.

  Attributes:
    fraction: the share of the pool in each part.
    places: seed -> the number of its part, from 0.
    sizes: prompts in the first pool, then those that each round appended.
  """

  fraction: float
  places: Mapping[int, int]
  sizes: Sequence[int]

  def positions(self, place: int) -> np.ndarray:
    """Positions in the pool of a part's prompts, ascending.

    Appended prompts are shuffled and cut separately, so that a part keeps its
    earlier prompts.
    """
    found = []
    start = 0
    for number, size in enumerate(self.sizes):
      share = num_prompts(self.fraction, size)
      order = start + np.random.default_rng(number).permutation(size)
      found.append(np.sort(order[place * share : (place + 1) * share]))
      start += size
    return np.concatenate(found)

  def of_seed(self, seed: int) -> np.ndarray | None:
    """Positions of a seed's prompts; None for the whole pool."""
    return None if self.fraction == 1 else self.positions(self.places[seed])

  def first(self) -> np.ndarray | None:
    """Positions of the first part; None for the whole pool."""
    return None if self.fraction == 1 else self.positions(0)


def num_prompts(fraction: float, size: int) -> int:
  """How many of `size` prompts a part has."""
  # 0.1 * 30 is a little less than 3.
  return int(fraction * size + 1e-9)


def read(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool_size: int,
  rounds: Sequence[store.Round],
) -> Parts:
  """The parts of the study's seeds; keeps those in selections/parts.json.

  Args:
    config: the study.
    workdir: it may have earlier parts.
    pool_size: prompts in the pool.
    rounds: the earlier states of the pool, before prompts were appended.

  Raises:
    InputError: the workdir's parts have another fraction, or too few are left
      for further seeds.
  """
  fraction = config.study.pool_fraction
  ends = [*(r.prompts for r in rounds), pool_size]
  sizes = np.diff([0, *ends]).tolist()
  if fraction == 1:
    return Parts(fraction, {}, sizes)
  places: dict[int, int] = {}
  if workdir.parts.exists():
    known = store.read_json(workdir.parts)
    store.refuse_change(
      f'{workdir.parts}',
      {'study.pool_fraction': known['fraction']},
      {'study.pool_fraction': fraction},
      'set it back or use another --workdir',
    )
    places = {seed: place for place, seed in enumerate(known['seeds'])}
  for seed in study.all_seeds(config):
    places.setdefault(seed, len(places))
  if not study.parts_fit(fraction, len(places)):
    raise errors.InputError(
      f'study.pool_fraction is {fraction:g}, and the parts of seeds '
      f'{", ".join(map(str, places))} together exceed the pool: earlier seeds '
      'keep their parts in this workdir; use another --workdir'
    )
  return Parts(fraction, places, sizes)


def write(workdir: store.Workdir, parts: Parts) -> None:
  """Records which seed has which part, unless all have the whole pool."""
  if parts.fraction == 1:
    return
  contents = {'fraction': parts.fraction, 'seeds': list(parts.places)}
  if not workdir.parts.exists() or store.read_json(workdir.parts) != contents:
    store.write_json(workdir.parts, contents)
