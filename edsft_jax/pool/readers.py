"""Reads rows from files: JSON lines, JSON, CSV or parquet, also gzipped."""

from collections.abc import Iterator
import contextlib
import dataclasses
import gzip
import itertools
import json
import pathlib
from typing import Any, TextIO
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import errors, store

FORMATS = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'json',
  '.csv': 'csv',
  '.tsv': 'csv',
  '.parquet': 'parquet',
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One record of a file.

  Attributes:
    line: the line where it starts, from 1; the record's number for .json and
      .parquet.
    values: values by column name; None if the record could not be read.
    problem: why it could not be read, without its content.
  """

  line: int
  values: dict[str, Any] | None
  problem: str = ''


def find_format(path: pathlib.Path, override: str) -> str:
  """The format by the file extension, unless `override` names one.

  Raises:
    InputError: the format or the extension is unknown.
  """
  names = tuple(dict.fromkeys(FORMATS.values()))
  if override != 'auto':
    if override not in names:
      raise errors.unknown(
        f'pool.format {override!r}', override, ('auto', *names)
      )
    return override
  suffixes = [s.lower() for s in path.suffixes]
  if suffixes and suffixes[-1] == '.gz':
    suffixes.pop()
  if not suffixes or suffixes[-1] not in FORMATS:
    raise errors.InputError(
      f'{path} has no known extension ({", ".join(FORMATS)}, optionally .gz): '
      'set pool.format'
    )
  return FORMATS[suffixes[-1]]


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


def read(path: pathlib.Path, fmt: str, limit: int = 0) -> Iterator[Row]:
  """Yields a file's first `limit` records (0: all) in order.

  A broken record becomes a Row with a problem; a file that is broken as a whole
  raises InputError.
  """
  rows = _READERS[fmt](path)
  return itertools.islice(rows, limit) if limit else rows


def columns(path: pathlib.Path, fmt: str, limit: int = 0) -> list[str]:
  """Names of the columns that `read` yields, in order of first occurrence."""
  if fmt == 'parquet':
    with _parquet_errors(path):
      return pq.read_schema(path).names
  names: dict[str, None] = {}
  for row in read(path, fmt, limit):
    names.update(dict.fromkeys(row.values or ()))
    if fmt == 'csv' and names:  # Every row has the header's names.
      break
  return list(names)


def _open_text(path: pathlib.Path) -> TextIO:
  """Opens a plain or gzipped UTF-8 file, without translating newlines."""
  with path.open('rb') as f:
    zipped = f.read(2) == b'\x1f\x8b'
  opener = gzip.open if zipped else open
  return opener(path, 'rt', encoding='utf-8-sig', newline='')


def _text_error(
  path: pathlib.Path, line: int, error: Exception
) -> errors.InputError:
  """The error for a file that is not readable text after some line."""
  if isinstance(error, UnicodeDecodeError):
    return errors.InputError(
      f'{path} is not text: it cannot be read as UTF-8 after line {line}: '
      'save it as UTF-8 or set pool.format'
    )
  return errors.InputError(
    f'{path} cannot be read after line {line} ({error}): '
    'the file is damaged, fetch it again'
  )


def _physical_lines(path: pathlib.Path) -> Iterator[str]:
  """Yields lines with their newlines.

  Raises:
    InputError: the file is not UTF-8 text, or its gzip stream is damaged.
  """
  line = 0
  try:
    with _open_text(path) as f:
      head = f.read(4096)
      # UTF-16 and most binary files are full of NUL bytes. Text has none, or a
      # stray one, and then its row is rejected later.
      if head.count('\0') * 10 > len(head):
        raise errors.InputError(
          f'{path} is not text: it is full of NUL bytes: save it as UTF-8 or '
          'set pool.format'
        )
    with _open_text(path) as f:
      for text in f:
        line += 1
        yield text
  except (UnicodeDecodeError, EOFError, OSError, zlib.error) as e:
    raise _text_error(path, line, e) from None


def _read_jsonl(path: pathlib.Path) -> Iterator[Row]:
  for line, text in enumerate(_physical_lines(path), 1):
    if not text.strip():
      continue
    try:
      value = json.loads(text)
    # ValueError: not JSON, or an integer with more digits than Python allows.
    except (ValueError, RecursionError) as e:
      problem = e.msg if isinstance(e, json.JSONDecodeError) else 'unreadable'
      yield Row(line, None, f'broken JSON ({problem})')
      continue
    yield _object_row(line, value)


def _object_row(line: int, value: Any) -> Row:
  if isinstance(value, dict):
    return Row(line, value)
  return Row(line, None, f'not an object but {_json_type(value)}')


def _json_type(value: Any) -> str:
  names = {list: 'a list', str: 'text', bool: 'true or false'}
  if value is None:
    return 'null'
  return names.get(type(value), 'a number')


def _read_json(path: pathlib.Path) -> Iterator[Row]:
  """Reads a list of objects, or an object that holds one, or JSON lines."""
  text = ''.join(_physical_lines(path))
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as e:
    # Many .json files hold JSON lines.
    if isinstance(e, json.JSONDecodeError) and e.msg == 'Extra data':
      yield from _read_jsonl(path)
      return
    raise errors.InputError(
      f'{path} is not JSON ({e}): fix it or set pool.format'
    ) from None
  del text
  if isinstance(value, dict):
    lists = [v for v in value.values() if _is_object_list(v)]
    # An object without a list of objects is a single record.
    value = lists[0] if len(lists) == 1 and len(value) == 1 else [value]
  if not isinstance(value, list):
    raise errors.InputError(
      f'{path} holds {_json_type(value)}, not a list of objects: '
      'write one object per prompt'
    )
  for number, item in enumerate(value, 1):
    yield _object_row(number, item)


def _is_object_list(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _read_csv(path: pathlib.Path) -> Iterator[Row]:
  """Reads rows by the header's names; an empty cell becomes None."""
  records = store.csv_records(path, _physical_lines(path))
  _, header = next(records, (1, []))
  if isinstance(header, str):
    raise errors.InputError(f'{path}: the header is broken: {header}')
  header = [name.strip() for name in header]
  if len(set(header)) != len(header):
    twice = next(name for name in header if header.count(name) > 1)
    raise errors.InputError(
      f'{path} has two columns {twice!r}: rename one of them'
    )
  for line, fields in records:
    if isinstance(fields, str):
      yield Row(line, None, f'broken CSV ({fields})')
    elif len(fields) == len(header):
      values = zip(header, (f or None for f in fields), strict=True)
      yield Row(line, dict(values))
    else:
      problem = f'{len(fields)} fields, but the header has {len(header)}'
      yield Row(line, None, problem)


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
  number = 1
  with _parquet_errors(path), pq.ParquetFile(path) as f:
    for batch in f.iter_batches(batch_size=4096):
      yield from _batch_rows(batch, number)
      number += batch.num_rows


def _batch_rows(batch: pa.RecordBatch, number: int) -> Iterator[Row]:
  """Yields rows numbered from `number`; broken text becomes a problem."""
  try:
    records = batch.to_pylist()
  except UnicodeDecodeError:
    if batch.num_rows == 1:
      yield Row(number, None, 'not UTF-8')
    else:
      for n in range(batch.num_rows):
        yield from _batch_rows(batch.slice(n, 1), number + n)
  else:
    for n, values in enumerate(records, number):
      yield Row(n, values)


@contextlib.contextmanager
def _parquet_errors(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (pa.ArrowException, OSError) as e:
    reason = str(e).splitlines()[0]
    raise errors.InputError(
      f'{path} cannot be read as parquet ({reason}): '
      'fetch it again, or set pool.format'
    ) from None


_READERS = {
  'jsonl': _read_jsonl,
  'json': _read_json,
  'csv': _read_csv,
  'parquet': _read_parquet,
}
