"""How well picks cover the prompts that they were chosen from."""

from collections.abc import Sequence
import dataclasses

import ml_collections
import numpy as np

from edsft_jax import selection, store, study
from edsft_jax.plan.orders import Orders
from edsft_jax.strategies import parts
from edsft_jax.strategies.registry import RANDOM

# Distances computed at once; limits temporary arrays.
_MAX_DISTANCES = 2**24


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Distances of prompts to their nearest picks, by budget; means over lists.

  Attributes:
    radius: the largest distance.
    mean: the mean distance.
  """

  radius: Sequence[float]
  mean: Sequence[float]


def measure(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> dict[str, Coverage]:
  """Strategy -> coverage; random is drawn if it was not selected.

  Each seed's picks have to cover the part of the pool that it chooses from.
  """
  feature_NxD = store.read_features(workdir).astype(np.float64)
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  rounds = store.earlier_rounds(store.Manifest(workdir))
  split = parts.read(config, workdir, len(pool), rounds)
  lists = {
    name: {
      tuple(place[i] for i in ids): split.of_seed(seed)
      for seed, ids in by_seed.items()
    }
    for name, by_seed in orders.ids.items()
  }
  if RANDOM not in lists:
    lists = {RANDOM: {}, **lists}
    for seed in study.seeds(config, RANDOM):
      part = split.of_seed(seed)
      part = np.arange(len(pool)) if part is None else part
      order = selection.random(len(part), orders.largest, seed).indices
      lists[RANDOM][tuple(part[order].tolist())] = part
  return {
    name: _mean(
      [
        _coverage(
          feature_NxD if part is None else feature_NxD[part],
          feature_NxD[list(picks)],
          orders.budgets,
        )
        for picks, part in of_strategy.items()
      ]
    )
    for name, of_strategy in lists.items()
  }


def _mean(found: Sequence[Coverage]) -> Coverage:
  return Coverage(
    np.mean([one.radius for one in found], axis=0).tolist(),
    np.mean([one.mean for one in found], axis=0).tolist(),
  )


def _coverage(
  feature_NxD: np.ndarray, pick_MxD: np.ndarray, budgets: Sequence[int]
) -> Coverage:
  """The coverage of rows by the first picks, for ascending budgets."""
  # Distances among rows near the origin lose fewer digits.
  centre_D = feature_NxD.mean(0)
  row_NxD, pick_MxD = feature_NxD - centre_D, pick_MxD - centre_D
  row_N = (row_NxD**2).sum(1)
  nearest_N = np.full(len(row_NxD), np.inf)
  radius, mean = [], []
  step = max(1, _MAX_DISTANCES // len(row_NxD))
  start = 0
  for budget in budgets:
    while start < budget:
      block_PxD = pick_MxD[start : min(start + step, budget)]
      square_NxP = row_N[:, None] - 2 * row_NxD @ block_PxD.T
      square_NxP += (block_PxD**2).sum(1)
      nearest_N = np.minimum(nearest_N, square_NxP.min(1))
      start += len(block_PxD)
    distance_N = np.sqrt(np.maximum(nearest_N, 0))
    radius.append(float(distance_N.max()))
    mean.append(float(distance_N.mean()))
  return Coverage(radius, mean)
