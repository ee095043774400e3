"""The study: its grid of cells, strategy x budget x seed."""

from collections.abc import Container, Mapping, Sequence
import dataclasses
from typing import Any

import ml_collections

from edsft_jax import config as config_lib
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


def seeds(config: ml_collections.ConfigDict, strategy: str) -> tuple[int, ...]:
  """The seeds of a strategy; random may have its own."""
  if strategy == registry.RANDOM and config.study.random_seeds:
    return tuple(config.study.random_seeds)
  return tuple(config.study.seeds)


def all_seeds(config: ml_collections.ConfigDict) -> list[int]:
  """The seeds of all strategies, each once; those of study.seeds first."""
  names = sorted(
    config.selection.strategies, key=lambda name: name == registry.RANDOM
  )
  return list(dict.fromkeys(s for name in names for s in seeds(config, name)))


def lists_differ(
  config: ml_collections.ConfigDict, row: registry.Strategy
) -> bool:
  """Whether a strategy chooses other prompts for each seed."""
  return row.is_seeded(config) or config.study.pool_fraction < 1


def parts_fit(fraction: float, count: int) -> bool:
  """Whether that many disjoint parts fit into the pool."""
  return fraction == 1 or fraction * count <= 1 + 1e-9


@dataclasses.dataclass(frozen=True)
class CellPart:
  """The I-th of N parts of the cells, for a machine that shares the workdir.

  Attributes:
    index: I, from 0.
    count: N.
  """

  index: int
  count: int

  @classmethod
  def parse(cls, text: str) -> 'CellPart':
    """'I/N' -> the part.

    Raises:
      InputError: it is not of this form, or I is not below N.
    """
    index, slash, count = text.partition('/')
    if slash and index.isdecimal() and count.isdecimal():
      part = cls(int(index), int(count))
      if part.index < part.count:
        return part
    raise errors.InputError(
      f'--cells={text}: give I/N, the number of this machine, from 0, and how '
      'many there are, as --cells=0/4'
    )

  def of(self, cells: Sequence[Cell]) -> list[Cell]:
    """This part of the cells, in their order.

    Cells of large budgets are dealt out first, so that parts take about the
    same time.
    """
    by_size = sorted(cells, key=lambda cell: -cell.budget)
    mine = set(by_size[self.index :: self.count])
    return [cell for cell in cells if cell in mine]


def cells(config: ml_collections.ConfigDict) -> list[Cell]:
  """Every strategy at every budget for every seed."""
  return [
    Cell(strategy, budget, seed)
    for strategy in config.selection.strategies
    for budget in sorted(config.study.budgets)
    for seed in seeds(config, strategy)
  ]


def full_pool_cells(
  config: ml_collections.ConfigDict, num_prompts: int
) -> list[Cell]:
  """The cells finetuned on the whole pool; none unless study.full_pool."""
  if not config.study.full_pool:
    return []
  seeds = config.study.full_pool_seeds or config.study.seeds
  return [Cell(FULL_POOL, num_prompts, seed) for seed in seeds]


def no_finetuning_cell() -> Cell:
  """The cell of the pretrained model, without finetuning."""
  return Cell(NO_FINETUNING, 0, 0)


def check(config: ml_collections.ConfigDict) -> None:
  """Rejects unknown strategies and bad budgets and seeds.

  Raises:
    InputError: naming the option.
  """
  _check_strategies(config.selection.strategies)
  _check_length_matched(config.selection)
  _check_integers('study.budgets', config.study.budgets, least=1)
  _check_seeds('study.seeds', config.study.seeds)
  for name in ('random_seeds', 'full_pool_seeds'):
    if config.study[name]:
      _check_seeds(f'study.{name}', config.study[name])
  _check_fraction(config)


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
  _check_integers(name, seeds, least=0)
  for seed in seeds:
    if seed >= 2**32:  # JAX would wrap it around to another seed.
      raise errors.InputError(f'{name} has {seed}: seeds must be below 2^32')


