"""What the cells of a workbook show, which may differ from what they store."""

import dataclasses
import datetime
from typing import Any


class Number(str):
  """A number of a workbook, as it is shown.

  Attributes:
    value: the number.
  """

  __slots__ = ('value',)
  value: int | float


def _number(text: str, value: int | float) -> Number:
  number = Number(text)
  number.value = value
  return number


@dataclasses.dataclass(frozen=True)
class Converted:
  """A cell whose stored value differs from what the spreadsheet shows.

  Attributes:
    text: what it stores.
    kind: what that is.
  """

  text: str
  kind: str

  def __str__(self) -> str:
    shown = f' ({self.text})' if self.text else ''
    return f'{self.kind}{shown}, made by the spreadsheet'


def stored(value: Any) -> Any:
  """A value without what the two classes add to it."""
  if isinstance(value, Number):
    return value.value
  return value.text if isinstance(value, Converted) else value


def shown(cell: Any, found: Any) -> str | Converted | None:
  """What a workbook's cell shows; that of a formula is its result.

  Args:
    cell: the cell, from openpyxl.
    found: its value, or the result of its formula.

  Returns:
    Text; None for an empty cell; Converted if the program shows another text,
    or an error.
  """
  if cell.data_type == 'f' and found is None:
    return Converted('', 'a formula without a result')
  if cell.data_type == 'e' or (isinstance(found, str) and found in _ERRORS):
    return Converted(str(found), 'an error')
  if found is None or isinstance(found, str):
    return found
  if isinstance(found, bool):
    return str(found).upper()
  if isinstance(found, datetime.datetime | datetime.date | datetime.time):
    return Converted(found.isoformat(), 'a date')
  text = f'{found:.15G}' if isinstance(found, float) else str(found)
  if cell.number_format not in ('General', '@', '0'):
    return Converted(text, f'a number in the form {cell.number_format}')
  return _number(text, found)


# openpyxl gives the result of a formula as text.
_ERRORS = frozenset(
  ('#NULL!', '#DIV/0!', '#VALUE!', '#REF!', '#NAME?', '#NUM!', '#N/A')
)
