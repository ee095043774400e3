"""Text in the cells of a spreadsheet: protected, restored, or damaged.

Spreadsheets run cells that begin like a formula, and turn text that looks like
a number, a date or a truth value into one: 123456789012345676 becomes 1.23E+17,
'007' becomes 7 and MAR1 the first of March. So in todo.csv

  - a cell that begins with one of = + - @, a tab or a line end gets a leading
    apostrophe, and so does one that has apostrophes before such a character
  - an id gets the prefix 'id:', unless it begins with a letter and looks like
    nothing that spreadsheets or pandas convert

Both are undone when a delivery is compared with the pool; text that was never
changed is accepted, too. An answer is taken as it is.
"""

import re
from typing import Any

from edsft_jax.tables import spreadsheet

ID_PREFIX = 'id:'
# Characters at the start of a formula, also in full width, and those after
# which some programs still find one (OWASP: CSV Injection).
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_SAFE_ID = re.compile(r'[A-Za-z_][A-Za-z0-9_.:\-]*')
# Months in several languages, with or without a day.
_MONTH = re.compile(
  r'(jan|gen|ene|feb|fev|mar|mrz|maa|apr|abr|avr|may|mai|mei|mag|maj|jun|jui|'
  r'giu|jul|lug|aug|ago|aou|sep|set|oct|okt|ott|out|nov|dec|dez|dic)'
  r'[a-z]*[.\-_]?\d*',
  re.IGNORECASE,
)
# Truth values in several languages, and what pandas reads as missing.
_WORDS = (
  'true false wahr falsch vrai faux verdadero falso verdadeiro vero waar '
  'onwaar na nan null none inf infinity nil n.a.'
)
_CONVERTED_WORDS = frozenset(_WORDS.split())
# Errors are in capitals, in the language of the program.
_ERROR = re.compile(
  r'#[¡¿]?[A-ZÀ-Þ_/0]+[!?]|#N/[AD]|#NV|#GETTING_DATA|Err:5\d\d'
)
_SCIENTIFIC = re.compile(r'[+-]?\d([.,]\d+)?E[+-]\d{2,3}')


def neutralise(text: str) -> str:
  """The text as a cell that no spreadsheet runs; `restore` undoes it."""
  return f"'{text}" if _FORMULA.match(text) else text


def restore(cell: str) -> str:
  """The text of a cell that `neutralise` wrote."""
  is_changed = cell.startswith("'") and _FORMULA.match(cell)
  return cell[1:] if is_changed else cell


def protect_id(prompt_id: str) -> str:
  """The id as a cell that no spreadsheet converts."""
  is_safe = (
    _SAFE_ID.fullmatch(prompt_id)
    and not prompt_id.startswith(ID_PREFIX)
    and not _MONTH.fullmatch(prompt_id)
    and prompt_id.lower() not in _CONVERTED_WORDS
  )
  return prompt_id if is_safe else f'{ID_PREFIX}{prompt_id}'


def possible_ids(cell: str) -> list[str]:
  """The ids that a cell may stand for, the likeliest first."""
  ids = [cell]
  if cell.startswith(ID_PREFIX):
    ids.insert(0, cell.removeprefix(ID_PREFIX))
  if cell.startswith("'"):  # People force text with an apostrophe.
    ids += possible_ids(cell[1:])
  stripped = cell.strip()
  return ids if stripped == cell else ids + possible_ids(stripped)


_NOTHING = ('nan', 'NaN', 'None', 'null', 'NULL', '<NA>')


def damage(text: str) -> str:
  """What a spreadsheet put in place of a text: an error or a number; or ''."""
  text = text.strip()
  if _ERROR.fullmatch(text):
    return f'the spreadsheet error {text}'
  if _SCIENTIFIC.fullmatch(text):
    return f'the number {text}'
  if len(text) > 3 and not text.strip('#'):
    return f'{text}, a cell that was too narrow'
  if text in _NOTHING:
    return f'{text}, which programs write for nothing'
  return ''


def shortened_forms(prompt_id: str) -> set[str]:
  """What spreadsheets and tables of numbers make of an id of digits."""
  if not (prompt_id.isascii() and prompt_id.isdigit()):
    return set()
  significant = prompt_id.lstrip('0') or '0'
  # They keep 15 digits, or those of a double.
  forms = {significant, f'{significant}.0'}
  forms.add(significant[:15].ljust(len(significant), '0'))
  if len(significant) < 300:
    forms.add(str(int(float(significant))))
  return forms - {prompt_id}


def value(cell: Any, found: Any) -> str | spreadsheet.Converted | None:
  """The value of a workbook's cell as its annotator saw it.

  Args:
    cell: the cell, from openpyxl.
    found: its value; that of a formula may be missing.

  Returns:
    See `spreadsheet.shown`. A formula is Converted, because the spreadsheet
    took the annotator's text for one.
  """
  if cell.data_type == 'f':
    # Spreadsheets store a formula's result. Without one, another program wrote
    # text that only looks like a formula.
    if found is None and isinstance(cell.value, str):
      return cell.value
    return spreadsheet.Converted(
      '' if found is None else str(found), 'a formula'
    )
  # `damage` recognises the text of errors.
  return found if isinstance(found, str) else spreadsheet.shown(cell, found)