def _check_fraction(config: ml_collections.ConfigDict) -> None:
  fraction, count = config.study.pool_fraction, len(all_seeds(config))
  if not 0 < fraction <= 1:
    raise errors.InputError(
      f'study.pool_fraction is {fraction}: give a share of the pool, at most '
      '1.0'
    )
  if not parts_fit(fraction, count):
    raise errors.InputError(
      f'study.pool_fraction is {fraction:g}, and {count} seeds need '
      f'{fraction * count:.0%} of the pool, since their parts are disjoint: '
      f'give at most {100 // count / 100:g}, fewer seeds, or 1.0 for the whole '
      'pool for every seed'
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


def _check_length_matched(selection: ml_collections.ConfigDict) -> None:
  others = [
    name
    for name in selection.strategies
    if name not in (registry.LENGTH_MATCHED, registry.RANDOM)
  ]
  if registry.LENGTH_MATCHED not in selection.strategies:
    return
  other = selection.length_matched_to
  if other not in others:
    raise errors.unknown(
      f'selection.length_matched_to {other!r}, which has to be one of '
      'selection.strategies besides random,',
      other,
      others,
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


# What a prompt that annotators rejected is called in a selection file.
CHOSEN, REJECTED = 'chosen', 'rejected'


def rejected_ids(workdir: store.Workdir) -> frozenset[str]:
  """Ids of prompts that annotators rejected; no cell uses them."""
  if not workdir.rejected.exists():
    return frozenset()
  return frozenset(row['id'] for row in store.read_jsonl(workdir.rejected))


def read_config(workdir: store.Workdir) -> ml_collections.ConfigDict:
  """The config that a workdir was made with.

  Options that config.json of an earlier version lacks have their defaults.

  Raises:
    InputError: config.json is missing or damaged.
  """
  made = ml_collections.ConfigDict(config_lib.get_config().to_dict())
  try:
    made.update(store.read_json(workdir.config))
    check(made)
  except FileNotFoundError:
    raise errors.InputError(
      f'{workdir.config} does not exist: name the folder of a study'
    ) from None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f'{workdir.config} cannot be read ({error!r}): restore it from a copy'
    ) from error
  return made


def picks(
  workdir: store.Workdir, strategy: str, seed: int
) -> list[dict[str, Any]]:
  """Rows of a selection in greedy order, with their present `status`.

  annotations/rejected.jsonl decides on the status: the selection file itself
  follows when the select stage runs next.
  """
  rejected = rejected_ids(workdir)
  return [
    {**row, 'status': REJECTED if row['id'] in rejected else CHOSEN}
    for row in store.read_jsonl(workdir.selection(strategy, seed))
  ]


def selected_ids(workdir: store.Workdir, strategy: str, seed: int) -> list[str]:
  """Ids in greedy order, without rejected ones; budget k is the first k."""
  rows = picks(workdir, strategy, seed)
  return [row['id'] for row in rows if row['status'] == CHOSEN]


def cell_ids(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[Cell, list[str]]:
  """Ids of the prompts of every cell, in greedy order.

  There are fewer than the budget if picks were rejected and the select stage
  has not replaced them yet.

  Raises:
    InputError: a selection is shorter than a budget for another reason.
  """
  orders: dict[tuple[str, int], list[dict[str, Any]]] = {}
  ids = {}
  for cell in cells(config):
    key = cell.strategy, cell.seed
    if key not in orders:
      orders[key] = picks(workdir, *key)
    rows = orders[key]
    if len(rows) < cell.budget:
      raise errors.InputError(
        f'{workdir.selection(*key)} has {len(rows)} prompts, study.budgets '
        f'needs {cell.budget}: run the select stage again'
      )
    chosen = [row['id'] for row in rows if row['status'] == CHOSEN]
    ids[cell] = chosen[: cell.budget]
  return ids


def num_missing(
  cell: Cell, ids: Sequence[str], answered: Container[str]
) -> int:
  """How many answers a cell lacks, replacements of rejected picks included."""
  return cell.budget - sum(i in answered for i in ids)


def hash_examples(
  ids: Sequence[str],
  prompts: Mapping[str, store.Prompt],
  answers: Mapping[str, str],
) -> str:
  """Hash of a cell's prompts and answers, for its fingerprint."""
  return store.hash_json([(i, prompts[i], answers[i]) for i in ids])


def outdated(workdir: store.Workdir) -> list[Cell]:
  """Cells in the workdir whose answers were corrected since they were made.

  Only cells with a prompt in annotations/amended.jsonl are examined: other
  changes of answers are errors, which the finetune stage reports.
  """
  if not workdir.amended.exists():
    return []
  amended = {row['id'] for row in store.read_jsonl(workdir.amended)}
  pool = store.read_prompts(workdir.pool)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  answers = store.read_responses(workdir.responses)
  found = []
  for path in sorted(workdir.runs.glob('*/cell.json')):
    made = store.read_cell(path)
    cell = Cell(made['strategy'], made['budget'], made['seed'])
    ids, once = _present_ids(workdir, cell, pool.ids)
    if amended.isdisjoint(once):
      continue
    complete = len(ids) == cell.budget and all(i in answers for i in ids)
    old = made['fingerprint'].get('prompts and answers')
    if not complete or hash_examples(ids, prompts, answers) != old:
      found.append(cell)
  return found


def _present_ids(
  workdir: store.Workdir, cell: Cell, pool_ids: Sequence[str]
) -> tuple[list[str], list[str]]:
  """A cell's ids, and these with the rejected ones before its last pick."""
  if cell.strategy == FULL_POOL:
    return list(pool_ids), list(pool_ids)
  if not workdir.selection(cell.strategy, cell.seed).exists():
    return [], []
  ids: list[str] = []
  seen = []
  for row in picks(workdir, cell.strategy, cell.seed):
    if len(ids) == cell.budget:
      break
    seen.append(row['id'])
    if row['status'] == CHOSEN:
      ids.append(row['id'])
  return ids, seen
