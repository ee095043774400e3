"""Answers must not reach what scores and selects: which columns hold one."""

import collections
from collections.abc import Mapping
import re
from typing import Any

from edsft_jax import store
from edsft_jax.pool import schema

# A column is not a task when it is the answer in this share of answered rows.
TASK_LEAK_SHARE = 0.01
# A part of a response counts as a leak when it has this many words.
_EXCERPT_WORDS = 5


def normalize(text: str) -> str:
  """The words alone, without capitals, a space around each."""
  words = re.findall(r'\w+', text.casefold())
  return f' {" ".join(words)} '


def same_words(text: str, other: str) -> bool:
  """Whether two texts are equal but for capitals, signs and spaces."""
  return normalize(text) == normalize(other)


def holds(text: str, part: str) -> bool:
  """Whether `text` has the words of `part` in a row; both normalized."""
  return bool(part.strip()) and part in text


class KeptColumns:
  """Gathers the columns besides prompt, task and response that may be kept.

  A column is dropped for good, with a reason, once it is seen to be nested,
  not Unicode, or to hold a row's response (or a long part of one). A short part
  may be chance; in half of the answered rows it is not.
  """

  def __init__(self, columns: schema.Columns):
    self._used = columns.used
    self._num_rows = 0
    self._num_answered = 0
    self._num_parts: collections.Counter[str] = collections.Counter()
    self.values: dict[str, list[store.Scalar | None]] = {}
    self.dropped: dict[str, str] = {}

  def look(
    self, values: Mapping[str, Any], prompt: store.Prompt, response: str
  ) -> None:
    """Drops the columns that this row shows to be unfit."""
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
        # What the prompt says already gives nothing away.
        told = holds(answer, part) and not holds(question, part)
        self._num_parts[name] += told

  def _drop(self, name: str, reason: str) -> None:
    self.dropped[name] = reason
    self.values.pop(name, None)

  def keep(self, values: Mapping[str, Any]) -> None:
    """Adds a row that was looked at."""
    for name, value in values.items():
      if name in self._used or name in self.dropped or value is None:
        continue
      column = self.values.setdefault(name, [])
      column.extend([None] * (self._num_rows - len(column)))
      is_scalar = isinstance(value, store.Scalar)
      column.append(value if is_scalar else str(value))
    self._num_rows += 1

  def finish(self) -> dict[str, list[store.Scalar | None]]:
    """The columns that are left, each as long as the rows kept."""
    for name, count in self._num_parts.items():
      if count and count >= 0.5 * self._num_answered:
        self._drop(name, f'it is part of the response in {count:,} rows')
    for column in self.values.values():
      column.extend([None] * (self._num_rows - len(column)))
    return self.values


def _unfit(name: str, value: Any, answer: str) -> str:
  if schema.may_be_answer(name):
    return 'by its name it may be an answer'
  if name.casefold() in ('id', 'prompt', 'task'):
    return 'its name is taken'
  if isinstance(value, list | dict | bytes) or _looks_nested(value):
    return 'nested'
  text = str(value)
  if store.damage(name + text):
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
