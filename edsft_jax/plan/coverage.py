"""How well picks cover the prompts that they were chosen from."""

import ml_collections
import numpy as np

from edsft_jax import parts, selection, store, study
from edsft_jax.plan.orders import Orders
from edsft_jax.reporting import coverage
from edsft_jax.strategies.registry import RANDOM


def measure(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> dict[str, coverage.Coverage]:
  """Strategy -> coverage; random is drawn if it was not selected.

  Each seed's picks have to cover the part of the pool that it chooses from.
  """
  rounds = store.earlier_rounds(store.Manifest(workdir))
  split = parts.read(config, workdir, len(pool), rounds)
  lists = coverage.lists(pool, orders.ids, split)
  if RANDOM not in lists:
    lists = {RANDOM: [], **lists}
    for seed in study.seeds(config, RANDOM):
      part = split.of_seed(seed)
      positions = np.arange(len(pool)) if part is None else part
      order = selection.random(len(positions), orders.largest, seed).indices
      lists[RANDOM].append(coverage.Picks(positions[order], part))
  return coverage.measure(store.read_features(workdir), lists, orders.budgets)
