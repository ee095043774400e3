"""Tables of answers: a row per answer, with named columns; and todo.csv.

  prompt_id   or `id`, as older todos have it; without one, prompts are found by
              their text
  prompt      compared with the pool's
  response    the answer
  status, verdict, decision, rejected, skipped, ...   see verdicts.py; so are
              columns of other names that hold nothing but verdicts
  reason      why a prompt was rejected

All other columns (annotator, completed_by, lead_time, created_at, cost, ...)
are kept. Capitals in names do not matter.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import datetime
import decimal
import io
from typing import Any

from edsft_jax import errors, store
from edsft_jax.annotation.formats import cells, verdicts
from edsft_jax.annotation.formats.format import Format, Row, Task, Verdict
from edsft_jax.tables import readers, spreadsheet

ANNOTATORS = (
  'annotator',
  'annotator_id',
  'annotator_name',
  'completed_by',
  '_annotator_id',
  'worker',
  'worker_id',
  'user',
  'user_id',
  'email',
  '_session_id',
)
_REASONS = ('reason', 'rejection_reason')
# Columns of a todo that are in the pool, or derived from it.
_OF_TODO = ('rank', 'task', 'words', 'characters')
# Columns that responses.parquet has already.
_OF_RESPONSES = ('id', 'response')
# What the column of answers is called elsewhere.
_ANSWERS = ('answer', 'completion', 'output')


@dataclasses.dataclass(frozen=True)
class Schema:
  """Names of columns, the preferred first.

  Attributes:
    ids: of the prompt's id.
    prompts: of its text.
    responses: of the answer.
    verdicts: of words that stand for a verdict.
    left_out: of what only the tool needs.
  """

  ids: tuple[str, ...] = ('prompt_id', 'id')
  prompts: tuple[str, ...] = ('prompt',)
  responses: tuple[str, ...] = ('response',)
  verdicts: tuple[str, ...] = verdicts.COLUMNS
  left_out: tuple[str, ...] = ()


class NotText(Exception):
  """A value that should be text and is not."""


def read(
  records: Sequence[readers.Row], schema: Schema | None = None
) -> tuple[list[Row], list[str]]:
  """Reads annotations, and messages about what is left out.

  Raises:
    InputError: the file lacks a column of answers, or one to find prompts by;
      the message continues its name.
  """
  return _Reader(records, schema or Schema()).read()


class _Reader:
  """Finds the columns of a file, then reads its rows."""

  def __init__(self, records: Sequence[readers.Row], schema: Schema):
    self._records = records
    names = list(dict.fromkeys(n for r in records for n in r.values or () if n))
    # Lower case -> the name as it is spelt in the file.
    self._spelt: dict[str, str] = {}
    for name in names:
      self._spelt.setdefault(name.strip().casefold(), name)
    self._ids = self._find(schema.ids)[:1]
    self._prompts = self._find(schema.prompts)[:1]
    self._responses = self._find(schema.responses)
    self._verdicts = self._find(schema.verdicts)
    self._flags = self._find(tuple(verdicts.FLAGS))
    self._reasons = self._find(_REASONS)
    self._annotators = self._find(ANNOTATORS)
    used = {
      *self._find((*schema.ids, *_OF_TODO, *_OF_RESPONSES, *schema.left_out)),
      *self._prompts,
      *self._responses,
      *self._verdicts,
      *self._flags,
      *self._reasons,
    }
    self._others = [name for name in names if name not in used]
    # Columns of verdicts with names of their own.
    self._found: list[str] = []
    self._left_out: dict[str, None] = {}

  def _find(self, names: Sequence[str]) -> list[str]:
    """Those of these columns that the file has, as it spells them."""
    return [self._spelt[name] for name in names if name in self._spelt]

  def read(self) -> tuple[list[Row], list[str]]:
    """Reads all rows but empty ones; see the function `read`."""
    self._find_verdicts()
    self._find_response()
    listed = ', '.join(self._spelt.values())
    verdict_columns = [*self._verdicts, *self._flags, *self._found]
    if listed and not (self._responses or verdict_columns):
      raise errors.InputError(
        f'has no column response: it has {listed}: call the column of answers '
        'response'
      )
    if listed and not (self._ids or self._prompts):
      raise errors.InputError(
        'has no column prompt_id, nor a column prompt to find prompts by: it '
        f'has {listed}: add them from the todo'
      )
    rows = [self._row(r) for r in self._records if not _is_empty(r)]
    notes = []
    if rows and not self._prompts:
      notes.append('no column prompt: nothing shows whether ids are right')
    if self._left_out:
      notes.append(
        'columns left out, since they hold neither text nor numbers: '
        f'{", ".join(self._left_out)}'
      )
    return rows, notes

  def _find_verdicts(self) -> None:
    """Finds columns of verdicts among the others.

    Raises:
      InputError: one has a verdict's name, and a value that is not a verdict.
    """
    left_out = {*self._find(ANNOTATORS)}
    if not any(map(self._is_filled, self._responses)):
      left_out.update(self._find(_ANSWERS))
    for name in self._others:
      if name in left_out:
        continue
      try:
        if verdicts.is_column(name, self._values(name)):
          self._found.append(name)
      except verdicts.UnknownVerdict as e:
        raise errors.InputError(
          f'has {e}, which is not a verdict: write accepted, rejected or '
          'skipped, or rename the column if it holds something else'
        ) from None
    self._others = [n for n in self._others if n not in self._found]

  def _find_response(self) -> None:
    """Takes a column with another name if that for answers is empty.

    Raises:
      InputError: there are several.
    """
    is_read = self._responses or self._verdicts or self._flags or self._found
    if not is_read or any(map(self._is_filled, self._responses)):
      return
    names = [
      name
      for name in self._find(_ANSWERS)
      if name in self._others and self._is_filled(name)
    ]
    if names:
      self._responses = [choose_answer(names)]
      self._others.remove(names[0])

  def _values(self, name: str) -> list[Any]:
    return [r.values.get(name) for r in self._records if r.values]

  def _is_filled(self, name: str) -> bool:
    return any(
      not is_missing(value) and str(value).strip()
      for value in self._values(name)
    )

  def _row(self, record: readers.Row) -> Row:
    if record.values is None:
      return Row(record.place, problem=record.problem)
    values = record.values
    prompt_id = None
    try:
      if self._ids:
        prompt_id = as_id(values.get(self._ids[0]))
      return Row(
        place=record.place,
        id=prompt_id,
        prompt=self._prompt(values),
        response=as_text(_first(values, self._responses), 'the response'),
        verdict=self._verdict(values),
        reason=str(_first(values, self._reasons) or ''),
        annotator=str(_first(values, self._annotators) or ''),
        others=self._kept(values),
      )
    except (NotText, verdicts.UnknownVerdict) as e:
      return Row(record.place, id=prompt_id, problem=str(e))

  def _prompt(self, values: Mapping[str, Any]) -> str | None:
    """The prompt; '' for an empty cell, None if the row has no such cell."""
    if not self._prompts or self._prompts[0] not in values:
      return None
    return as_text(values[self._prompts[0]], 'the prompt')

  def _verdict(self, values: Mapping[str, Any]) -> Verdict | None:
    found = [verdicts.of_word(n, values.get(n)) for n in self._verdicts]
    found += [verdicts.of_flag(n, values.get(n)) for n in self._flags]
    found += [verdicts.of_cell(n, values.get(n)) for n in self._found]
    return verdicts.heaviest(found)

  def _kept(self, values: Mapping[str, Any]) -> dict[str, store.Scalar]:
    kept = {}
    for name in self._others:
      value = values.get(name)
      if is_missing(value):
        continue
      scalar = as_scalar(value)
      if scalar is None:
        self._left_out[name] = None
      else:
        kept[name] = scalar
    return kept


def choose_answer(names: Sequence[str]) -> str:
  """The question, control or column with the answers; 'response' if none has.

  Args:
    names: those with texts.

  Raises:
    InputError: several may hold the answers, and none is called response.
  """
  if 'response' in names or not names:
    return 'response'
  if len(names) > 1:
    raise errors.InputError(
      f'has texts in {", ".join(names)}, and none in response: call the one '
      'with the answers response'
    )
  return names[0]


def is_missing(value: Any) -> bool:
  """Whether a cell is empty; tools write NaN for it."""
  return value is None or value == '' or value != value


def as_text(value: Any, what: str) -> str:
  """A cell that has to be text; '' if it is empty.

  Raises:
    NotText: it is something else.
  """
  if is_missing(value):
    return ''
  if isinstance(value, str):
    return value
  if isinstance(value, spreadsheet.Converted):
    raise NotText(f'{what} is {value}')
  raise NotText(f'{what} is not text')


def as_id(value: Any) -> str:
  """An id; tables may store it as a number.

  Raises:
    NotText: it is neither text nor a number.
  """
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and not is_missing(value):
    return f'{value:.15G}'  # As spreadsheets write it.
  return as_text(value, 'the id')


def as_scalar(value: Any) -> store.Scalar | None:
  """A further column's value; None if it is a list, an object or the like."""
  if isinstance(value, spreadsheet.Number):
    return value.value
  if isinstance(value, str | int | float | bool):
    return value
  if isinstance(value, spreadsheet.Converted):
    return value.text
  if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
    return str(value)
  return None


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
  """The first of some cells that is not empty; None if all are."""
  found = (values[n] for n in names if not is_missing(values.get(n)))
  return next(found, None)


def _is_empty(record: readers.Row) -> bool:
  return record.values is not None and all(
    is_missing(value) for value in record.values.values()
  )


def _write(tasks: Sequence[Task]) -> str:
  file = io.StringIO(newline='')
  names = [*Task('', 0, '', '').columns(), 'response']
  writer = csv.DictWriter(file, names, restval='')
  writer.writeheader()
  for task in tasks:
    protected = {
      'prompt_id': cells.protect_id(task.prompt_id),
      'task': cells.neutralise(task.task),
      'prompt': cells.neutralise(task.prompt),
    }
    writer.writerow({**task.columns(), **protected})
  return file.getvalue()


FORMAT = Format(
  name='a table',
  # The format of whatever no other format recognises.
  recognises=lambda records: True,
  read=read,
  write=_write,
  extension='csv',
)
