"""Prodigy: the output of `prodigy db-out`, as documented for Prodigy 1.

The prompt is in `text`, its id in `prompt_id` or in `meta`, the answer in the
text input's field (`user_input` unless its block has a field_id), and the
verdict in `answer`: accept, reject or ignore. Tables made of it may lack the
fields that Prodigy adds.
"""

from collections.abc import Sequence

from edsft_jax.annotation.formats import table
from edsft_jax.annotation.formats.format import Format, Row
from edsft_jax.tables import readers

_ANSWERS = frozenset({'accept', 'reject', 'ignore'})
_MARKS = frozenset({'_input_hash', '_task_hash', '_view_id', '_timestamp'})
_SCHEMA = table.Schema(
  ids=('prompt_id', 'id'),
  prompts=('text', 'prompt'),
  responses=('response', 'user_input'),
  verdicts=('answer',),
  left_out=('_input_hash', '_task_hash', '_view_id', '_is_binary', 'meta'),
)


def _recognises(records: Sequence[readers.Row]) -> bool:
  rows = [r.values for r in records if r.values]
  given = [row for row in rows if not table.is_missing(row.get('answer'))]
  if any(
    str(row['answer']) in _ANSWERS and _MARKS & row.keys() for row in given
  ):
    return True
  has_texts = any(name in row for row in rows for name in _SCHEMA.responses)
  return (
    has_texts
    and bool(given)
    and all(str(row['answer']) in _ANSWERS for row in given)
  )


def _read(records: Sequence[readers.Row]) -> tuple[list[Row], list[str]]:
  return table.read([_with_id(record) for record in records], _SCHEMA)


def _with_id(record: readers.Row) -> readers.Row:
  """Moves an id from `meta`, where Prodigy shows it to annotators."""
  values = record.values
  if not values or 'prompt_id' in values:
    return record
  meta = values.get('meta')
  meta = meta if isinstance(meta, dict) else {}
  found = (meta.get('prompt_id'), values.get('id'), meta.get('id'))
  prompt_id = next((i for i in found if i is not None), None)
  if prompt_id is None:
    return record
  return readers.Row(
    record.line, {**values, 'prompt_id': prompt_id}, file=record.file
  )


FORMAT = Format(name='Prodigy', recognises=_recognises, read=_read)
