"""How well picks cover the prompts that they were chosen from."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from edsft_jax import parts, store

# Distances computed at once; limits temporary arrays.
_MAX_DISTANCES = 2**24
# Two prompts are near duplicates if their distance is at most this quantile of
# the distances to the nearest neighbour, measured for this many prompts.
_NEAR_QUANTILE = 0.05
_NUM_SAMPLED = 2000


@dataclasses.dataclass(frozen=True)
class Picks:
  """The picks of a strategy for a seed.

  Attributes:
    order: [M], positions in the pool, in greedy order.
    part: [P], positions of the prompts that it chose from; None: all.
  """

  order: np.ndarray
  part: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Distances of features by budget, each a mean over seeds.

  Attributes:
    radius: the largest distance of any prompt to its nearest pick.
    mean: the mean of these distances.
    near_duplicates: the share of picks that are near duplicates of an earlier
      one.
  """

  radius: Sequence[float]
  mean: Sequence[float]
  near_duplicates: Sequence[float]


def lists(
  pool: store.Prompts,
  orders: Mapping[str, Mapping[int, Sequence[str]]],
  split: parts.Parts,
) -> dict[str, list[Picks]]:
  """Strategy -> the picks of each seed, as positions in the pool.

  Args:
    pool: the prompts.
    orders: strategy -> seed -> ids in greedy order.
    split: the part of the pool that each seed chooses from.
  """
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  return {
    name: [
      Picks(np.array([place[i] for i in ids]), split.of_seed(seed))
      for seed, ids in by_seed.items()
    ]
    for name, by_seed in orders.items()
  }


def measure(
  features: np.ndarray,
  picked: Mapping[str, Sequence[Picks]],
  budgets: Sequence[int],
) -> dict[str, Coverage]:
  """Strategy -> how well its picks cover what they were chosen from.

  Args:
    features: [N, D], of the pool.
    picked: strategy -> picks of each seed, at least the largest budget.
    budgets: ascending.
  """
  # Distances among rows near the origin lose fewer digits.
  row_NxD = features.astype(np.float64)
  row_NxD -= row_NxD.mean(0)
  near = _near_distance(row_NxD)
  largest = budgets[-1]
  # Deterministic strategies often have one list for all seeds.
  part_of = {
    _key(one.part): one.part for some in picked.values() for one in some
  }
  found = {}
  for key, part in part_of.items():
    orders = {
      _key(one.order[:largest]): one.order[:largest]
      for some in picked.values()
      for one in some
      if _key(one.part) == key
    }
    covered_PxD = row_NxD if part is None else row_NxD[part]
    nearest = _nearest(covered_PxD, row_NxD, list(orders.values()), budgets)
    for (name, order), nearest_BxP in zip(orders.items(), nearest, strict=True):
      found[key, name] = np.array(
        [
          nearest_BxP.max(1),
          nearest_BxP.mean(1),
          _near_duplicates(row_NxD[order], near, budgets),
        ]
      )
  return {
    name: Coverage(
      *np.mean(
        [found[_key(one.part), _key(one.order[:largest])] for one in some],
        axis=0,
      ).tolist()
    )
    for name, some in picked.items()
  }


def _key(positions: np.ndarray | None) -> bytes | None:
  return None if positions is None else positions.tobytes()


def _nearest(
  covered_PxD: np.ndarray,
  row_NxD: np.ndarray,
  orders: Sequence[np.ndarray],
  budgets: Sequence[int],
) -> list[np.ndarray]:
  """Distances to the nearest of the first picks, [B, P] for each order.

  Strategies often have picks in common: distances to each are computed once.
  """
  pick_U = np.unique(np.concatenate(orders))
  # The first budget that has the pick; len(budgets) if none has.
  first = np.full((len(orders), len(pick_U)), len(budgets))
  for first_U, order_M in zip(first, orders, strict=True):
    first_U[np.searchsorted(pick_U, order_M)] = np.searchsorted(
      budgets, np.arange(1, len(order_M) + 1)
    )
  square_BxP = [
    np.full((len(budgets), len(covered_PxD)), np.inf) for _ in orders
  ]
  step = max(1, _MAX_DISTANCES // len(covered_PxD))
  for start in range(0, len(pick_U), step):
    block = slice(start, start + step)
    distance_PxU = _squares(covered_PxD, row_NxD[pick_U[block]])
    for least_BxP, first_U in zip(square_BxP, first[:, block], strict=True):
      for b in range(len(budgets)):
        columns = np.flatnonzero(first_U == b)
        if len(columns):
          np.minimum(
            least_BxP[b], distance_PxU[:, columns].min(1), out=least_BxP[b]
          )
  return [np.sqrt(np.minimum.accumulate(least)) for least in square_BxP]


def _squares(one_NxD: np.ndarray, other_MxD: np.ndarray) -> np.ndarray:
  """Squared distances, [N, M]."""
  square_NxM = -2 * one_NxD @ other_MxD.T
  square_NxM += (one_NxD**2).sum(1)[:, None]
  square_NxM += (other_MxD**2).sum(1)
  return np.maximum(square_NxM, 0, out=square_NxM)


def _near_distance(row_NxD: np.ndarray) -> float:
  """The distance up to which two prompts are near duplicates."""
  count = len(row_NxD)
  if count < 2:
    return 0.0
  chosen = np.random.default_rng(0).permutation(count)[:_NUM_SAMPLED]
  nearest = []
  step = max(1, _MAX_DISTANCES // count)
  for start in range(0, len(chosen), step):
    rows = chosen[start : start + step]
    square_SxN = _squares(row_NxD[rows], row_NxD)
    square_SxN[np.arange(len(rows)), rows] = np.inf
    nearest.append(np.sqrt(square_SxN.min(1)))
  return float(np.quantile(np.concatenate(nearest), _NEAR_QUANTILE))


def _near_duplicates(
  pick_MxD: np.ndarray, near: float, budgets: Sequence[int]
) -> list[float]:
  """The share of the first picks that are near an earlier one."""
  count = len(pick_MxD)
  is_near_M = np.zeros(count, bool)
  step = max(1, _MAX_DISTANCES // count)
  for start in range(0, count, step):
    end = min(start + step, count)
    square = _squares(pick_MxD[start:end], pick_MxD[:end])
    earlier = np.arange(end) < np.arange(start, end)[:, None]
    is_near_M[start:end] = ((square <= near**2) & earlier).any(1)
  return [float(is_near_M[:budget].mean()) for budget in budgets]
