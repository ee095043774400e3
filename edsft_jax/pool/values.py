"""What may stand in a cell, and why a row cannot be used."""

import ast
import json
from typing import Any

from edsft_jax import store
from edsft_jax.pool import tables


class UnusableRow(Exception):
  """Why a row cannot be used; never says what its response is."""


def is_missing(value: Any) -> bool:
  """Nothing, blank text, an empty list, or the NaN that some tools write."""
  if isinstance(value, str):
    return not value.strip()
  return value is None or value != value or value in ([], {})


def text_of(value: Any, what: str) -> str:
  """A text that is not damaged.

  Raises:
    UnusableRow: it is none.
  """
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  if value is tables.UNREADABLE:
    raise UnusableRow(f'{what} cannot be read')
  if not isinstance(value, str):
    raise UnusableRow(f'{what} is not text')
  if damage := store.damage(value):
    raise UnusableRow(f'{what} has {damage}')
  return value


def parse(text: str) -> Any:
  """The list or object that a text is in JSON, or as Python prints it.

  Raises:
    ValueError: it is neither.
  """
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    try:
      value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      raise ValueError('neither JSON nor a Python literal') from None
  if not isinstance(value, list | dict):
    raise ValueError('neither a list nor an object')
  return value
