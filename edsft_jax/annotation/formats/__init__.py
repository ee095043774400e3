"""The formats of annotation tools: todos for them, and what they deliver.

To add one, write a module with a `Format`, and add it to FORMATS.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from edsft_jax import errors
from edsft_jax.annotation.formats import (
  argilla,
  cells,
  jsonl,
  label_studio,
  prodigy,
  table,
)
from edsft_jax.annotation.formats.format import Format, Row, Task, Verdict
from edsft_jax.tables import readers, typed

__all__ = [
  'FORMATS',
  'Delivered',
  'Format',
  'Row',
  'Task',
  'Verdict',
  'read',
  'written',
]

# The first one that recognises a file reads it; the last one takes any table.
FORMATS: Sequence[Format] = (
  label_studio.FORMAT,
  label_studio.TABLE,
  argilla.FORMAT,
  prodigy.FORMAT,
  jsonl.FORMAT,
  table.FORMAT,
)

_BINARY = {b'PK\x03\x04': 'xlsx', b'PAR1': 'parquet', b'ARROW1': 'arrow'}


def written() -> list[Format]:
  """The formats in which todos are written, the main one first."""
  formats = [f for f in FORMATS if f.write]
  return sorted(formats, key=lambda f: f is not table.FORMAT)


@dataclasses.dataclass(frozen=True)
class Delivered:
  """What a delivered file has.

  Attributes:
    format: the format in which it was read.
    rows: its annotations.
    notes: messages for the user.
  """

  format: str
  rows: list[Row]
  notes: list[str]


def read(path: pathlib.Path) -> Delivered:
  """Reads a file of answers, whatever its format.

  Raises:
    InputError: it cannot be read, or has no answers.
  """
  kind = _kind(path)
  if kind == 'xlsx':
    records = list(
      typed.read_xlsx(path, '', value_of=cells.value, fills_merged=False)
    )
  else:
    records = list(readers.read(path, kind))
  if not records:
    raise errors.InputError(
      f'{path} has no rows: fill in a todo, or name another file'
    )
  found = next(f for f in FORMATS if f.recognises(records))
  try:
    rows, notes = found.read(records)
  except errors.InputError as e:
    raise errors.InputError(f'{path} {e}') from None
  return Delivered(found.name, rows, notes)


def _kind(path: pathlib.Path) -> str:
  """The kind of file, by its content if that differs from its name."""
  try:
    with path.open('rb') as f:
      head = f.read(8)
    for magic, kind in _BINARY.items():
      if head.startswith(magic):
        return kind
    if head == b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1':
      raise errors.InputError(
        f'{path} is a workbook of an old format: save it as .xlsx'
      )
    named = readers.FORMATS.get(path.suffix.lower(), '')
    if named in _BINARY.values():
      return named
    with readers.open_text(path) as text:
      start = text.read(4096).lstrip()[:1]
  except UnicodeDecodeError:
    start = ''  # Its reader says what is wrong.
  except OSError as e:
    raise errors.InputError(
      f'{path} cannot be read ({e.strerror or e}): check the file and its '
      'permissions'
    ) from None
  if start in ('[', '{'):
    return 'json' if named not in ('json', 'jsonl') else named
  return named or 'csv'
