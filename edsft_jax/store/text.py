"""Text from user files: CSV records, and text that cannot be written."""

from collections.abc import Iterator
import csv
import itertools
import pathlib
import re
import sys

from edsft_jax import errors


def damage(text: str) -> str:
  """Why a text cannot be written or tokenised, or ''."""
  if '\0' in text:
    return 'a NUL byte'
  return '' if is_unicode(text) else 'half of a surrogate pair'


def is_unicode(text: str) -> bool:
  """Whether a text can be written: JSON may have half of a surrogate pair."""
  try:
    if not text.isascii():
      text.encode()
  except UnicodeEncodeError:
    return False
  return True


def csv_records(
  path: pathlib.Path, lines: Iterator[str]
) -> Iterator[tuple[int, list[str] | str]]:
  """Yields the records of a CSV file, the header first.

  The separator is a comma, semicolon or tab, whichever is most frequent in the
  first line: in many countries, spreadsheets use semicolons. Cells may have any
  length. Empty lines are skipped.

  Args:
    path: the file, for messages.
    lines: its lines, with newlines.

  Yields:
    The line where a record begins, from 1, and its fields, or text that says
    why it is broken. If an unclosed quote turns several records into one cell,
    each of their lines is yielded as broken.

  Raises:
    InputError: a quote is never closed, so the rest of the file would end up in
      one cell.
  """
  first = next(lines, None)
  if first is None:
    return
  # Excel writes the separator into a line of its own.
  named = re.fullmatch(r'\ufeff?sep=(.)\s*', first, re.I)
  if named:
    first = next(lines, '')
  delimiter = named[1] if named else max(',;\t|', key=first.count)
  read: list[str] = []  # Lines of the current record.

  def recorded() -> Iterator[str]:
    for text in itertools.chain([first], lines):
      read.append(text)
      yield text

  reader = csv.reader(recorded(), delimiter=delimiter, strict=True)
  width = 0
  while True:
    line = reader.line_num + (2 if named else 1)
    read.clear()
    found = _next_record(path, reader, line)
    if found is None:
      return
    fields, problem = found
    width = width or len(fields)
    if len(read) > 1 and _are_records(read, delimiter, width):
      last = line + len(read) - 1
      for number in range(line, last + 1):
        yield (
          number,
          f'an unclosed quote in line {line} makes one cell of lines {line} to '
          f'{last}',
        )
    elif problem:
      yield line, problem
    elif fields:
      yield line, fields


def _next_record(
  path: pathlib.Path, reader: Iterator[list[str]], line: int
) -> tuple[list[str], str] | None:
  """The fields of the next record, and what is wrong with it; None at the end.

  Raises:
    InputError: its quote is never closed.
  """
  # Restored at once: it is the whole program's.
  limit = csv.field_size_limit(sys.maxsize)
  try:
    return next(reader), ''
  except StopIteration:
    return None
  except csv.Error as e:
    if 'unexpected end of data' in str(e):
      raise errors.InputError(
        f'{path}: the quote that opens in the record of line {line} is '
        'never closed: fix that line'
      ) from None
    return [], str(e)
  finally:
    csv.field_size_limit(limit)


def _are_records(lines: list[str], delimiter: str, width: int) -> bool:
  """Whether every line of one record has the separators of a whole record.

  In prose a comma is followed by a space; between cells it is not.
  """
  escaped = re.escape(delimiter)
  pattern = re.compile(escaped if delimiter == '\t' else f'{escaped}(?! )')
  # The quote may be closed on a line of its own.
  if len(lines) > 2 and not lines[-1].strip('" \r\n'):
    lines = lines[:-1]
  # With two columns and two lines, code and lists can match by chance.
  words = r'[^\W\d_][\w .?!]*'
  plain = re.compile(f'"?{words}{escaped}"?{words}')
  enough = (
    delimiter == '\t'
    or width > 2
    or len(lines) > 2
    or plain.fullmatch(lines[0].strip()) is not None
  )
  return (
    enough
    and width > 1
    and all(len(pattern.findall(line)) == width - 1 for line in lines)
  )
