"""Finds columns that hold answers, to keep them from scoring and selection."""

import collections
from collections.abc import Mapping
import re
from typing import Any

from edsft_jax import store
from edsft_jax.pool import schema

# A column that equals the answer in this share of answered rows is not a task.
TASK_LEAK_SHARE = 0.01
# A part of a response counts as a leak when it has this many words.
_EXCERPT_WORDS = 5


def normalize(text: str) -> str:
  """The words in lower case, separated and surrounded by single spaces."""
  words = re.findall(r'\w+', text.casefold())
  return f' {" ".join(words)} '


def same_words(text: str, other: str) -> bool:
  """Whether two texts are equal up to case, punctuation and spaces."""
  return normalize(text) == normalize(other)


def contains(text: str, part: str) -> bool:
  """Whether `text` contains the words of `part` in a row; both normalized."""
  return bool(part.strip()) and part in text


class KeptColumns:
  """Collects the other columns: those besides prompt, task and response.

  A column is dropped, with a reason, as soon as a value is nested, not Unicode,
  or contains the row's response or a long part of it. A short part may occur by
  chance; the column is only dropped if it does in half of the answered rows.
  """

  def __init__(self, columns: schema.Columns):
    self._used = columns.used
    self._num_rows = 0
    self._num_answered = 0
    self._num_parts: collections.Counter[str] = collections.Counter()
    self.values: dict[str, list[store.Scalar | None]] = {}
    self.dropped: dict[str, str] = {}

  def inspect(
    self, values: Mapping[str, Any], prompt: store.Prompt, response: str
  ) -> None:
    """Drops the columns whose value in this row is unfit."""
    answer = normalize(response)
    self._num_answered += bool(response)
    question = normalize(
      prompt
      if isinstance(prompt, str)
      else ' '.join(turn['content'] for turn in prompt)
    )
    for name, value in values.items():
      if name in self._used or name in self.dropped or value is None:
        continue
      if reason := _unfit(name, value, answer):
        self._drop(name, reason)
      else:
        part = normalize(str(value))
        # What the prompt already says reveals nothing.
        reveals = contains(answer, part) and not contains(question, part)
        self._num_parts[name] += reveals

  def _drop(self, name: str, reason: str) -> None:
    self.dropped[name] = reason
    self.values.pop(name, None)

  def keep(self, values: Mapping[str, Any]) -> None:
    """Adds the values of a row, after `inspect`."""
    for name, value in values.items():
      if name in self._used or name in self.dropped or value is None:
        continue
      column = self.values.setdefault(name, [])
      column.extend([None] * (self._num_rows - len(column)))
      is_scalar = isinstance(value, store.Scalar)
      column.append(value if is_scalar else str(value))
    self._num_rows += 1

  def finish(self) -> dict[str, list[store.Scalar | None]]:
    """The remaining columns, with one value per kept row."""
    for name, count in self._num_parts.items():
      if count and count >= 0.5 * self._num_answered:
        self._drop(name, f'it is part of the response in {count:,} rows')
    for column in self.values.values():
      column.extend([None] * (self._num_rows - len(column)))
    return self.values


def _unfit(name: str, value: Any, answer: str) -> str:
  if schema.may_be_answer(name):
    return 'its name suggests an answer'
  if name.casefold() in ('id', 'prompt', 'task'):
    return 'its name is taken'
  if isinstance(value, list | dict | bytes) or _looks_nested(value):
    return 'nested'
  text = str(value)
  if store.damage(name + text):
    return 'not Unicode'
  text = normalize(text)
  if contains(text, answer):
    return 'it contains a response'
  if len(text.split()) >= _EXCERPT_WORDS and contains(answer, text):
    return 'it contains a part of a response'
  return ''


def _looks_nested(value: Any) -> bool:
  """Whether text may be JSON, whose escapes could hide a response."""
  if not isinstance(value, str):
    return False
  text = value.strip()
  return len(text) > 1 and text[0] + text[-1] in ('{}', '[]')
