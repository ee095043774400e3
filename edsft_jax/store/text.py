"""Text from files that people made: CSV, and what cannot be written again."""

from collections.abc import Iterator
import csv
import itertools
import pathlib
import re
import sys

from edsft_jax import errors


def damage(text: str) -> str:
  """What makes a text impossible to write or to tokenise, or ''."""
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

  The separator is the one of `,;` and tab that the first line has most of:
  spreadsheets of many countries separate by semicolons. Cells may be of any
  length. Empty lines have no record.

  Args:
    path: for messages.
    lines: with their newlines.

  Yields:
    The line where a record begins, from 1, and its fields; or text that says
    why it is broken. A quote that is not closed before the next one opens
    makes one cell of several records: each of their lines is broken then.

  Raises:
    InputError: a quote is never closed, so that the rest of the file would
      end up in one cell.
  """
  first = next(lines, None)
  if first is None:
    return
  delimiter = max(',;\t', key=first.count)
  taken: list[str] = []

  def noted() -> Iterator[str]:
    for text in itertools.chain([first], lines):
      taken.append(text)
      yield text

  reader = csv.reader(noted(), delimiter=delimiter, strict=True)
  width = 0
  while True:
    line = reader.line_num + 1
    taken.clear()
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
      fields, problem = [], str(e)
    else:
      problem = ''
    finally:
      csv.field_size_limit(limit)
    width = width or len(fields)
    if len(taken) > 1 and _are_records(taken, delimiter, width):
      last = line + len(taken) - 1
      for number in range(line, last + 1):
        yield (
          number,
          f'a quote that opens in line {line} makes one cell of the records '
          f'as far as line {last}',
        )
    elif problem:
      yield line, problem
    elif fields:
      yield line, fields


def _are_records(lines: list[str], delimiter: str, width: int) -> bool:
  """Whether each of the lines of one record is a record when read alone.

  The commas of prose have a space after them, those between cells have none.
  """
  pattern = re.compile(delimiter if delimiter == '\t' else f'{delimiter}(?! )')
  # Of two cells and two lines, prose and code may well have so many commas.
  enough = delimiter == '\t' or width > 2 or len(lines) > 2
  return (
    enough
    and width > 1
    and all(len(pattern.findall(line)) == width - 1 for line in lines)
  )
