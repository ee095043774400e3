"""Answers must not reach what scores and selects: where one may hide."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import re
from typing import Any

from edsft_jax import errors, store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import duplicates, items, tables

# A column is not a task when it is the answer in this share of answered rows.
TASK_LEAK_SHARE = 0.01
# A part of a response counts as a leak when it has this many words.
_EXCERPT_WORDS = 5
# Prompts of a pool in which its responses are looked for.
_LOOKED_AT = 2000
_WORD = re.compile(r'\w+')


class Text:
  """A text whose words are only told apart when they are needed.

  Attributes:
    raw: the text.
  """

  __slots__ = ('_first', '_is_ascii', '_is_word', '_lower', '_words', 'raw')

  def __init__(self, raw: str):
    """Wraps a text."""
    self.raw = raw
    self._is_ascii = raw.isascii()
    self._lower = raw.lower()
    first = _WORD.search(self._lower)
    self._first = first[0] if first else ''
    self._is_word = self._first == self._lower
    self._words: str | None = None

  @property
  def words(self) -> str:
    """See duplicates.words."""
    if self._words is None:
      self._words = duplicates.words(self.raw)
    return self._words

  def holds(self, part: 'Text') -> bool:
    """Whether it has the words of `part` in a row, and `part` has any."""
    if not part._first:
      return False
    if self._is_ascii and part._is_ascii:
      # Nearly all are told apart by the first word already.
      if part._first not in self._lower:
        return False
      if part._is_word:
        return re.search(rf'\b{part._first}\b', self._lower) is not None
    return part.words in self.words


def text_of(prompt: store.Prompt) -> Text:
  """What a prompt says."""
  if isinstance(prompt, str):
    return Text(prompt)
  return Text(' '.join(turn['content'] for turn in prompt))


def refuse_answered_prompts(
  source: str, pool: Sequence[items.Item], columns: columns_lib.Columns
) -> None:
  """Refuses a pool whose prompts hold their own responses.

  A response counts where it ends the prompt, or has many words; short answers
  (a number, a name) may well stand in the text that is asked about.

  Raises:
    InputError: more than half of the answered prompts hold theirs.
  """
  answered = [item for item in pool if item.response]
  step = -(-len(answered) // _LOOKED_AT) or 1
  looked_at = answered[::step]
  count = sum(_holds_answer(item) for item in looked_at)
  if count * 2 > len(looked_at):
    raise errors.InputError(
      f'{source}: the prompt holds the response in {count:,} of '
      f'{len(looked_at):,} answered rows, so that scores would read it: name '
      f'the column without it by pool.prompt_column (the prompt is '
      f'{" or ".join(columns.prompts)}), or if answers are meant to stand in '
      "their prompts set pool.answer_in_prompt='keep'"
    )


def _holds_answer(item: items.Item) -> bool:
  # What was said before in a conversation may be said again.
  question = item.prompt
  if not isinstance(question, str):
    question = question[-1]['content']
  prompt, response = Text(question), Text(item.response)
  if not prompt.holds(response):
    return False
  is_long = len(response.words.split()) >= _EXCERPT_WORDS
  return is_long or prompt.words.endswith(response.words)


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns besides prompt, task and response.

  Attributes:
    kept: those that tell no response, as long as the rows.
    dropped: the others, with the reason.
  """

  kept: dict[str, list[store.Scalar | None]]
  dropped: dict[str, str]


def other_columns(
  rows: Sequence[Mapping[str, Any]],
  read: Sequence[items.Item],
  used: Collection[str],
) -> Columns:
  """Gathers the columns besides prompt, task and response that may be kept.

  A column is dropped, with a reason, where it is nested, not Unicode, or holds
  a row's response (or a long part of one). A short part may be chance; in half
  of the answered rows it is not.

  Args:
    rows: with all their columns.
    read: what they say.
    used: columns that are something already.
  """
  names = dict.fromkeys(name for row in rows for name in row)
  answers = [Text(item.response) for item in read]
  columns = Columns({}, {})
  for name in names:
    if name in used or columns_lib.is_unnamed(name):
      continue
    values = [row.get(name) for row in rows]
    reason = _unfit_name(name) or _unfit(values, answers, read)
    if reason:
      columns.dropped[name] = reason
    elif any(value is not None for value in values):
      columns.kept[name] = [
        v if v is None or isinstance(v, store.Scalar) else str(v)
        for v in values
      ]
  return columns


def _unfit_name(name: str) -> str:
  if columns_lib.may_be_answer(name):
    return 'by its name it may be an answer'
  if name.casefold() in ('id', 'prompt', 'task'):
    return 'its name is taken'
  return 'not Unicode' if store.damage(name) else ''


def _unfit(
  values: Sequence[Any], answers: Sequence[Text], read: Sequence[items.Item]
) -> str:
  """Why the values of a column may not stand next to the prompts, or ''."""
  texts: dict[Any, Text] = {}
  num_told = 0
  for value, answer, item in zip(values, answers, read, strict=True):
    if value is None:
      continue
    if value is tables.UNREADABLE:
      return 'it has values that cannot be read'
    if isinstance(value, list | dict | bytes):
      return 'nested'
    if (text := texts.get(value)) is None:
      text = texts[value] = Text(str(value))
      if reason := _unfit_text(text.raw):
        return reason
    if text.holds(answer):
      return 'it holds a response'
    if answer.holds(text):
      if len(text.words.split()) >= _EXCERPT_WORDS:
        return 'it holds a part of a response'
      # What the prompt says already gives nothing away.
      num_told += not text_of(item.prompt).holds(text)
  num_answered = sum(answer.raw != '' for answer in answers)
  if num_told and num_told >= 0.5 * num_answered:
    return f'it is part of the response in {num_told:,} rows'
  return ''


def _unfit_text(text: str) -> str:
  if store.damage(text):
    return 'not Unicode'
  text = text.strip()
  # JSON inside text: escapes would hide a response from the search.
  if len(text) > 1 and text[0] + text[-1] in ('{}', '[]'):
    return 'nested'
  return ''
