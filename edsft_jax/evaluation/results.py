"""A cell's rows on a task, and the files made of them."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from edsft_jax import errors, store, study
from edsft_jax.evaluation import metrics as metrics_lib
from edsft_jax.evaluation.task import Item, Metric, Response, Task
from edsft_jax.evaluation.tasks import JUDGED

# What every row of items.jsonl has besides id, task, prediction, reference and
# metrics.
GENERATION_COLUMNS = (
  'num_prompt_tokens',
  'num_generated_tokens',
  'truncated',
  'finish',
)


def marker(run: store.Run, task: str) -> pathlib.Path:
  """The file that exists once a cell's answers on a task are written."""
  return run.generation(task) if task in JUDGED else run.evaluation(task)


def read_fingerprint(path: pathlib.Path) -> Mapping[str, Any]:
  """The fingerprint in a file named by `marker`.

  Raises:
    InputError: the file is damaged.
  """
  if path.name == 'eval.json':
    return store.read_evaluation(path)['fingerprint']
  return read_generation(path)['fingerprint']


def read_generation(path: pathlib.Path) -> dict[str, Any]:
  """Reads a generation.json.

  Raises:
    InputError: it is damaged.
  """
  try:
    contents = store.read_json(path)
    for field in ('version', 'about', 'counts', 'fingerprint'):
      contents[field]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f'{path} is damaged ({error!r}): delete it and run the evaluate stage '
      'again'
    ) from error
  return contents


def make_rows(
  task: Task,
  items: Sequence[Item],
  responses: Sequence[Sequence[Response]],
  cell: study.Cell,
) -> list[dict[str, Any]]:
  """The rows of items.jsonl for some of a task's items.

  Raises:
    InputError: the model's numbers are not finite.
  """
  for item, given in zip(items, responses, strict=True):
    if not all(response.is_finite for response in given):
      raise _not_finite(cell, task.name, f'the logits for {item.id!r} are')
  metrics = {} if task.name in JUDGED else task.metrics
  rows = [
    {
      'id': item.id,
      'task': item.task,
      **({'category': item.category} if item.category else {}),
      'reference': item.reference,
      **task.score(item, given),
    }
    for item, given in zip(items, responses, strict=True)
  ]
  check_rows(rows, metrics, task.name, cell)
  return rows


def check_rows(
  rows: Sequence[Mapping[str, Any]],
  metrics: Mapping[str, Metric],
  task: str,
  cell: study.Cell,
) -> None:
  """Requires all columns, and finite numbers.

  Raises:
    InputError: a metric is not finite.
  """
  columns = {metric.column or name for name, metric in metrics.items()}
  needed = {'prediction', *GENERATION_COLUMNS, *columns}
  for row in rows:
    if lacking := sorted(needed - row.keys()):
      raise TypeError(f'the rows of task {task} have no {lacking}')
    for name in columns:
      if not np.isfinite(row[name]):
        raise _not_finite(cell, task, f'the {name} of {row["id"]!r} is')


def _not_finite(cell: study.Cell, task: str, what: str) -> errors.InputError:
  return errors.InputError(
    f'evaluating {cell.name} on {task}: {what} not finite: check the '
    "model's weights and model.dtype"
  )


def write(
  run: store.Run,
  cell: study.Cell,
  task: Task,
  rows: Sequence[Mapping[str, Any]],
  fingerprint: Mapping[str, Any],
) -> None:
  """Writes a cell's rows, then the file that marks it as done."""
  made = {
    'version': task.version,
    'counts': dict(task.counts),
    'fingerprint': fingerprint,
  }
  if task.name in JUDGED:
    store.write_json(run.outputs(task.name), _outputs(task, rows, cell.name))
    contents = {**made, 'about': dict(task.about)}
    store.write_json(run.generation(task.name), contents)
    return
  about = {**task.about, **made}
  write_evaluation(run, cell, task.name, rows, task.metrics, about)
  # Older versions wrote these instead.
  for path in run.old_evaluation:
    path.unlink(missing_ok=True)


def _outputs(
  task: Task, rows: Sequence[Mapping[str, Any]], generator: str
) -> list[dict[str, Any]]:
  """Answers in AlpacaEval's form."""
  return [
    {
      'instruction': item.text,
      'output': row['prediction'],
      'generator': generator,
      'dataset': item.category,
      'id': item.id,
      **{name: row[name] for name in GENERATION_COLUMNS},
    }
    for item, row in zip(task.items, rows, strict=True)
  ]


def write_evaluation(
  run: store.Run,
  cell: study.Cell,
  task: str,
  rows: Sequence[Mapping[str, Any]],
  metrics: Mapping[str, Metric],
  about: Mapping[str, Any],
) -> None:
  """Writes items.jsonl, then eval.json, which marks the cell as done.

  Args:
    run: the cell's files.
    cell: the cell.
    task: the task's name.
    rows: of items.jsonl, with the columns that WORKSPACE.md lists.
    metrics: the columns to average.
    about: what eval.json has besides: version, protocol, counts, fingerprint.
  """
  means = metrics_lib.aggregate(rows, metrics)
  store.write_jsonl(run.items(task), rows)
  store.write_json(
    run.evaluation(task),
    {
      **dataclasses.asdict(cell),
      'task': task,
      **about,
      'metrics': {
        name: {**means[name], **dataclasses.asdict(metric)}
        for name, metric in metrics.items()
      },
      **{
        f'by_{column}': {
          group: metrics_lib.aggregate(some, metrics)
          for group, some in metrics_lib.group_by(rows, column).items()
        }
        for column in ('task', 'category')
      },
    },
  )
