"""Greedy orders in selections/: they may be extended, but never changed.

An order is extended if the budget grows, if annotators reject some of its
picks, and if prompts are appended to the pool: then it keeps what is asked for
or answered, and the rest is chosen from the grown pool, in a new round.
"""

from collections.abc import Container, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from edsft_jax import errors, selection, store, study
from edsft_jax.strategies import registry
from edsft_jax.strategies.view import View

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Extension:
  """What extending an order takes.

  Attributes:
    budget: the number of picks that are not rejected.
    initial: its rows of earlier rounds, which stay.
    present: its rows of the present round, which the new picks begin with.
    rejected: ids of prompts that annotators rejected.
  """

  budget: int
  initial: Rows
  present: Rows
  rejected: Container[str]

  def num_new(self, pool_ids: Sequence[str]) -> int:
    """The number of picks to choose in the present round, at most.

    It allows for every rejected prompt to be among them.
    """
    places = {pick['id'] for pick in self.initial}
    num_chosen = sum(i not in self.rejected for i in places)
    free = [i for i in pool_ids if i not in places]
    num_rejected = sum(i in self.rejected for i in free)
    missing = self.budget - num_chosen
    if missing <= 0 and not self.present:
      return 0
    return min(max(missing, len(self.present)) + num_rejected, len(free))

  def trim(self, order: Rows) -> Rows:
    """The order up to the last pick of the budget, or of the file."""
    at_least = len(self.initial) + len(self.present)
    num_chosen = 0
    for i, pick in enumerate(order):
      if num_chosen >= self.budget and i >= at_least:
        return order[:i]
      num_chosen += pick['status'] == study.CHOSEN
    return order


def extension(
  workdir: store.Workdir,
  name: str,
  seed: int,
  budget: int,
  number: int,
  settled: Container[str] | None,
) -> Extension:
  """Plans an order with `budget` picks that are not rejected.

  Args:
    workdir: may have an order.
    name: of the strategy.
    seed: of the order.
    budget: the number of picks.
    number: of the present round, from 0.
    settled: ids that are asked for or answered; None if the order has been
      extended in this round, so that all earlier picks in it stay.
  """
  path = workdir.selection(name, seed)
  old = store.read_jsonl(path) if path.exists() else []
  earlier = [row for row in old if row.get('round', 0) < number]
  if settled is not None:
    earlier = [row for row in earlier if row['id'] in settled]
  present = [row for row in old if row.get('round', 0) == number]
  return Extension(budget, earlier, present, study.rejected_ids(workdir))


def settled_ids(workdir: store.Workdir) -> frozenset[str]:
  """Ids of prompts that are asked for or answered."""
  ids = {*store.known_answers(workdir), *study.rejected_ids(workdir)}
  if workdir.asked.exists():
    for version in store.read_json(workdir.asked)['versions']:
      ids.update(version['ids'])
  return frozenset(ids)


def extend(
  view: View,
  row: registry.Strategy,
  chosen: selection.Selection | None,
  extended: Extension,
  number: int,
) -> Rows:
  """The extended order.

  Args:
    view: the pool, scores and tasks.
    row: the strategy.
    chosen: the picks of the present round; None if there are none.
    extended: what they extend.
    number: of the present round.
  """
  scores = view.scores[row.column] if row.column else None
  tasks = view.tasks if 'tasks' in row.reads else view.pool.tasks
  new = [
    {
      'id': view.pool.ids[i],
      'gain': _number(gain),
      'score': None if scores is None else _number(scores[i]),
      'task': tasks[i] if tasks else None,
      'round': number,
    }
    for i, gain in (
      zip(chosen.indices, chosen.gains, strict=True) if chosen else ()
    )
  ]
  order = [
    {
      'rank': rank,
      **{name: pick.get(name, 0) for name in _COLUMNS},
      'status': study.REJECTED
      if pick['id'] in extended.rejected
      else study.CHOSEN,
    }
    for rank, pick in enumerate([*extended.initial, *new])
  ]
  return extended.trim(order)


_COLUMNS = ('id', 'gain', 'score', 'task', 'round')


def write(path: pathlib.Path, order: Rows, extended: Extension) -> None:
  """Writes an order.

  Raises:
    InputError: its picks of this round differ from those in the file, which may
      have been answered; or too many prompts are rejected.
  """
  old = [pick['id'] for pick in extended.present]
  start = len(extended.initial)
  if old != [pick['id'] for pick in order[start : start + len(old)]]:
    raise errors.InputError(
      f'{path} has picks that differ from what its inputs give now: keep it '
      'and use another --workdir, or remove it'
    )
  num_chosen = sum(pick['status'] == study.CHOSEN for pick in order)
  if num_chosen < extended.budget:
    raise errors.InputError(
      f'study.budgets has {extended.budget}, but without those that annotators '
      f'rejected the pool has {num_chosen} prompts: lower it, or append '
      'prompts to the pool'
    )
  store.write_jsonl(path, order)


def refresh(workdir: store.Workdir, name: str, seed: int) -> None:
  """Rewrites an order that need not be extended, if a status has changed."""
  path = workdir.selection(name, seed)
  rows = study.picks(workdir, name, seed)
  old = [row.get('status', study.CHOSEN) for row in store.read_jsonl(path)]
  if old != [row['status'] for row in rows]:
    store.write_jsonl(path, rows)


def link(source: pathlib.Path, path: pathlib.Path) -> None:
  """Hard-links an order, or copies it if the file system cannot link."""
  with store.replacing(path) as partial:
    try:
      os.link(source, partial)
    except OSError:
      partial.write_bytes(source.read_bytes())


def bounds(
  chosen: selection.Selection | None, order: Rows, budgets: Sequence[int]
) -> list[dict[str, Any]]:
  """Objective at each budget, and the upper bound for sets of that size.

  There are none for orders with rejected picks or picks of earlier rounds:
  these are not what a greedy choice from the whole pool gives.
  """
  if chosen is None or chosen.upper_bound is None:
    return []
  if len(chosen.indices) != len(order):
    return []
  if any(pick['status'] == study.REJECTED for pick in order):
    return []
  return [
    {
      'budget': budget,
      'objective': float(chosen.gains[:budget].sum()),
      'upper_bound': chosen.upper_bound_at(budget),
    }
    for budget in budgets
  ]


def _number(x: float) -> float | None:
  """The number, or None if it is not finite: JSON has no NaN."""
  return float(x) if np.isfinite(x) else None
