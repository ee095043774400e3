"""Answers must not reach what scores and selects: which columns hold one."""

from collections.abc import Mapping
from typing import Any

from edsft_jax.pool import schema

# A column is no task when it is the answer in this share of the answered rows.
TASK_LEAK_SHARE = 0.01
# A part of a response counts as a leak when it has this many words.
_EXCERPT_WORDS = 5

Scalar = str | int | float | bool


def normalize(text: str) -> str:
  """Without capitals, with single spaces around and between words."""
  return f' {" ".join(text.casefold().split())} '


def holds(text: str, response: str) -> bool:
  """Whether `text` contains `response` as whole words; both normalized."""
  needle = response.strip()
  start = text.find(needle) if needle else -1
  while start >= 0:
    end = start + len(needle)
    # A word goes on where both sides of the cut are letters or digits.
    cut_before = text[start - 1].isalnum() and needle[0].isalnum()
    cut_after = text[end].isalnum() and needle[-1].isalnum()
    if not cut_before and not cut_after:
      return True
    start = text.find(needle, start + 1)
  return False


class KeptColumns:
  """Gathers the columns beside prompt, task and response that may be kept.

  A column is dropped for good, with a reason, once it is seen to be nested,
  not Unicode, or to hold a row's response (or a long part of one).
  """

  def __init__(self, columns: schema.Columns):
    self._used = columns.used
    self._num_rows = 0
    self.values: dict[str, list[Scalar | None]] = {}
    self.dropped: dict[str, str] = {}

  def look(self, values: Mapping[str, Any], response: str) -> None:
    """Drops the columns that this row shows to be unfit."""
    answer = normalize(response)
    for name, value in values.items():
      if name in self._used or name in self.dropped or value is None:
        continue
      if reason := _unfit(name, value, answer):
        self.dropped[name] = reason
        self.values.pop(name, None)

  def keep(self, values: Mapping[str, Any]) -> None:
    """Adds a row that was looked at."""
    for name, value in values.items():
      if name in self._used or name in self.dropped or value is None:
        continue
      column = self.values.setdefault(name, [])
      column.extend([None] * (self._num_rows - len(column)))
      is_scalar = isinstance(value, Scalar)
      column.append(value if is_scalar else str(value))
    self._num_rows += 1

  def finish(self) -> dict[str, list[Scalar | None]]:
    """The columns that are left, each as long as the rows kept."""
    for column in self.values.values():
      column.extend([None] * (self._num_rows - len(column)))
    return self.values


def _unfit(name: str, value: Any, answer: str) -> str:
  folded = name.casefold()
  if folded in schema.ANSWERLIKE_COLUMNS:
    return 'by its name it may be an answer'
  if folded in ('id', 'prompt', 'task'):
    return 'its name is taken'
  if isinstance(value, list | dict | bytes) or _looks_nested(value):
    return 'nested'
  text = str(value)
  if '\0' in text or not _is_unicode(name + text):
    return 'not Unicode'
  text = normalize(text)
  if holds(text, answer):
    return 'it holds a response'
  if len(text.split()) >= _EXCERPT_WORDS and holds(answer, text):
    return 'it holds a part of a response'
  return ''


def _looks_nested(value: Any) -> bool:
  """JSON inside text: escapes would hide a response from the search."""
  if not isinstance(value, str):
    return False
  text = value.strip()
  return len(text) > 1 and text[0] + text[-1] in ('{}', '[]')


def _is_unicode(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True
