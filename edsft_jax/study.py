"""The study: its grid of cells, strategy x budget x seed."""

from collections.abc import Sequence
import dataclasses

import ml_collections

from edsft_jax import errors, store
from edsft_jax.strategies import registry

FULL_POOL = 'full_pool'
NO_FINETUNING = 'no_finetuning'


@dataclasses.dataclass(frozen=True)
class Cell:
  """One finetuning run, on the first `budget` prompts of a strategy."""

  strategy: str
  budget: int
  seed: int

  @property
  def name(self) -> str:
    """The name of its folder."""
    return f'{self.strategy}-k{self.budget}-seed{self.seed}'


def cells(config: ml_collections.ConfigDict) -> list[Cell]:
  """Every strategy at every budget for every seed."""
  return [
    Cell(strategy, budget, seed)
    for strategy in config.selection.strategies
    for budget in sorted(config.study.budgets)
    for seed in config.study.seeds
  ]


def full_pool_cells(
  config: ml_collections.ConfigDict, num_prompts: int
) -> list[Cell]:
  """The cells finetuned on the whole pool; none unless study.full_pool."""
  if not config.study.full_pool:
    return []
  return [Cell(FULL_POOL, num_prompts, seed) for seed in config.study.seeds]


def no_finetuning_cell() -> Cell:
  """The cell of the pretrained model, without finetuning."""
  return Cell(NO_FINETUNING, 0, 0)


def check(config: ml_collections.ConfigDict) -> None:
  """Rejects unknown strategies and bad budgets and seeds.

  Raises:
    InputError: naming the option.
  """
  _check_strategies(config.selection.strategies)
  _check_integers('study.budgets', config.study.budgets, least=1)
  _check_integers('study.seeds', config.study.seeds, least=0)
  for seed in config.study.seeds:
    if seed >= 2**32:  # JAX would wrap it around to another seed.
      raise errors.InputError(
        f'study.seeds has {seed}: seeds must be below 2^32'
      )


def _check_strategies(names: Sequence[str]) -> None:
  if not names:
    raise errors.InputError('selection.strategies is empty: name at least one')
  for name in names:
    if name not in registry.STRATEGIES:
      raise errors.unknown(
        f'selection.strategies has {name!r}, which', name, registry.STRATEGIES
      )
  if len(set(names)) != len(names):
    raise errors.InputError(
      f'selection.strategies has duplicates ({", ".join(names)}): name each '
      'once'
    )


def _check_integers(name: str, values: Sequence[int], least: int) -> None:
  if not values:
    raise errors.InputError(f'{name} is empty: give at least one')
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise errors.InputError(
        f'{name} has {value!r}: give whole numbers of at least {least}'
      )
  if len(set(values)) != len(values):
    raise errors.InputError(
      f'{name} has duplicates ({", ".join(map(str, values))}): give each once'
    )


def selected_ids(workdir: store.Workdir, strategy: str, seed: int) -> list[str]:
  """Ids in greedy order, up to the largest budget selected so far."""
  path = workdir.selection(strategy, seed)
  return [row['id'] for row in store.read_jsonl(path)]
