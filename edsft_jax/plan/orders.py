"""The selections that exist, as far as the plan's budgets."""

from collections.abc import Sequence
import dataclasses

import ml_collections

from edsft_jax import store, study


@dataclasses.dataclass(frozen=True)
class Orders:
  """Picks of the strategies.

  Attributes:
    budgets: ascending.
    ids: strategy -> seed -> ids in order, at least the largest budget; only for
      strategies whose orders all exist.
    missing: the other strategies.
  """

  budgets: Sequence[int]
  ids: dict[str, dict[int, list[str]]]
  missing: list[str]

  @property
  def largest(self) -> int:
    """The largest budget."""
    return self.budgets[-1]

  @property
  def lists(self) -> dict[str, list[list[str]]]:
    """Strategy -> its different orders; often there is one for all seeds."""
    return {
      name: [
        list(order)
        for order in dict.fromkeys(map(tuple, self.ids[name].values()))
      ]
      for name in self.ids
    }


def read(config: ml_collections.ConfigDict, workdir: store.Workdir) -> Orders:
  """Reads the orders of the study's strategies."""
  budgets = sorted(config.study.budgets)
  ids: dict[str, dict[int, list[str]]] = {}
  missing = []
  for name in config.selection.strategies:
    seeds = study.seeds(config, name)
    found = {
      seed: study.selected_ids(workdir, name, seed)[: budgets[-1]]
      for seed in seeds
      if workdir.selection(name, seed).exists()
    }
    if [len(order) for order in found.values()] == [budgets[-1]] * len(seeds):
      ids[name] = found
    else:
      missing.append(name)
  return Orders(budgets, ids, missing)
