"""Formats words and numbers for the page and the terminal."""

from collections.abc import Sequence


def listed(items: Sequence[str]) -> str:
  """Joins items as 'a, b and c'."""
  if len(items) == 1:
    return items[0]
  return f'{", ".join(items[:-1])} and {items[-1]}'


def over_seeds(count: int, confidence: float) -> str:
  """Describes the values in a table's cells."""
  if count == 1:
    return 'one seed, so no interval'
  return f'mean and {100 * confidence:g}% interval over {count} seeds'


def duration(seconds: float) -> str:
  """Formats seconds as 12.3 s, 4 min 10 s or 2 h 05 min."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes:02d} min'
