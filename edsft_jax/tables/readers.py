"""Reads rows from files: JSON lines, JSON, CSV, parquet, Arrow, spreadsheets.

Text may be compressed with gzip or zstd; it is UTF-8, or UTF-16 with a byte
order mark.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
from typing import Any, TextIO
import zlib

import pyarrow as pa

from edsft_jax import errors, store

FORMATS = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'json',
  '.csv': 'csv',
  '.tsv': 'csv',
  '.parquet': 'parquet',
  '.arrow': 'arrow',
  '.feather': 'arrow',
  '.xlsx': 'xlsx',
}
COMPRESSED = ('.gz', '.zst')
_MAGIC = {b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd'}
_UTF16 = (b'\xff\xfe', b'\xfe\xff')


@dataclasses.dataclass(frozen=True)
class Row:
  """One record of a file.

  Attributes:
    line: the line where it starts, from 1; the record's number in tables.
    values: values by column name; None if the record could not be read.
    problem: why it could not be read, without its content.
    file: the name of its file, if there are several.
  """

  line: int
  values: dict[str, Any] | None
  problem: str = ''
  file: str = ''

  @property
  def place(self) -> str:
    """The position, for messages."""
    return (
      f'{self.file}, line {self.line}' if self.file else f'line {self.line}'
    )


def find_format(path: pathlib.Path, override: str, option: str) -> str:
  """The format by the file extension, unless `override` names one.

  Args:
    path: the file.
    override: a format, or 'auto'.
    option: the option that sets it, for messages.

  Raises:
    InputError: the format or the extension is unknown.
  """
  names = tuple(dict.fromkeys(FORMATS.values()))
  if override != 'auto':
    if override not in names:
      raise errors.unknown(f'{option}={override!r}', override, ('auto', *names))
    return override
  if not is_known(path):
    raise errors.InputError(
      f'{path} has no known extension ({", ".join(FORMATS)}; text also with '
      f'{" or ".join(COMPRESSED)} after it): set {option}'
    )
  return FORMATS[_extension(path)]


def is_known(path: pathlib.Path) -> bool:
  """Whether the file extension is known."""
  return _extension(path) in FORMATS


def hash_rows(rows: Iterable[Row]) -> str:
  """SHA-256 of the values of rows, in hex."""
  digest = hashlib.sha256()
  for row in rows:
    values = json.dumps(row.values, sort_keys=True, default=repr)
    digest.update(f'{values}\n'.encode())
  return digest.hexdigest()


def _extension(path: pathlib.Path) -> str:
  """The extension in lower case, without that of a compression."""
  suffixes = [s.lower() for s in path.suffixes]
  if suffixes and suffixes[-1] in COMPRESSED:
    suffixes.pop()
  return suffixes[-1] if suffixes else ''


def check_readable(path: pathlib.Path, option: str) -> None:
  """Checks that a file can be opened.

  Raises:
    InputError: naming the option.
  """
  if path.is_dir():
    raise errors.InputError(f'{option}={path} is a folder: name a file')
  try:
    with path.open('rb') as f:
      f.read(1)
  except FileNotFoundError:
    raise errors.InputError(
      f'{option}={path} does not exist: check the path'
    ) from None
  except OSError as e:
    raise errors.InputError(
      f'{option}={path} cannot be read ({e.strerror}): change its permissions'
    ) from None


def read(path: pathlib.Path, fmt: str, option: str = '') -> Iterator[Row]:
  """Yields a file's records in order.

  A broken record becomes a Row with a problem; a file that is broken as a whole
  raises InputError.

  Args:
    path: the file.
    fmt: one of the values of FORMATS.
    option: the option that sets the format, for messages; '' if there is none.
  """
  from edsft_jax.tables import typed

  readers: dict[str, Callable[[pathlib.Path, str], Iterator[Row]]] = {
    'jsonl': _read_jsonl,
    'json': _read_json,
    'csv': _read_csv,
    'parquet': typed.read_parquet,
    'arrow': typed.read_arrow,
    'xlsx': typed.read_xlsx,
  }
  return readers[fmt](path, f' or set {option}' if option else '')


def refuse_same_names(path: pathlib.Path, names: Sequence[str]) -> None:
  """Rejects two columns with the same name, unless it is empty.

  Raises:
    InputError: naming the column.
  """
  named = [name for name in names if name]
  if len(set(named)) != len(named):
    twice = next(name for name in named if named.count(name) > 1)
    raise errors.InputError(
      f'{path} has two columns {twice!r}: rename one of them'
    )


def open_text(path: pathlib.Path) -> TextIO:
  """Opens a text file, compressed or not, without translating newlines."""
  with path.open('rb') as f:
    magic = f.read(4)
  codec = next((c for m, c in _MAGIC.items() if magic.startswith(m)), None)
  # Python itself can read zstd only from 3.14 on.
  buffered = io.BufferedReader(pa.input_stream(str(path), compression=codec))
  encoding = 'utf-16' if buffered.peek(2)[:2] in _UTF16 else 'utf-8-sig'
  return io.TextIOWrapper(buffered, encoding=encoding, newline='')


@contextlib.contextmanager
def _naming(path: pathlib.Path, lines: list[int], hint: str) -> Iterator[None]:
  """Converts errors while reading text to one line."""
  try:
    yield
  except (UnicodeDecodeError, EOFError, OSError, zlib.error) as e:
    if isinstance(e, UnicodeError):
      raise errors.InputError(
        f'{path} is not text: it cannot be read as UTF-8 after line '
        f'{lines[0]}: save it as UTF-8{hint}'
      ) from None
    raise errors.InputError(
      f'{path} cannot be read after line {lines[0]} ({e}): '
      'the file is damaged, fetch it again'
    ) from None


def physical_lines(path: pathlib.Path, hint: str = '') -> Iterator[str]:
  """Yields lines with their newlines; `hint` is added to some messages.

  Raises:
    InputError: the file is not text, or its compressed stream is damaged.
  """
  line = [0]
  with _naming(path, line, hint), open_text(path) as f:
    head = f.read(4096)
    # UTF-16 without a mark and most binary files are full of NUL bytes. Text
    # has none, or a stray one, and then its row is rejected later.
    if head.count('\0') * 10 > len(head):
      raise errors.InputError(
        f'{path} is not text: it is full of NUL bytes: save it as UTF-8{hint}'
      )
    # The head may end within a line.
    first = io.StringIO(head + f.readline(), newline='')
    for text in itertools.chain(first, f):
      line[0] += 1
      yield text


def _read_jsonl(path: pathlib.Path, hint: str) -> Iterator[Row]:
  lines = physical_lines(path, hint)
  first = True
  for line, text in enumerate(lines, 1):
    if not text.strip():
      continue
    is_first, first = first, False
    if is_first and text.lstrip().startswith('['):
      # A JSON array with the wrong extension.
      yield from _json_rows(path, text + ''.join(lines), hint)
      return
    yield _json_line(line, text)


def _json_line(line: int, text: str) -> Row:
  try:
    value = json.loads(text)
  # ValueError: not JSON, or an integer with more digits than Python allows.
  except (ValueError, RecursionError) as e:
    problem = e.msg if isinstance(e, json.JSONDecodeError) else 'unreadable'
    return Row(line, None, f'broken JSON ({problem})')
  return _object_row(line, value)


def _object_row(line: int, value: Any) -> Row:
  if isinstance(value, dict):
    return Row(line, value)
  return Row(line, None, f'not an object but {_json_type(value)}')


def _json_type(value: Any) -> str:
  names = {list: 'a list', str: 'text', bool: 'true or false'}
  if value is None:
    return 'null'
  return names.get(type(value), 'a number')


def _read_json(path: pathlib.Path, hint: str) -> Iterator[Row]:
  """Reads a list of objects, or an object that holds one, or JSON lines."""
  yield from _json_rows(path, ''.join(physical_lines(path, hint)), hint)


def _json_rows(path: pathlib.Path, text: str, hint: str) -> Iterator[Row]:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as e:
    # Many .json files hold JSON lines.
    if isinstance(e, json.JSONDecodeError) and e.msg == 'Extra data':
      # Text in JSON may hold other line ends than \n as they are.
      for line, one in enumerate(text.split('\n'), 1):
        if one.strip():
          yield _json_line(line, one)
      return
    raise errors.InputError(f'{path} is not JSON ({e}): fix it{hint}') from None
  if isinstance(value, dict):
    value.pop(_CANARY, None)
    lists = [n for n, v in value.items() if _is_object_list(v)]
    if lists and len(value) > 1:
      raise errors.InputError(
        f'{path} is an object with {" and ".join(lists)}: save the list of '
        f'prompts as a file of its own{hint}'
      )
    # An object without a list of records is a single record.
    value = value[lists[0]] if lists else [value]
  if not isinstance(value, list):
    raise errors.InputError(
      f'{path} holds {_json_type(value)}, not a list of objects: '
      'write one object per prompt'
    )
  for number, item in enumerate(value, 1):
    yield _object_row(number, item)


# A text in BIG-bench's files that shows whether a model has seen them.
_CANARY = 'canary'


def _is_object_list(value: Any) -> bool:
  """Whether a value is a list of records, and not of turns."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(v, dict) for v in value)
    and not any('role' in v or 'from' in v for v in value)
  )


def _read_csv(path: pathlib.Path, hint: str) -> Iterator[Row]:
  """Reads rows by the header's names; an empty cell becomes None."""
  records = store.csv_records(path, physical_lines(path, hint))
  _, header = next(records, (1, []))
  if isinstance(header, str):
    raise errors.InputError(f'{path}: the header is broken: {header}')
  header = [name.strip() for name in header]
  refuse_same_names(path, header)
  for line, fields in records:
    if isinstance(fields, str):
      yield Row(line, None, f'broken CSV ({fields})')
    elif len(fields) != len(header):
      problem = f'{len(fields)} fields, but the header has {len(header)}'
      yield Row(line, None, problem)
    else:
      cells = (field or None for field in fields)
      yield Row(line, dict(zip(header, cells, strict=True)))
