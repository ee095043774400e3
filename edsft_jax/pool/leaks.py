"""Finds answers in prompts and columns, to keep them from selection."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import re
from typing import Any

from edsft_jax import errors, store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import duplicates, items
from edsft_jax.tables import spreadsheet, typed

# A column that equals the answer in this share of answered rows is not a task.
TASK_LEAK_SHARE = 0.01
# A part of a response counts as a leak when it has this many words.
_EXCERPT_WORDS = 5
# In a text of at most this many characters, the longest word is looked for.
_SHORT = 64
# Number of prompts to search for their responses.
_SAMPLE_SIZE = 2000
_WORD = re.compile(r'\w+')


class Text:
  """A text that is split into words only when needed.

  Attributes:
    raw: the text.
  """

  __slots__ = ('_is_ascii', '_is_word', '_lower', '_telling', '_words', 'raw')

  def __init__(self, raw: str):
    """Wraps a text."""
    self.raw = raw
    self._is_ascii = raw.isascii()
    self._lower = raw.lower()
    if len(raw) <= _SHORT:
      self._telling = max(_WORD.findall(self._lower), key=len, default='')
    else:
      first = _WORD.search(self._lower)
      self._telling = first[0] if first else ''
    self._is_word = self._telling == self._lower
    self._words: str | None = None

  @property
  def words(self) -> str:
    """See duplicates.words."""
    if self._words is None:
      self._words = duplicates.words(self.raw)
    return self._words

  def contains(self, part: 'Text') -> bool:
    """Whether it contains the words of `part` in a row, if there are any."""
    if not part._telling:
      return False
    if self._is_ascii and part._is_ascii:
      # Usually one word decides.
      if part._telling not in self._lower:
        return False
      if part._is_word:
        return re.search(rf'\b{part._telling}\b', self._lower) is not None
    return part.words in self.words


def text_of(prompt: store.Prompt) -> Text:
  """The text of a prompt."""
  if isinstance(prompt, str):
    return Text(prompt)
  return Text(' '.join(turn['content'] for turn in prompt))


def refuse_answered_prompts(
  source: str, pool: Sequence[items.Item], columns: columns_lib.Columns
) -> None:
  """Rejects a pool whose prompts contain their own responses.

  Only responses at the end of the prompt or with several words count: short
  answers, such as names, often occur in the text that the question is about.

  Raises:
    InputError: more than half of the answered prompts contain their response.
  """
  answered = [item for item in pool if item.response]
  step = -(-len(answered) // _SAMPLE_SIZE) or 1
  sample = answered[::step]
  count = sum(_contains_answer(item) for item in sample)
  if count * 2 > len(sample):
    raise errors.InputError(
      f'{source}: the prompt ({" or ".join(columns.prompts)}) contains the '
      f'response in {count:,} of {len(sample):,} answered rows, where '
      'selection would read it: set pool.prompt_column to a column without '
      "it, or pool.answer_in_prompt='keep' if this is intended"
    )


def _contains_answer(item: items.Item) -> bool:
  # In a conversation, only the last turn counts: answers may be repeated.
  question = item.prompt
  if not isinstance(question, str):
    question = question[-1]['content']
  prompt, response = Text(question), Text(item.response)
  if not prompt.contains(response):
    return False
  is_long = len(response.words.split()) >= _EXCERPT_WORDS
  return is_long or prompt.words.endswith(response.words)


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns besides prompt, task and response.

  Attributes:
    kept: the columns that reveal no response, with a value per row.
    dropped: the other columns, with the reason.
  """

  kept: dict[str, list[store.Scalar | None]]
  dropped: dict[str, str]


def other_columns(
  rows: Sequence[Mapping[str, Any]],
  read: Sequence[items.Item],
  used: Collection[str],
) -> Columns:
  """Collects the other columns: those besides prompt, task and response.

  A column is dropped, with a reason, if a value is nested, not Unicode, or
  contains the row's response or a long part of it. A short part may occur by
  chance; the column is only dropped if it does in half of the answered rows.

  Args:
    rows: the values by column name.
    read: the items of these rows.
    used: columns that have a role already.
  """
  names = columns_lib.names_in(rows)
  answers = [Text(item.response) for item in read]
  columns = Columns({}, {})
  for name in names:
    if name in used or columns_lib.is_unnamed(name):
      continue
    values = [spreadsheet.stored(row.get(name)) for row in rows]
    reason = _unfit_name(name) or _unfit(values, answers, read)
    if reason:
      columns.dropped[ascii(name) if store.damage(name) else name] = reason
    elif any(value is not None for value in values):
      columns.kept[name] = [
        v if v is None or isinstance(v, store.Scalar) else str(v)
        for v in values
      ]
  return columns


def _unfit_name(name: str) -> str:
  if columns_lib.may_be_answer(name):
    return 'its name suggests an answer'
  if name.casefold() in ('id', 'prompt', 'task'):
    return 'its name is taken'
  return 'not Unicode' if store.damage(name) else ''


def _unfit(
  values: Sequence[Any], answers: Sequence[Text], read: Sequence[items.Item]
) -> str:
  """Why a column cannot be kept in the pool, or ''."""
  texts: dict[Any, Text] = {}
  num_revealing = 0
  for value, answer, item in zip(values, answers, read, strict=True):
    if value is None:
      continue
    if isinstance(value, (list, dict)):
      return 'nested'
    if (text := texts.get(value)) is None:
      if reason := _unfit_value(value):
        return reason
      text = texts[value] = Text(str(value))
    if text.contains(answer):
      return 'it contains a response'
    if answer.contains(text):
      if len(text.words.split()) >= _EXCERPT_WORDS:
        return 'it contains a part of a response'
      # What the prompt already says reveals nothing.
      num_revealing += not text_of(item.prompt).contains(text)
  num_answered = sum(answer.raw != '' for answer in answers)
  if num_revealing and num_revealing >= 0.5 * num_answered:
    return f'it is part of the response in {num_revealing:,} rows'
  return ''


def _unfit_value(value: Any) -> str:
  if value is typed.UNREADABLE:
    return 'it has unreadable values'
  if isinstance(value, bytes):
    return 'nested'
  if not isinstance(value, str):
    return ''
  if store.damage(value):
    return 'not Unicode'
  text = value.strip()
  # JSON inside text, whose escapes could hide a response.
  if len(text) > 1 and text[0] + text[-1] in ('{}', '[]'):
    return 'nested'
  return ''
