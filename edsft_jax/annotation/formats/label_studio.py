"""Label Studio: todo.label_studio.json, and its exports.

Tasks and exports as in Label Studio 1.23: JSON, with all annotations of a task,
and JSON-MIN, CSV and TSV, with a row per annotation. `id` is Label Studio's own
number of a task; ours is `prompt_id` in the task's data. A todo of ours from
before there was a prompt_id has none, and its prompts are found by their text.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from typing import Any

from edsft_jax import store
from edsft_jax.annotation.formats import table, verdicts
from edsft_jax.annotation.formats.format import Format, Row, Task, Verdict
from edsft_jax.tables import readers

# Settings > Labeling Interface > Code.
CONFIG = """\
<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt" valueType="text"/>
  <Header value="Answer"/>
  <TextArea name="response" toName="prompt" rows="8" maxSubmissions="1"
            editable="true"/>
  <Header value="Only if the prompt cannot be answered"/>
  <Choices name="verdict" toName="prompt" choice="single" showInline="true">
    <Choice value="rejected"/>
  </Choices>
  <TextArea name="reason" toName="prompt" rows="2" maxSubmissions="1"
            editable="true" placeholder="why it is rejected"/>
</View>
"""
# Columns of JSON-MIN and CSV that nothing else has.
_OF_EXPORT = frozenset({'annotation_id', 'annotator', 'lead_time'})
_KEPT = ('lead_time', 'created_at', 'updated_at', 'ground_truth')


def _write(tasks: Sequence[Task]) -> str:
  rows = [{'data': task.columns()} for task in tasks]
  return json.dumps(rows, indent=1, ensure_ascii=False) + '\n'


def _is_json(records: Sequence[readers.Row]) -> bool:
  return any(
    isinstance(r.values.get('data'), dict)
    and isinstance(r.values.get('annotations'), list)
    for r in records
    if r.values
  )


def _read_json(
  records: Sequence[readers.Row],
) -> tuple[list[Row], list[str]]:
  text = json.dumps([r.values for r in records], default=str)
  named = '"from_name": "response"' in text
  return [row for record in records for row in _of_task(record, named)], []


def _of_task(record: readers.Row, named: bool) -> Iterator[Row]:
  """A row per annotation; a task without any has been left open.

  Args:
    record: the task.
    named: whether some answer in the file is called response.
  """
  values = record.values or {}
  data, annotations = values.get('data'), values.get('annotations')
  if not isinstance(data, dict) or not isinstance(annotations, list):
    problem = record.problem or 'not a task with data and annotations'
    yield Row(record.place, problem=problem)
    return
  prompt_id = next((data[n] for n in ('prompt_id', 'id') if n in data), None)
  for annotation in annotations or [{'was_cancelled': True}]:
    try:
      yield Row(
        place=record.place,
        id=None if prompt_id is None else table.as_id(prompt_id),
        prompt=table.as_text(data['prompt'], 'the prompt')
        if 'prompt' in data
        else None,
        **_of_annotation(annotation, named),
      )
    except (table.NotText, verdicts.UnknownVerdict) as e:
      yield Row(record.place, id=str(prompt_id), problem=str(e))


def _of_annotation(annotation: Any, named: bool) -> dict[str, Any]:
  """The fields of a row that an annotation fills.

  Raises:
    NotText: it has several answers, or is not in the form of Label Studio.
    UnknownVerdict: a choice means nothing known.
  """
  if not isinstance(annotation, Mapping):
    raise table.NotText('an annotation is not an object')
  texts, choices = _results(annotation.get('result'))
  name = 'response' if named else table.answer_name(texts)
  response = texts.get(name, [])
  if len(response) > 1:
    raise table.NotText(f'the response has {len(response)} parts: join them')
  found = [
    verdicts.of_word(control, word)
    for control, words in choices.items()
    for word in words
    if control == 'verdict' or verdicts.holds_verdicts(control, [word])
  ]
  if annotation.get('was_cancelled') or _was_sent_back(annotation):
    found.append(Verdict.SKIPPED)
  others: dict[str, store.Scalar] = {
    name: value
    for name in _KEPT
    if (value := table.as_scalar(annotation.get(name))) is not None
  }
  if (number := table.as_scalar(annotation.get('id'))) is not None:
    others['annotation_id'] = number
  return {
    'response': ''.join(response),
    'verdict': verdicts.heaviest(found),
    'reason': ' '.join(texts.get('reason', ())),
    'annotator': _annotator(annotation.get('completed_by')),
    'others': others,
  }


def _results(results: Any) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
  """Texts and choices by the name of their control.

  Raises:
    NotText: a result is not in the form of Label Studio.
  """
  texts: dict[str, list[str]] = {}
  choices: dict[str, list[str]] = {}
  for result in table.as_objects(results, 'a result'):
    value, name = result.get('value') or {}, str(result.get('from_name'))
    if not isinstance(value, Mapping):
      raise table.NotText('the value of a result is not an object')
    for kind, of_kind in (('text', texts), ('choices', choices)):
      found = value.get(kind)
      found = [found] if isinstance(found, str) else found or []
      if not isinstance(found, list) or not all(
        isinstance(text, str) for text in found
      ):
        raise table.NotText(f'the {kind} of {name} is not text')
      if found:
        of_kind.setdefault(name, []).extend(found)
  return texts, choices


def _was_sent_back(annotation: Mapping[str, Any]) -> bool:
  """Whether the last reviewer did not accept the answer."""
  reviews = table.as_objects(annotation.get('reviews'), 'a review')
  return bool(reviews) and reviews[-1].get('accepted') is False


def _annotator(completed_by: Any) -> str:
  """A number, or an object with an email address in some exports."""
  if isinstance(completed_by, dict):
    completed_by = completed_by.get('email', completed_by.get('id'))
  return '' if completed_by is None else str(completed_by)


def _is_table(records: Sequence[readers.Row]) -> bool:
  return any(r.values.keys() >= _OF_EXPORT for r in records if r.values)


def _read_table(
  records: Sequence[readers.Row],
) -> tuple[list[Row], list[str]]:
  schema = table.Schema(ids=('prompt_id',), left_out=('id', 'inner_id'))
  return table.read([_without_lists(record) for record in records], schema)


def _without_lists(record: readers.Row) -> readers.Row:
  """Rejects several answers in one cell, which CSV holds as an object."""
  response = (record.values or {}).get('response')
  if isinstance(response, list) or (
    isinstance(response, str) and response.startswith('{"text":[')
  ):
    problem = 'the response has several parts: join them'
    return readers.Row(record.line, None, problem, record.file)
  return record


FORMAT = Format(
  name='Label Studio JSON',
  recognises=_is_json,
  read=_read_json,
  write=_write,
  extension='label_studio.json',
  companions={'label_studio.xml': CONFIG},
)
TABLE = Format(
  name='a Label Studio table',
  recognises=_is_table,
  read=_read_table,
)
