"""Text from user files: CSV records, and text that cannot be written."""

from collections.abc import Iterator
import csv
import itertools
import pathlib
import sys

from edsft_jax import errors


def damage(text: str) -> str:
  """Why a text cannot be written or tokenised, or ''."""
  if '\0' in text:
    return 'a NUL byte'
  try:
    text.encode()
  except UnicodeEncodeError:
    return 'half of a surrogate pair'
  return ''


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
    why it is broken.

  Raises:
    InputError: a quote is never closed, so the rest of the file would end up in
      one cell.
  """
  first = next(lines, None)
  if first is None:
    return
  delimiter = max(',;\t', key=first.count)
  reader = csv.reader(
    itertools.chain([first], lines), delimiter=delimiter, strict=True
  )
  while True:
    line = reader.line_num + 1
    # Restored at once: it is the whole program's.
    limit = csv.field_size_limit(sys.maxsize)
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      if 'unexpected end of data' in str(e):
        raise errors.InputError(
          f'{path}: the quote that opens in the record of line {line} is '
          'never closed: fix that line'
        ) from None
      yield line, str(e)
      continue
    finally:
      csv.field_size_limit(limit)
    if fields:
      yield line, fields
