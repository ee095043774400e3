"""Integers stored as floats, and answers that are indices of choices.

Only a whole column shows which numbers are meant so, which is why they are
converted before the rows are read one by one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import items, values
from edsft_jax.tables import readers


def restore(
  rows: Sequence[readers.Row], columns: columns_lib.Columns
) -> list[str]:
  """Converts such answers and choices, in place.

  - A column that has gaps and whole numbers as floats had integers, which
    pandas converts: 3.0 becomes 3.
  - If a list of choices has no labels, it gets letters. An answer that is an
    index into this list becomes its letter.

  Returns:
    Messages for the user.
  """
  found = [row.values for row in rows if row.values is not None]
  notes = []
  for name in (*columns.responses, *columns.choices):
    if _had_integers([row.get(name) for row in found]):
      filled = [row for row in found if not values.is_missing(row.get(name))]
      for row in filled:
        row[name] = int(row[name])
      if filled:
        notes.append(
          f'{len(filled):,} whole numbers in {name} are read as integers, '
          'without .0'
        )
  for name in columns.contexts:
    if name.casefold() in columns_lib.CHOICES and columns.responses:
      letters = _letters(found, name, columns)
      for number, letter in letters.items():
        found[number][columns.responses[0]] = letter
      if letters:
        notes.append(
          f'{len(letters):,} answers that are indices of their {name} are '
          'read as letters'
        )
  return notes


def _had_integers(column: Sequence[Any]) -> bool:
  """Whether a column of floats had integers and gaps."""
  present = [value for value in column if not values.is_missing(value)]
  return len(present) < len(column) and all(
    isinstance(value, float) and value.is_integer() for value in present
  )


def _letters(
  rows: Sequence[Mapping[str, Any]], name: str, columns: columns_lib.Columns
) -> dict[int, str]:
  """Maps rows to letters, if all answers are indices of choices, from 0.

  Answers that are all among the choices are taken for choices. If a prompt
  lists its choices itself, the answers may refer to labels used there.
  """
  found: dict[int, str] = {}
  num_equal = 0
  has_first = False
  for number, row in enumerate(rows):
    answer, choices = row.get(columns.responses[0]), row.get(name)
    if values.is_missing(answer):
      continue
    if not isinstance(choices, list) or isinstance(answer, bool):
      return {}
    if not isinstance(answer, int) or answer not in range(len(choices)):
      return {}
    if not all(isinstance(x, str | int | float) for x in choices):
      return {}
    prompt = '\n'.join(str(row.get(n)) for n in columns.prompts)
    if items.lists_choices(prompt, [('', str(x)) for x in choices]):
      return {}
    num_equal += str(answer) in map(str, choices)
    has_first |= answer == 0
    found[number] = items.LETTERS[answer]
  return found if has_first and num_equal < len(found) else {}
