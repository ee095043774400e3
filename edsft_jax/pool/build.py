"""Rows become a pool: unusable ones out, doubles out, answers set apart."""

from collections.abc import Iterable
import dataclasses
import hashlib
from typing import Any

import pyarrow as pa

from edsft_jax import artifacts, errors
from edsft_jax.pool import leaks, readers, schema

NO_TASK = 'none'
# Rows of one arrow batch: text of one batch must stay below 2 GiB.
_BATCH_ROWS = 16384


@dataclasses.dataclass
class Prompts:
  """Usable prompts in file order; lists of one length."""

  ids: list[str] = dataclasses.field(default_factory=list)
  prompts: list[artifacts.Prompt] = dataclasses.field(default_factory=list)
  tasks: list[str] = dataclasses.field(default_factory=list)
  responses: list[str] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.ids)

  def append(self, item: schema.Item) -> None:
    self.ids.append(item.id)
    self.prompts.append(item.prompt)
    self.tasks.append(item.task)
    self.responses.append(item.response)


@dataclasses.dataclass
class Built:
  """What a file gives.

  Attributes:
    pool: the prompts to choose from.
    heldout: the prompts split off to evaluate on.
    kept: other columns of the pool.
    dropped: columns left out, with the reason.
    quarantine: rows refused: line, id, reason.
    duplicates: rows whose prompt came before.
  """

  pool: Prompts
  heldout: Prompts
  kept: dict[str, list[leaks.Scalar | None]]
  dropped: dict[str, str]
  quarantine: list[dict[str, Any]]
  duplicates: int


def build(
  source: str,
  rows: Iterable[readers.Row],
  columns: schema.Columns,
  heldout_fraction: float = 0.0,
  strict: bool = False,
) -> Built:
  """Sorts rows into pool, held-out set and quarantine.

  The same prompt twice is kept once, the first. Held out are answered prompts
  by a hash of their id, so that the split needs no seed and stays when rows
  are added.

  Raises:
    InputError: no row is usable, a named task column holds the answers, or,
      if strict, a row would be quarantined.
  """
  pool, heldout = Prompts(), Prompts()
  kept = leaks.KeptColumns(columns)
  quarantine: list[dict[str, Any]] = []
  line_of_id: dict[str, int] = {}
  keys: set[bytes] = set()
  duplicates = answered = task_is_answer = 0

  for row in rows:
    try:
      if row.values is None:
        raise schema.UnusableRow(row.problem)
      item = schema.read_item(row.values, columns)
      key = item.key
      if key in keys:
        duplicates += 1
        continue
      if item.id in line_of_id:
        raise schema.UnusableRow(
          f'the id is that of line {line_of_id[item.id]}, '
          'which has another prompt'
        )
    except schema.UnusableRow as e:
      if strict:
        raise errors.InputError(
          f'{source}, line {row.line}: {e}: mend it, or leave such rows out '
          'by pool.strict=False'
        ) from None
      row_id = schema.read_id(row.values or {}, columns)
      quarantine.append({'line': row.line, 'id': row_id, 'reason': str(e)})
      continue
    keys.add(key)
    line_of_id[item.id] = row.line
    kept.look(row.values, item.prompt, item.response)
    if item.response:
      answered += 1
      task_is_answer += leaks.normalize(item.task) == leaks.normalize(
        item.response
      )
    if item.response and _is_heldout(item.id, heldout_fraction):
      heldout.append(item)
    else:
      pool.append(item)
      kept.keep(row.values)

  if not pool.ids:
    raise _no_usable_row(source, quarantine, len(heldout))
  columns_kept = kept.finish()
  dropped = dict(kept.dropped)
  if task_is_answer > 0 and task_is_answer >= leaks.TASK_LEAK_SHARE * answered:
    dropped[columns.task] = _refuse_task(
      source, columns, task_is_answer, answered
    )
    pool.tasks = [''] * len(pool)
    heldout.tasks = [''] * len(heldout)
  return Built(pool, heldout, columns_kept, dropped, quarantine, duplicates)


def _is_heldout(prompt_id: str, fraction: float) -> bool:
  digest = hashlib.sha256(f'heldout {prompt_id}'.encode()).digest()
  return int.from_bytes(digest[:8]) < fraction * 2**64


def _refuse_task(
  source: str, columns: schema.Columns, num_equal: int, answered: int
) -> str:
  reason = f'it is the response in {num_equal:,} of {answered:,} answered rows'
  if columns.task_named:
    raise errors.InputError(
      f'pool.task_column={columns.task!r} of {source} is no task: {reason}: '
      'name a column that is known before the answers'
    )
  return reason


