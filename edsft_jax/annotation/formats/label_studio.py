"""Label Studio: todo.label_studio.json, and its exports.

Tasks and exports as in Label Studio 1.23: JSON, with all annotations of a task,
and JSON-MIN, CSV and TSV, with a row per annotation. `id` is Label Studio's own
number of a task; ours is `prompt_id` in the task's data. A todo of ours from
before there was a prompt_id has none, and its prompts are found by their text.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
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
  controls = _controls(records)
  return [row for record in records for row in _of_task(record, controls)], []


@dataclasses.dataclass(frozen=True)
class _Controls:
  """What the controls of a labelling configuration hold.

  Attributes:
    response: the control with the answer.
    verdicts: those with choices that stand for a verdict.
  """

  response: str
  verdicts: frozenset[str]


def _controls(records: Sequence[readers.Row]) -> _Controls:
  """Finds the controls: teams may have a configuration of their own.

  Raises:
    InputError: several may hold the answers, or a choice with a verdict's name
      means nothing known.
  """
  texts: dict[str, None] = {}
  choices: dict[str, list[Any]] = {}
  for record in records:
    annotations = (record.values or {}).get('annotations')
    for annotation in annotations if isinstance(annotations, list) else ():
      with contextlib.suppress(table.NotText):  # Its row says what is wrong.
        given = _Given(annotation)
        texts.update({n: None for n, some in given.texts.items() if any(some)})
        for name, some in given.choices.items():
          choices.setdefault(name, []).extend(some)
  found = verdicts.columns_among(choices)
  names = [n for n in texts if n not in (*found, 'reason')]
  return _Controls(table.choose_answer(names), found)


class _Given:
  """What an annotator gave.

  Attributes:
    texts: control -> texts.
    choices: control -> choices.
  """

  def __init__(self, annotation: Any):
    """Reads an annotation.

    Raises:
      NotText: it is malformed.
    """
    self.texts: dict[str, list[str]] = {}
    self.choices: dict[str, list[str]] = {}
    if not isinstance(annotation, dict):
      raise table.NotText('an annotation is not an object')
    results = annotation.get('result') or []
    if not isinstance(results, list):
      raise table.NotText('the result of an annotation is not a list')
    for result in results:
      value = (result.get('value') or {}) if isinstance(result, dict) else None
      if not isinstance(value, dict):
        raise table.NotText('a result of an annotation is not an object')
      name = str(result.get('from_name'))
      if 'choices' in value:
        self._add(self.choices, name, value['choices'])
      elif 'text' in value and 'start' not in value:  # Not a span of a text.
        self._add(self.texts, name, value['text'])

  def _add(self, to: dict[str, list[str]], name: str, found: Any) -> None:
    found = found if isinstance(found, list) else [found]
    to.setdefault(name, []).extend(
      table.as_text(v, f'the {name}') for v in found
    )


def _of_task(record: readers.Row, controls: _Controls) -> Iterator[Row]:
  """A row per annotation; a task without any has been left open."""
  values = record.values or {}
  data, annotations = values.get('data'), values.get('annotations')
  if not isinstance(data, dict) or not isinstance(annotations, list):
    problem = record.problem or 'not a task with data and annotations'
    yield Row(record.place, problem=problem)
    return
  found = next((data[n] for n in ('prompt_id', 'id') if n in data), None)
  for annotation in annotations or [{'was_cancelled': True}]:
    prompt_id = None
    try:
      prompt_id = None if found is None else table.as_id(found)
      yield Row(
        place=record.place,
        id=prompt_id,
        prompt=table.as_text(data['prompt'], 'the prompt')
        if 'prompt' in data
        else None,
        **_of_annotation(annotation, controls),
      )
    except (table.NotText, verdicts.UnknownVerdict) as e:
      yield Row(record.place, id=prompt_id, problem=str(e))


def _of_annotation(annotation: Any, controls: _Controls) -> dict[str, Any]:
  """The fields of a row that an annotation fills.

  Raises:
    NotText: it has several answers, or is malformed.
    UnknownVerdict: a choice means nothing known.
  """
  given = _Given(annotation)
  response = given.texts.get(controls.response, [])
  if len(response) > 1:
    raise table.NotText(f'the response has {len(response)} parts: join them')
  said = {**given.texts, **given.choices}
  found = [
    verdicts.of_cell(name, word)
    for name in controls.verdicts
    for word in said.get(name, ())
  ]
  found.append(_of_reviews(annotation.get('reviews') or []))
  if annotation.get('was_cancelled'):
    found.append(Verdict.SKIPPED)
  others: dict[str, store.Scalar] = {
    name: value
    for name in _KEPT
    if (value := table.as_scalar(annotation.get(name))) is not None
  }
  if annotation.get('id') is not None:
    number = table.as_scalar(annotation['id'])
    if number is None:
      raise table.NotText('the id of an annotation is not a number')
    others['annotation_id'] = number
  return {
    'response': ''.join(response),
    'verdict': verdicts.heaviest(found),
    'reason': ' '.join(said.get('reason', ())),
    'annotator': _annotator(annotation.get('completed_by')),
    'others': others,
  }


def _of_reviews(reviews: Any) -> Verdict | None:
  """What the last reviewer decided.

  Raises:
    NotText: it is not a list of reviews.
    UnknownVerdict: it is neither a yes nor a no.
  """
  if not isinstance(reviews, list) or not all(
    isinstance(review, dict) for review in reviews
  ):
    raise table.NotText('the reviews of an annotation are not objects')
  if not reviews:
    return None
  last = max(reversed(reviews), key=lambda r: str(r.get('created_at') or ''))
  is_rejection = verdicts.of_flag('accepted', last.get('accepted'))
  # Whether an accepted one has an answer is for the annotation to say.
  return is_rejection if is_rejection is Verdict.REJECTED else None


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
