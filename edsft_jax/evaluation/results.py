"""A cell's rows on a task, and the files made of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from edsft_jax import errors, store, study
from edsft_jax.evaluation import metrics
from edsft_jax.evaluation.task import Item, Response, Task

# What every row of items.jsonl has besides id, task, reference and metrics.
_ITEM_COLUMNS = (
  'prediction',
  'num_prompt_tokens',
  'num_generated_tokens',
  'truncated',
  'finish',
)


def make_rows(
  task: Task,
  items: Sequence[Item],
  responses: Sequence[Sequence[Response]],
  cell: study.Cell,
) -> list[dict[str, Any]]:
  """The rows of items.jsonl for some of a task's items.

  Raises:
    InputError: a metric is not finite.
  """
  columns = {metric.column or name for name, metric in task.metrics.items()}
  needed = {*_ITEM_COLUMNS, *columns}
  rows = []
  for item, given in zip(items, responses, strict=True):
    row = {
      'id': item.id,
      'task': item.task,
      **({'category': item.category} if item.category else {}),
      'reference': item.reference,
      **task.score(item, given),
    }
    if lacking := sorted(needed - row.keys()):
      raise TypeError(f'the rows of task {task.name} have no {lacking}')
    for name in columns:
      if not np.isfinite(row[name]):
        raise errors.InputError(
          f'evaluating {cell.name} on {task.name}: the {name} of {row["id"]!r} '
          "is not finite: the model's numbers overflow; check model.dtype"
        )
    rows.append(row)
  return rows


def write(
  run: store.Run,
  cell: study.Cell,
  task: Task,
  rows: Sequence[Mapping[str, Any]],
  fingerprint: Mapping[str, Any],
) -> None:
  """Writes items.jsonl, then eval.json, which marks the cell as done."""
  means = metrics.aggregate(rows, task.metrics)
  store.write_jsonl(run.items(task.name), rows)
  store.write_json(
    run.evaluation(task.name),
    {
      **dataclasses.asdict(cell),
      'task': task.name,
      'version': task.version,
      **task.about,
      'metrics': {
        name: {**means[name], **dataclasses.asdict(metric)}
        for name, metric in task.metrics.items()
      },
      **{
        f'by_{column}': {
          group: metrics.aggregate(some, task.metrics)
          for group, some in metrics.group_by(rows, column).items()
        }
        for column in ('task', 'category')
      },
      'counts': dict(task.counts),
      'fingerprint': fingerprint,
    },
  )
  # Older versions wrote these instead.
  for path in run.old_evaluation:
    path.unlink(missing_ok=True)
