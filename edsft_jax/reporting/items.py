"""Reads items.jsonl: the values of each evaluation item, for the statistics."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from edsft_jax import errors, store
from edsft_jax.reporting.statistics import Items

# The items of this task are drawn independently. Those of benchmarks share a
# source with the other items of their subject.
_INDEPENDENT = 'heldout'
# Older evaluations did not record the weights of their items.
_OLD_WEIGHTS = {('heldout', 'loss'): 'num_reference_tokens'}


@dataclasses.dataclass(frozen=True)
class Table:
  """The items of one cell on one task.

  Attributes:
    ids: [I], in the file's order.
    values: metric -> [I].
    items: metric -> weights and clusters of the items.
  """

  ids: tuple[str, ...]
  values: dict[str, np.ndarray]
  items: dict[str, Items]


def read(path: pathlib.Path, evaluation: Mapping[str, Any]) -> Table:
  """Reads the items that an eval.json was made from.

  Args:
    path: of items.jsonl.
    evaluation: the contents of eval.json.

  Raises:
    InputError: the file is missing or damaged, or has another mean than
      eval.json says.
  """
  remedy = f'remove {path.parent} and run the evaluate stage again'
  if not path.exists():
    raise errors.InputError(f'{path} is missing: {remedy}')
  task = evaluation['task']
  values, items = {}, {}
  try:
    rows = store.read_jsonl(path)
    groups = [row.get('task') for row in rows]
    clusters = _clusters(task, groups)
    for name, metric in evaluation['metrics'].items():
      column = metric.get('column') or name
      values[name] = np.array([row[column] for row in rows], np.float64)
      weight = metric.get('weight', _OLD_WEIGHTS.get((task, name), ''))
      items[name] = Items(
        _weights(rows, weight, groups if metric.get('over_tasks') else None),
        clusters,
      )
    ids = tuple(row['id'] for row in rows)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f'{path} has no complete items ({error!r}): {remedy}'
    ) from error
  for name, metric in evaluation['metrics'].items():
    mean = float(values[name] @ items[name].weights)
    if not math.isclose(mean, metric['value'], rel_tol=1e-9, abs_tol=1e-12):
      raise errors.InputError(
        f'{path} has a {name} of {mean:.12g}, and eval.json next to it says '
        f'{metric["value"]:.12g}: {remedy}'
      )
  return Table(ids, values, items)


def _clusters(task: str, groups: Sequence[str | None]) -> np.ndarray:
  """Numbers of the items' clusters; see Items."""
  alone = np.arange(len(groups))
  if task == _INDEPENDENT or None in groups or len({*groups}) < 2:
    return alone
  return np.unique(np.array(groups, str), return_inverse=True)[1]


def _weights(
  rows: Sequence[Mapping[str, Any]],
  column: str,
  groups: Sequence[str | None] | None,
) -> np.ndarray:
  """Weights of the items, of sum 1; groups, if given, have equal weight."""
  weight_I = np.array(
    [row[column] if column else 1.0 for row in rows], np.float64
  )
  if groups is not None:
    names = [str(group) for group in groups]
    totals = dict.fromkeys(names, 0.0)
    for name, weight in zip(names, weight_I, strict=True):
      totals[name] += weight
    weight_I /= np.array([totals[name] for name in names])
  # If no item has weight, the mean is 0.
  return weight_I / (weight_I.sum() or 1.0)
