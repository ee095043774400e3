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

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
from typing import Any

from edsft_jax import console
from edsft_jax.annotation.formats import table, verdicts
from edsft_jax.annotation.formats.format import Format, Row, Task, Verdict
from edsft_jax.tables import listed, readers

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
  questions = _questions(records)
  rows = []
  num_pending = 0
  for record in records:
    found = list(_of_record(record, questions))
    rows += found
    num_pending += any(row.verdict is Verdict.SKIPPED for row in found)
  notes = []
  if num_pending:
    notes.append(
      f'{console.count(num_pending, "record")} without a submitted response: '
      'drafts are left out'
    )
  return rows, notes


@dataclasses.dataclass
class _Given:
  """What one annotator gave: an answer to each question."""

  values: dict[str, Any]
  status: str = ''


@dataclasses.dataclass(frozen=True)
class _Questions:
  """What the questions of a dataset hold.

  Attributes:
    response: the question with the answer.
    verdicts: those whose labels stand for a verdict.
  """

  response: str
  verdicts: frozenset[str]


def _questions(records: Sequence[readers.Row]) -> _Questions:
  """Finds the questions, which datasets of other teams call otherwise.

  Raises:
    InputError: several may hold the answers, or a label of a question with a
      verdict's name means nothing known.
  """
  said: dict[str, list[str]] = {}
  for record in records:
    with contextlib.suppress(table.NotText):  # Its row says what is wrong.
      for one in _given(record.values or {}).values():
        for question, value in one.values.items():
          if isinstance(value, str) and value.strip():
            said.setdefault(question, []).append(value)
  found = verdicts.columns_among(
    {n: v for n, v in said.items() if n not in ('response', 'reason')}
  )
  names = [name for name in said if name not in (*found, 'reason')]
  return _Questions(table.choose_answer(names), found)


def _of_record(record: readers.Row, questions: _Questions) -> Iterator[Row]:
  """A row per annotator; one that is skipped if nobody answered."""
  values = record.values
  if values is None:
    yield Row(record.place, problem=record.problem)
    return
  fields = values if _is_flat(values) else values.get('fields')
  if not isinstance(fields, dict) or 'prompt' not in fields:
    yield Row(record.place, problem='a record without the field prompt')
    return
  prompt_id = None
  try:
    prompt_id = _id(values)
    given = _given(values)
    nobody = {('', 0): _Given({}, 'pending')}
    for (annotator, _), one in (given or nobody).items():
      answer = one.values.get(questions.response)
      yield Row(
        place=record.place,
        id=prompt_id,
        prompt=table.as_text(fields['prompt'], 'the prompt'),
        response=table.as_text(answer, 'the response'),
        verdict=_verdict(one, values, questions),
        reason=str(one.values.get('reason') or ''),
        annotator=annotator,
      )
  except (table.NotText, verdicts.UnknownVerdict) as e:
    yield Row(record.place, id=prompt_id, problem=str(e))


def _id(values: Mapping[str, Any]) -> str | None:
  """The prompt's id; None if there is none.

  Raises:
    NotText: it is neither text nor a number.
  """
  metadata = values.get('metadata') or {}
  if not isinstance(metadata, dict):
    raise table.NotText('the metadata is not an object')
  ids = (
    values.get('prompt_id'),  # Flat records have no metadata of their own.
    metadata.get('prompt_id'),
    values.get('external_id'),
    values.get('id'),
  )
  found = next((i for i in ids if not table.is_missing(i)), None)
  return None if found is None else table.as_id(found)


def _given(values: Mapping[str, Any]) -> dict[tuple[str, int], _Given]:
  """What each annotator gave; unknown ones differ by their place.

  Raises:
    NotText: the record is malformed.
  """
  given: dict[tuple[str, int], _Given] = {}

  def add(
    place: int, user: Any, question: str, value: Any, status: Any
  ) -> None:
    one = given.setdefault((str(user or ''), 0 if user else place), _Given({}))
    one.values[question] = value
    one.status = one.status or str(status or '')

  responses = values.get('responses') or {}
  if _is_flat(values):
    for name in [n for n in values if n.endswith(_FLAT)]:
      answers = _listed(values[name], name)
      users = _listed(values.get(f'{name}.users'), name)
      statuses = _listed(values.get(f'{name}.status'), name)
      if any(some and len(some) != len(answers) for some in (users, statuses)):
        raise table.NotText(f'{name} has not a user and a status per answer')
      for k, value in enumerate(answers):
        user = users[k] if users else None
        status = statuses[k] if statuses else None
        add(k, user, name.removesuffix(_FLAT), value, status)
  elif isinstance(responses, dict):
    for question, answers in responses.items():
      for k, answer in enumerate(
        _objects(answers, f'the responses to {question}')
      ):
        user, status = answer.get('user_id'), answer.get('status')
        add(k, user, question, answer.get('value'), status)
  else:
    for k, response in enumerate(_objects(responses, 'the responses')):
      user, status = response.get('user_id'), response.get('status')
      found = response.get('values') or {}
      if not isinstance(found, dict):
        raise table.NotText('the values of a response are not an object')
      for question, answer in found.items():
        (one,) = _objects([answer], f'the values of {question}')
        add(k, user, question, one.get('value'), status)
      add(k, user, '', None, status)  # Discarded ones may have no values.
  return given


def _objects(found: Any, what: str) -> list[dict[str, Any]]:
  """A list of objects.

  Raises:
    NotText: it is something else.
  """
  found = [] if table.is_missing(found) else found
  if not isinstance(found, list) or not all(isinstance(o, dict) for o in found):
    raise table.NotText(f'{what} are not a list of objects')
  return found


def _listed(cell: Any, name: str) -> list[Any]:
  """A list, also as CSV has it: "['a', None]", or "['a' None]" from arrays.

  Raises:
    NotText: it is something else.
  """
  if table.is_missing(cell):
    return []
  if isinstance(cell, list):
    return cell
  try:
    return listed.parse(str(cell))
  except ValueError:
    raise table.NotText(f'{name} is not a list') from None


def _verdict(
  one: _Given, values: Mapping[str, Any], questions: _Questions
) -> Verdict | None:
  """What an annotator decided.

  If the response has no status, that of the record says whether it was
  submitted.
  """
  found = [verdicts.of_cell(q, one.values.get(q)) for q in questions.verdicts]
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
