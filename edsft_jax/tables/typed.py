"""Reads rows from parquet and Arrow files and from spreadsheets.

Each value is converted on its own, so a value without a Python equivalent, such
as a date in the year 10000, does not affect other values.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import pathlib
from typing import Any
import zipfile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from edsft_jax import errors, store
from edsft_jax.tables import readers, spreadsheet

# Rows per batch.
_BATCH_ROWS = 16384


class Unreadable:
  """A value that cannot be converted."""

  def __repr__(self) -> str:
    return 'a value that cannot be read'


UNREADABLE = Unreadable()


def read_parquet(path: pathlib.Path, hint: str) -> Iterator[readers.Row]:
  """Yields the rows of a parquet file, numbered from 1.

  Args:
    path: the file.
    hint: added to the remedy in messages.

  Raises:
    InputError: it is not a parquet file, or it is damaged.
  """
  with store.refuse_damaged(path, f'fetch it again{hint}'):
    file = pq.ParquetFile(path)
    names = _unique(path, file.schema_arrow.names)
    batches = file.iter_batches(_BATCH_ROWS)
    yield from _rows(names, batches)


def read_arrow(path: pathlib.Path, hint: str) -> Iterator[readers.Row]:
  """Yields the rows of an Arrow file or stream, numbered from 1.

  Args:
    path: the file.
    hint: added to the remedy in messages.

  Raises:
    InputError: it is neither, or it is damaged.
  """
  remedy = f'fetch it again{hint}'
  with store.refuse_damaged(path, remedy), pa.memory_map(str(path)) as source:
    # Only files begin with this; `datasets` writes streams.
    if source.read(6) == b'ARROW1':
      file = pa.ipc.open_file(source)
      batches = map(file.get_batch, range(file.num_record_batches))
      yield from _rows(_unique(path, file.schema.names), batches)
    else:
      source.seek(0)
      stream = pa.ipc.open_stream(source)
      yield from _rows(_unique(path, stream.schema.names), stream)


def read_xlsx(
  path: pathlib.Path,
  hint: str,
  value_of: Callable[[Any, Any], Any] = spreadsheet.shown,
  fills_merged: bool = True,
) -> Iterator[readers.Row]:
  """Yields the rows of a workbook with one sheet, below its header.

  Args:
    path: the file.
    hint: added to the remedy in messages.
    value_of: makes a value of an openpyxl cell, which may be a formula, and the
      cell's value.
    fills_merged: whether all rows of a merged cell have its value; otherwise,
      only the first has.

  Raises:
    InputError: it is not a workbook, or several of its sheets have rows.
  """
  import openpyxl

  try:
    # As a file: openpyxl refuses paths by their extension. With read_only,
    # sheets from other programs than Excel may look empty.
    with path.open('rb') as f:
      values = openpyxl.load_workbook(f, data_only=True)
      # Only a second copy has the formulas.
      book = openpyxl.load_workbook(f)
  except (zipfile.BadZipFile, KeyError, ValueError, OSError) as e:
    raise errors.InputError(
      f'{path} is not an .xlsx workbook ({e}): save it again{hint}'
    ) from None
  sheets = [s for s in book.worksheets if s.max_row > 1 or s['A1'].value]
  if len(sheets) > 1:
    raise errors.InputError(
      f'{path} has {len(sheets)} sheets with rows '
      f'({", ".join(sheet.title for sheet in sheets)}): keep one of them'
    )
  for sheet in sheets:
    found = [
      [_unescaped(value) for value in row]
      for row in values[sheet.title].iter_rows(values_only=True)
    ]
    names = _unique(
      path, ['' if v is None else str(v).strip() for v in found[0]]
    )
    rows = [
      [value_of(c, v) for c, v in zip(cells, row, strict=True)]
      for cells, row in zip(sheet.iter_rows(), found, strict=True)
    ]
    if fills_merged:
      _fill_merged(rows, sheet.merged_cells.ranges)
    for number, row in enumerate(rows[1:], 2):
      if any(value is not None for value in row):
        yield readers.Row(number, dict(zip(names, row, strict=True)))


def _unescaped(value: Any) -> Any:
  """A cell's value, with its line ends as they are.

  Workbooks write a carriage return as _x000D_, which openpyxl leaves in.
  """
  if isinstance(value, str):
    return value.replace('_x000D_\n', '\n').replace('_x000D_', '\n')
  return value


def _fill_merged(rows: list[list[Any]], ranges: Iterable[Any]) -> None:
  """Gives all rows of merged cells below the header the value of the first.

  Only in the first column: a cell over several columns may be a title.
  """
  for cells in ranges:
    column = cells.min_col - 1
    first = cells.min_row - 1
    for row in rows[max(first, 1) : cells.max_row]:
      row[column] = rows[first][column]


def _rows(
  names: Sequence[str], batches: Iterator[pa.RecordBatch]
) -> Iterator[readers.Row]:
  number = 0
  for batch in batches:
    columns = [_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
      number += 1
      yield readers.Row(number, dict(zip(names, values, strict=True)))


def _values(column: pa.Array) -> list[Any]:
  """A column's values; times as text."""
  try:
    if pa.types.is_temporal(column.type):
      return pc.cast(column, pa.string()).to_pylist()
    return column.to_pylist()
  except (ValueError, OverflowError, pa.ArrowException):
    return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
  try:
    return scalar.as_py()
  except (ValueError, OverflowError, pa.ArrowException):
    return UNREADABLE


def _unique(path: pathlib.Path, names: Sequence[str]) -> Sequence[str]:
  readers.refuse_same_names(path, names)
  return names
