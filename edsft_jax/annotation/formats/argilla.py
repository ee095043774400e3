"""Argilla: todo.argilla.json, and its exports.

Records as in Argilla 2.8: `dataset.records.from_json` reads the todo, and
exports come from

  records.to_json(path) or .to_list()   responses by question; the status of a
                                        response is lost, that of its record is
                                        not
  records.to_list(flatten=True), records.to_datasets()   columns such as
                                        response.responses and
                                        response.responses.status

and, from Argilla 1, `responses` as a list of {user_id, values, status}. The
dataset needs a text field `prompt` and a text question `response`; a label
question `verdict` with the label `rejected` and a text question `reason` are
optional. Discarding a record rejects its prompt.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
from typing import Any

from edsft_jax.annotation.formats import table, verdicts
from edsft_jax.annotation.formats.format import Format, Row, Task, Verdict
from edsft_jax.tables import readers

_FLAT = '.responses'


def _write(tasks: Sequence[Task]) -> str:
  rows = []
  for task in tasks:
    metadata = task.columns()
    fields = {'prompt': metadata.pop('prompt')}
    rows.append(
      {
        'id': task.prompt_id,
        'fields': fields,
        'metadata': metadata,
        'suggestions': {},
        'responses': {},
        'vectors': {},
        'status': 'pending',
        '_server_id': None,
      }
    )
  return json.dumps(rows, indent=1, ensure_ascii=False) + '\n'


def _is_flat(values: Mapping[str, Any]) -> bool:
  return any(name.endswith(_FLAT) for name in values)


def _recognises(records: Sequence[readers.Row]) -> bool:
  return any(
    _is_flat(r.values)
    or (isinstance(r.values.get('fields'), dict) and 'responses' in r.values)
    for r in records
    if r.values
  )


def _read(records: Sequence[readers.Row]) -> tuple[list[Row], list[str]]:
  rows = []
  num_pending = 0
  for record in records:
    found = list(_of_record(record))
    rows += found
    num_pending += any(row.verdict is Verdict.SKIPPED for row in found)
  notes = []
  if num_pending:
    notes.append(
      f'{num_pending:,} records have no submitted response: their drafts are '
      'left out'
    )
  return rows, notes


@dataclasses.dataclass
class _Given:
  """What one annotator gave: an answer to each question."""

  values: dict[str, Any]
  status: str = ''


def _of_record(record: readers.Row) -> Iterator[Row]:
  """A row per annotator; one that is skipped if nobody answered."""
  values = record.values
  if values is None:
    yield Row(record.place, problem=record.problem)
    return
  fields = values if _is_flat(values) else values.get('fields')
  if not isinstance(fields, dict) or 'prompt' not in fields:
    yield Row(record.place, problem='a record without the field prompt')
    return
  metadata = values.get('metadata')
  metadata = metadata if isinstance(metadata, dict) else {}
  ids = (
    values.get('prompt_id'),  # Flat records have no metadata of their own.
    metadata.get('prompt_id'),
    values.get('external_id'),
    values.get('id'),
  )
  prompt_id = next((i for i in ids if not table.is_missing(i)), None)
  try:
    given = _given(values)
  except table.NotText as e:
    yield Row(record.place, id=str(prompt_id), problem=str(e))
    return
  for annotator, one in (given or {'': _Given({}, 'pending')}).items():
    try:
      yield Row(
        place=record.place,
        id=None if prompt_id is None else table.as_id(prompt_id),
        prompt=table.as_text(fields['prompt'], 'the prompt'),
        response=_response(one),
        verdict=_verdict(one, values),
        reason=str(one.values.get('reason') or ''),
        annotator=annotator,
      )
    except (table.NotText, verdicts.UnknownVerdict) as e:
      yield Row(record.place, id=str(prompt_id), problem=str(e))


def _response(given: _Given) -> str:
  """The answer, whatever the project calls its question.

  Raises:
    NotText: it is not text, or one of several.
  """
  name = 'response'
  if name not in given.values:
    name = table.answer_name(n for n, v in given.values.items() if _is_text(v))
  return table.as_text(given.values.get(name), 'the response')


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value.strip())


def _as_list(value: Any, what: str) -> list[Any]:
  """A list, which CSV holds as text; [] if it is missing.

  Raises:
    NotText: it is something else.
  """
  if isinstance(value, str) and value.strip():
    try:
      value = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
      raise table.NotText(f'{what} is not a list') from None
  if table.is_missing(value):
    return []
  if not isinstance(value, list):
    raise table.NotText(f'{what} is not a list')
  return value


def _given(values: Mapping[str, Any]) -> dict[str, _Given]:
  """Annotator -> what this annotator gave.

  Raises:
    NotText: the record is not in one of Argilla's forms.
  """
  given: dict[str, _Given] = {}

  def add(user: Any, question: str, value: Any, status: Any) -> None:
    one = given.setdefault(str(user or ''), _Given({}))
    one.values[question] = value
    one.status = one.status or str(status or '')

  responses = values.get('responses')
  if _is_flat(values):
    for name in [n for n in values if n.endswith(_FLAT)]:
      answers = _as_list(values[name], name)
      nobody = [None] * len(answers)
      users = _as_list(values.get(f'{name}.users'), name) or nobody
      statuses = _as_list(values.get(f'{name}.status'), name) or nobody
      if not len(users) == len(answers) == len(statuses):
        raise table.NotText(
          f'{name}, its users and its status differ in length'
        )
      for user, value, status in zip(users, answers, statuses, strict=True):
        add(user, name.removesuffix(_FLAT), value, status)
  elif isinstance(responses, dict):
    for question, answers in responses.items():
      for answer in table.as_objects(answers, 'a response'):
        user, status = answer.get('user_id'), answer.get('status')
        add(user, question, answer.get('value'), status)
  else:
    for response in table.as_objects(responses, 'a response'):
      user, status = response.get('user_id'), response.get('status')
      by_question = response.get('values') or {}
      if not isinstance(by_question, dict):
        raise table.NotText('the values of a response are not an object')
      for question, answer in by_question.items():
        value = answer.get('value') if isinstance(answer, dict) else answer
        add(user, question, value, status)
      add(user, '', None, status)  # Discarded ones may have no values.
  return given


def _verdict(one: _Given, values: Mapping[str, Any]) -> Verdict | None:
  """What an annotator decided.

  Without a status of the response, that of the record tells whether there is a
  submitted one.
  """
  found = [verdicts.of_word('verdict', one.values.get('verdict'))]
  status = one.status or str(values.get('status') or '')
  if status in ('draft', 'pending'):
    return Verdict.SKIPPED
  if status == 'discarded':
    found.append(Verdict.REJECTED)
  return verdicts.heaviest(found)


FORMAT = Format(
  name='Argilla records',
  recognises=_recognises,
  read=_read,
  write=_write,
  extension='argilla.json',
)