def _no_usable_row(
  source: str, quarantine: list[dict[str, Any]], num_heldout: int
) -> errors.InputError:
  if num_heldout:
    return errors.InputError(
      f'{source} has no prompt left to choose from: all {num_heldout} are held '
      'out: lower pool.heldout_fraction'
    )
  if not quarantine:
    return errors.InputError(f'{source} has no rows: give one prompt a row')
  first = quarantine[0]
  return errors.InputError(
    f'{source} has no usable row: {len(quarantine):,} refused, the first in '
    f'line {first["line"]}: {first["reason"]}: mend it, or name its format by '
    'pool.format or its columns by pool.prompt_column and the like'
  )


def without(heldout: Prompts, pool: artifacts.Prompts) -> Prompts:
  """The held-out prompts that are not in the pool, too."""
  in_pool = {schema.Item('', prompt, '', '').key for prompt in pool.prompts}
  return _where(
    heldout,
    [
      schema.Item('', prompt, '', '').key not in in_pool
      for prompt in heldout.prompts
    ],
  )


def answered_only(prompts: Prompts) -> Prompts:
  """The prompts that have a response."""
  return _where(prompts, [bool(response) for response in prompts.responses])


def _where(prompts: Prompts, chosen: list[bool]) -> Prompts:
  def pick(values: list[Any]) -> list[Any]:
    return [v for v, keep in zip(values, chosen, strict=True) if keep]

  return Prompts(
    *(
      pick(getattr(prompts, field.name))
      for field in dataclasses.fields(Prompts)
    )
  )


# Tables.


def pool_table(
  pool: Prompts, kept: dict[str, list[leaks.Scalar | None]]
) -> pa.Table:
  """pool.parquet: id, prompt or messages, task if any, other columns."""
  return _table({**_prompt_columns(pool), **_kept_columns(kept)})


def heldout_table(heldout: Prompts) -> pa.Table:
  """heldout.parquet: id, prompt or messages, task if any, response."""
  responses = (heldout.responses, pa.string())
  return _table({**_prompt_columns(heldout), 'response': responses})


def response_table(pool: Prompts) -> pa.Table:
  """pool_responses.parquet: id, response, for the prompts that have one."""
  answered = answered_only(pool)
  return _table(
    {
      'id': (answered.ids, pa.string()),
      'response': (answered.responses, pa.string()),
    }
  )


_Column = tuple[list[Any], pa.DataType]
_MESSAGES = pa.list_(
  pa.struct([('role', pa.string()), ('content', pa.string())])
)


def _prompt_columns(prompts: Prompts) -> dict[str, _Column]:
  columns: dict[str, _Column] = {'id': (prompts.ids, pa.string())}
  texts = [p if isinstance(p, str) else None for p in prompts.prompts]
  turns = [p if isinstance(p, list) else None for p in prompts.prompts]
  if any(text is not None for text in texts):
    columns['prompt'] = (texts, pa.string())
  if any(turn is not None for turn in turns):
    columns['messages'] = (turns, _MESSAGES)
  if any(prompts.tasks):
    tasks = [task or NO_TASK for task in prompts.tasks]
    columns['task'] = (tasks, pa.string())
  return columns


def _kept_columns(
  kept: dict[str, list[leaks.Scalar | None]],
) -> dict[str, _Column]:
  """Each with the narrowest type that holds its values; text if mixed."""
  columns: dict[str, _Column] = {}
  for name, values in kept.items():
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
      columns[name] = (values, pa.bool_())
    elif types == {int} and all(abs(v or 0) < 2**63 for v in values):
      columns[name] = (values, pa.int64())
    elif types == {float}:
      columns[name] = (values, pa.float64())
    else:
      texts = [None if value is None else str(value) for value in values]
      columns[name] = (texts, pa.string())
  return columns


def _table(columns: dict[str, _Column]) -> pa.Table:
  schema_ = pa.schema([(name, type_) for name, (_, type_) in columns.items()])
  lists = [values for values, _ in columns.values()]
  num_rows = len(lists[0])
  return pa.Table.from_batches(
    [
      pa.record_batch(
        [
          pa.array(values[start : start + _BATCH_ROWS], field.type)
          for values, field in zip(lists, schema_, strict=True)
        ],
        schema=schema_,
      )
      for start in range(0, num_rows, _BATCH_ROWS)
    ],
    schema=schema_,
  )
