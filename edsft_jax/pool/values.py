"""Reads single values of a row."""

import ast
import json
from typing import Any

from edsft_jax import store
from edsft_jax.pool import duplicates
from edsft_jax.tables import listed, spreadsheet, typed


class UnusableRow(Exception):
  """Why a row cannot be used; the message never reveals its response."""


def is_missing(value: Any) -> bool:
  """Whether a value is None, blank, empty, or NaN, which some tools write."""
  if isinstance(value, str):
    # Invisible characters are not text.
    return not (
      value if value.isascii() else duplicates.canonical(value)
    ).strip()
  return value is None or value != value or value in ([], {})


def text_of(value: Any, what: str) -> str:
  """Returns text that can be written.

  Raises:
    UnusableRow: the value is not such text.
  """
  if value is typed.UNREADABLE:
    raise UnusableRow(f'{what} cannot be read')
  if isinstance(value, spreadsheet.Converted):
    raise UnusableRow(f'{what} is {value}')
  if not isinstance(value, str):
    raise UnusableRow(f'{what} is not text')
  if damage := store.damage(value):
    raise UnusableRow(f'{what} has {damage}')
  return value


def label_of(value: Any, what: str) -> str:
  """Like `text_of`, but also converts numbers and truth values to text."""
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  return text_of(value, what)


def parse(text: str) -> Any:
  """Parses a list or object, in JSON or as printed by Python or numpy.

  Raises:
    ValueError: it is neither.
  """
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    try:
      # A Python literal would join texts that no comma separates.
      value = listed.parse(text)
    except ValueError:
      value = _literal(text)
  if not isinstance(value, list | dict):
    raise ValueError('neither a list nor an object')
  return value


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    raise ValueError('neither JSON nor a Python literal') from None
