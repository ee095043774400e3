"""Builds a pool from rows: drops duplicates, quarantines unusable rows."""

from collections.abc import Iterable
import dataclasses
import hashlib
from typing import Any

from edsft_jax import errors, store
from edsft_jax.pool import leaks, readers, schema

NO_TASK = 'none'


@dataclasses.dataclass(frozen=True)
class Built:
  """The contents of a file.

  Attributes:
    pool: the prompts to choose from, with the answers that came with them.
    heldout: the prompts split off for evaluation.
    kept: other columns of the pool.
    dropped: columns left out, with the reason.
    quarantine: rejected rows: line, id, reason.
    duplicates: number of rows whose prompt came before.
  """

  pool: store.Prompts
  heldout: store.Prompts
  kept: dict[str, list[store.Scalar | None]]
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

  Of duplicate prompts the first is kept. A hash of the id decides whether an
  answered prompt is held out, so the split needs no seed and does not change
  when rows are added.

  Raises:
    InputError: no row is usable, a named task column holds the answers, or,
      if strict, a row would be quarantined.
  """
  sorter = _Sorter(columns, heldout_fraction)
  for row in rows:
    try:
      sorter.add(row)
    except schema.UnusableRow as e:
      if strict:
        raise errors.InputError(
          f'{source}, line {row.line}: {e}: fix it, or set pool.strict=False '
          'to leave out such rows'
        ) from None
      sorter.refuse(row, str(e))
  return sorter.finish(source)


class _Sorter:
  """Sorts rows one by one."""

  def __init__(self, columns: schema.Columns, heldout_fraction: float):
    self._columns = columns
    self._heldout_fraction = heldout_fraction
    self._pool: list[schema.Item] = []
    self._heldout: list[schema.Item] = []
    self._kept = leaks.KeptColumns(columns)
    self._quarantine: list[dict[str, Any]] = []
    self._line_of_id: dict[str, int] = {}
    self._keys: set[bytes] = set()
    self._duplicates = 0
    self._answered = 0
    self._task_is_answer = 0

  def add(self, row: readers.Row) -> None:
    """Adds a row, unless it is a duplicate.

    Raises:
      UnusableRow: with the reason.
    """
    if row.values is None:
      raise schema.UnusableRow(row.problem)
    item = schema.read_item(row.values, self._columns)
    key = item.key
    if key in self._keys:
      self._duplicates += 1
      return
    if item.id in self._line_of_id:
      raise schema.UnusableRow(
        f'the id is that of line {self._line_of_id[item.id]}, '
        'which has another prompt'
      )
    self._keys.add(key)
    self._line_of_id[item.id] = row.line
    self._kept.inspect(row.values, item.prompt, item.response)
    if item.response:
      self._answered += 1
      self._task_is_answer += leaks.same_words(item.task, item.response)
    if item.response and _is_heldout(item.id, self._heldout_fraction):
      self._heldout.append(item)
    else:
      self._pool.append(item)
      self._kept.keep(row.values)

  def refuse(self, row: readers.Row, reason: str) -> None:
    """Quarantines a row."""
    row_id = schema.read_id(row.values or {}, self._columns)
    self._quarantine.append({'line': row.line, 'id': row_id, 'reason': reason})

  def finish(self, source: str) -> Built:
    """Returns the result.

    Raises:
      InputError: no row is usable, or a named task column holds the answers.
    """
    if not self._pool:
      raise _no_usable_row(source, self._quarantine, len(self._heldout))
    kept = self._kept.finish()
    dropped = dict(self._kept.dropped)
    if task_leaks := self._task_leaks(source):
      dropped[self._columns.task] = task_leaks
    return Built(
      _prompts(self._pool, with_tasks=not task_leaks),
      _prompts(self._heldout, with_tasks=not task_leaks),
      kept,
      dropped,
      self._quarantine,
      self._duplicates,
    )

  def _task_leaks(self, source: str) -> str:
    """Why the task column holds answers instead of tasks, or ''."""
    num_equal, answered = self._task_is_answer, self._answered
    if not num_equal or num_equal < leaks.TASK_LEAK_SHARE * answered:
      return ''
    reason = (
      f'it equals the response in {num_equal:,} of {answered:,} answered rows'
    )
    if self._columns.task_named:
      raise errors.InputError(
        f'pool.task_column={self._columns.task!r} of {source} is not a task: '
        f'{reason}: name a column that is known before the answers'
      )
    return reason


def _is_heldout(prompt_id: str, fraction: float) -> bool:
  digest = hashlib.sha256(f'heldout {prompt_id}'.encode()).digest()
  return int.from_bytes(digest[:8]) < fraction * 2**64


def _prompts(items: list[schema.Item], with_tasks: bool) -> store.Prompts:
  tasks = [item.task or NO_TASK for item in items]
  has_tasks = with_tasks and any(item.task for item in items)
  return store.Prompts(
    ids=[item.id for item in items],
    prompts=[item.prompt for item in items],
    tasks=tasks if has_tasks else None,
    responses=[item.response for item in items],
  )


def _no_usable_row(
  source: str, quarantine: list[dict[str, Any]], num_heldout: int
) -> errors.InputError:
  if num_heldout:
    return errors.InputError(
      f'{source} has no prompt left to choose from: all {num_heldout} are held '
      'out: lower pool.heldout_fraction'
    )
  if not quarantine:
    return errors.InputError(f'{source} has no rows: give one prompt per row')
  first = quarantine[0]
  return errors.InputError(
    f'{source} has no usable row: {len(quarantine):,} rejected, the first in '
    f'line {first["line"]}: {first["reason"]}: fix it, or set pool.format, '
    'pool.prompt_column or another column option'
  )


def without_pool_prompts(
  heldout: store.Prompts, pool: store.Prompts
) -> store.Prompts:
  """The held-out prompts that are not in the pool."""
  in_pool = {schema.prompt_key(prompt) for prompt in pool.prompts}
  return heldout.where(
    [schema.prompt_key(prompt) not in in_pool for prompt in heldout.prompts]
  )
