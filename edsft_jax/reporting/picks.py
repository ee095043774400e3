"""What strategies picked: overlap, prompts in a table, and replaced ones."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import store, study
from edsft_jax.reporting import wording

# Characters of a prompt on the page and in picks.csv.
MAX_CHARACTERS = 120

COLUMNS = (
  *('strategy', 'seed', 'rank', 'id', 'task', 'words', 'score', 'gain'),
  'prompt',
)

# Strategy -> seed -> ids in greedy order.
Orders = Mapping[str, Mapping[int, Sequence[str]]]
# Rows of a selection by (strategy, seed), in greedy order.
Selections = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]


def shown(text: str) -> str:
  """A prompt on one line, cut to MAX_CHARACTERS."""
  return wording.shortened(' '.join(text.split()), MAX_CHARACTERS)


def rows(
  pool: store.Prompts, selections: Selections, budget: int
) -> list[tuple[Any, ...]]:
  """Rows of COLUMNS: the first picks of each strategy for each seed."""
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  words = pool.num_words()
  texts = pool.texts()
  prompts = {
    row['id']: shown(texts[place[row['id']]])
    for picks in selections.values()
    for row in picks[:budget]
  }
  return [
    (
      *(strategy, seed, rank, row['id'], row.get('task')),
      *(words[place[row['id']]], row.get('score'), row.get('gain')),
      prompts[row['id']],
    )
    for (strategy, seed), picks in selections.items()
    for rank, row in enumerate(picks[:budget], start=1)
  ]


def overlap(
  orders: Orders,
  one: str,
  other: str,
  budget: int,
) -> float | None:
  """The share of the first picks that two strategies have in common.

  For one seed, mean over those that both have; None if they share none.

  Args:
    orders: of all strategies.
    one: a strategy.
    other: another one.
    budget: how many picks.
  """
  shares = [
    len({*order[:budget]} & {*orders[other][seed][:budget]}) / budget
    for seed, order in orders[one].items()
    if seed in orders[other]
  ]
  return float(np.mean(shares)) if shares else None


def ids(selections: Selections) -> dict[str, dict[int, list[str]]]:
  """Strategy -> seed -> ids in order."""
  found: dict[str, dict[int, list[str]]] = {}
  for (strategy, seed), picked in selections.items():
    found.setdefault(strategy, {})[seed] = [row['id'] for row in picked]
  return found


@dataclasses.dataclass(frozen=True)
class Replaced:
  """A pick that annotators rejected.

  Attributes:
    strategy: whose pick it was.
    seed: for which seed.
    rank: its place in the order, from 1.
    id: the rejected prompt.
    replacement: the pick that took its place in the largest budget; '' if there
      is none, since it was itself a replacement or the order has ended.
    reason: what annotators gave as reason, on one line, or ''.
    prompt: its text, shortened.
  """

  strategy: str
  seed: int
  rank: int
  id: str
  replacement: str
  reason: str
  prompt: str


REPLACED_COLUMNS = tuple(field.name for field in dataclasses.fields(Replaced))


def replaced(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
) -> list[Replaced]:
  """The rejected picks of all selections, up to the largest budget."""
  if not workdir.rejected.exists():
    return []
  rejected = {row['id']: row for row in store.read_jsonl(workdir.rejected)}
  texts = dict(zip(pool.ids, pool.texts(), strict=True))
  budget = max(config.study.budgets)
  found = []
  for strategy in config.selection.strategies:
    for seed in study.seeds(config, strategy):
      if not workdir.selection(strategy, seed).exists():
        continue
      order = study.picks(workdir, strategy, seed)
      for rank, old, new in _pairs(order, budget):
        found.append(
          Replaced(
            *(strategy, seed, rank, old, new),
            ' '.join(str(rejected[old].get('reason') or '').split()),
            shown(texts[old]),
          )
        )
  return found


def _pairs(
  order: Sequence[Mapping[str, Any]], budget: int
) -> list[tuple[int, str, str]]:
  """Rank, id and replacement of each rejected pick up to a budget."""
  places = [i for i, row in enumerate(order) if row['status'] == study.CHOSEN]
  used = order[: places[:budget][-1] + 1] if places else order
  rejected = [
    (i + 1, row['id'])
    for i, row in enumerate(used)
    if row['status'] != study.CHOSEN
  ]
  # What was rejected beyond the budget's ranks was itself a replacement.
  spare = [row['id'] for row in used[budget:] if row['status'] == study.CHOSEN]
  spare += [''] * len(rejected)
  return [
    (rank, old, new) for (rank, old), new in zip(rejected, spare, strict=False)
  ]
