"""Reads rows: the prompt with all its parts, response, task and id."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import re
from typing import Any

from edsft_jax import store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import conversations, duplicates, markers, values
from edsft_jax.pool.values import UnusableRow
from edsft_jax.tables import spreadsheet

# Fields that may hold the text of an answer that is an object.
_TEXT_FIELDS = ('text', 'content', 'value', 'answer', 'response')
# A shorter text may be a part of another one by chance.
_QUOTED_WORDS = 5
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


@dataclasses.dataclass(frozen=True)
class Item:
  """A usable row.

  Attributes:
    id: the row's id, or a hash of the prompt.
    prompt: text, or a conversation that ends with the turn to answer.
    task: the task label, or ''.
    response: the answer, or ''.
    key: equal for equal prompts.
    near: equal for prompts with the same words.
    left_out: fields of its turns that templates do not use.
  """

  id: str
  prompt: store.Prompt
  task: str
  response: str
  key: str
  near: int
  left_out: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the rows of one file.

  Attributes:
    columns: their roles.
    form: the form of prompts that are conversations written as text.
  """

  columns: columns_lib.Columns
  form: markers.Form | None = None

  def id_of(self, row: Mapping[str, Any]) -> str:
    """The row's id; '' if it has none, or none that can be written."""
    value = self._get(row, self.columns.id)
    if isinstance(value, float) and value.is_integer():
      value = int(value)  # A column with gaps may hold whole numbers as floats.
    if isinstance(value, bool) or not isinstance(value, str | int):
      return ''
    text = str(value).strip()
    return '' if store.damage(text) else text

  def item(self, row: Mapping[str, Any]) -> Item:
    """Reads a row.

    Raises:
      UnusableRow: with the reason.
    """
    given_id = self.id_of(row)
    found = self._get(row, self.columns.id)
    if isinstance(found, spreadsheet.Converted):
      raise UnusableRow(f'the id is {found}')
    if not given_id and not values.is_missing(found):
      raise UnusableRow('the id is neither text nor a whole number')
    for name in self.columns.not_text:
      if not values.is_missing(row.get(name)):
        raise UnusableRow(f'it has {name}, which is not text')
    parts = _Parts(self._present(row, self.columns.prompts), self.form)
    if self.columns.contexts:
      parts.add_contexts(self._present(row, self.columns.contexts))
    if self.columns.choices:
      parts.add_choices(self._present(row, self.columns.choices))
    if self.columns.systems:
      parts.add_systems(self._present(row, self.columns.systems))
    column, response = self._response(row)
    prompt, response = parts.finish(column, response)
    key = duplicates.merge_key(prompt)
    return Item(
      given_id or hashlib.sha256(key.encode()).hexdigest()[:24],
      prompt,
      self._task(row),
      response,
      key,
      duplicates.near_key(prompt),
      frozenset(parts.left_out),
    )

  def _present(
    self, row: Mapping[str, Any], names: Iterable[str]
  ) -> dict[str, Any]:
    return {n: row[n] for n in names if not values.is_missing(row.get(n))}

  def _get(self, row: Mapping[str, Any], name: str | None) -> Any:
    return None if name is None else row.get(name)

  def _response(self, row: Mapping[str, Any]) -> tuple[str, str]:
    """The column and text of the first answer in the row."""
    for name in self.columns.responses:
      value = row.get(name)
      if name.casefold() == _ANSWERS and isinstance(value, str):
        value = _printed_answers(value)
      if text := _response_text(value):
        return name, text
    return '', ''

  def _task(self, row: Mapping[str, Any]) -> str:
    value = self._get(row, self.columns.task)
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if values.is_missing(value):
      return ''
    if isinstance(value, list):
      raise UnusableRow(
        'the task is a list: give one label, or set pool.task_column=none'
      )
    return values.label_of(value, 'the task').strip()


class _Parts:
  """Puts a prompt together from its parts."""

  def __init__(self, present: Mapping[str, Any], form: markers.Form | None):
    if not present:
      raise UnusableRow('the prompt is missing or empty')
    self.left_out: set[str] = set()
    self._text: str | None = None
    self._turns: conversations.Turns | None = None
    self._answer = ''
    texts: dict[str, str] = {}
    for name, value in present.items():
      turns = _find_turns(name, value, form)
      if turns is None:
        texts[name] = values.text_of(value, 'the prompt')
      elif self._turns is None:
        self._turns = conversations.Turns(turns)
      else:
        raise UnusableRow(
          f'{name} is a second conversation: set pool.prompt_column to one'
        )
    if self._turns is not None:
      self.left_out = self._turns.left_out
      _refuse_other_texts(self._turns, texts)
    else:
      self._text = _join_texts(texts)

  def add_contexts(self, present: Mapping[str, Any]) -> None:
    """Appends what the prompt does not contain already."""
    for name, value in present.items():
      whole = self._said()
      if name.casefold() in columns_lib.CHOICES:
        choices = _choices(name, value)
        is_there = lists_choices(whole, choices)
        separator, text = '\n', _lines(choices)
      else:
        separator, text = '\n\n', values.text_of(value, name)
        is_there = _quotes(whole, text)
      if is_there:
        continue
      if self._text is None:
        raise UnusableRow(
          f'the conversation does not contain its {name}: write it into a '
          'turn, or set pool.context_column=none'
        )
      self._text = f'{self._text}{separator}{text}'

  def add_choices(self, present: Mapping[str, Any]) -> None:
    """Appends choices that have a column each, unless the prompt has them."""
    choices = [
      (columns_lib.choice_label(name), values.label_of(value, name))
      for name, value in present.items()
    ]
    if not choices or lists_choices(self._said(), choices):
      return
    if self._text is None:
      raise UnusableRow(
        f'the conversation does not contain its {" and ".join(present)}: write '
        'them into a turn, or set pool.context_column=none'
      )
    self._text = f'{self._text}\n{_lines(choices)}'

  def add_systems(self, present: Mapping[str, Any]) -> None:
    """Puts a system prompt and the turns of a history before the prompt."""
    if not present:
      return
    before: list[Any] = []
    for name, value in present.items():
      if name.casefold() == columns_lib.HISTORY:
        before += conversations.history(value)
      else:
        text = values.text_of(value, name)
        before.insert(0, {'role': 'system', 'content': text})
    added = conversations.Turns(before)
    if self._turns is None:
      assert self._text is not None
      turn = {'role': 'user', 'content': self._text}
      self._turns, self._text = conversations.Turns([turn]), None
    there = self._turns.messages
    if there[: len(added.messages)] == added.messages:
      return
    if there[0]['role'] == 'system' or len(there) > 2:
      raise UnusableRow(
        f'the conversation does not begin with its {" and ".join(present)}: '
        'set pool.system_column=none to ignore it'
      )
    self._turns.messages = added.messages + there
    self.left_out |= added.left_out

  def finish(self, column: str, response: str) -> tuple[store.Prompt, str]:
    """Returns the prompt and its response, which may end the conversation.

    Raises:
      UnusableRow: there are two different answers, or no turn to answer.
    """
    if self._turns is None:
      assert self._text is not None
      return self._text, response
    messages, answer = self._turns.split()
    if answer and response and not duplicates.same_words(answer, response):
      raise UnusableRow(
        f'the conversation ends with another answer than {column}: remove one, '
        'or set pool.response_column=none'
      )
    return messages, response or answer

  def _said(self) -> str:
    if self._text is not None:
      return self._text
    assert self._turns is not None
    return '\n'.join(m['content'] for m in self._turns.messages)


def _find_turns(
  name: str, value: Any, form: markers.Form | None
) -> list[Any] | None:
  """The turns in a prompt column; None if it is plain text."""
  if isinstance(value, str) and form is not None and markers.is_in(value, form):
    return markers.parse(values.text_of(value, 'the prompt'), form)
  try:
    turns = conversations.find(value)
  except UnusableRow as e:
    raise UnusableRow(f'{name}: {e}') from None
  if turns is None and name.casefold() in columns_lib.CONVERSATIONS:
    raise UnusableRow(f'{name} is not a list of turns')
  return turns


def _refuse_other_texts(
  turns: conversations.Turns, texts: Mapping[str, str]
) -> None:
  """Rejects a row with a prompt that its conversation does not contain."""
  asked = '\n'.join(conversations.texts(turns.messages, ('system', 'user')))
  for name, text in texts.items():
    if not _contains(asked, text):
      raise UnusableRow(
        f'the conversation does not contain the {name}: set '
        'pool.prompt_column to one of them'
      )


def _join_texts(texts: Mapping[str, str]) -> str:
  """Joins an instruction and its question; other texts must agree."""
  (first, whole), *others = texts.items()
  for name, text in others:
    is_pair = (
      first.casefold() in columns_lib.INSTRUCTIONS
      and name.casefold() in columns_lib.QUESTIONS
    )
    if (_quotes if is_pair else _contains)(whole, text):
      continue
    if not is_pair:
      raise UnusableRow(
        f'{first} and {name} differ: set pool.prompt_column to one of them'
      )
    whole = f'{whole}\n\n{text}'
  return whole


def _contains(text: str, part: str) -> bool:
  """Whether a text contains another, up to white space."""
  return part in text or ' '.join(part.split()) in ' '.join(text.split())


def _quotes(text: str, part: str) -> bool:
  """Whether a text has another one as a line, or as at least five words.

  Fewer words may occur by chance: "10" contains "1". A line may have a label.
  """
  words = part.split()
  joined = ' '.join(words)
  lines = [' '.join(line.split()) for line in text.splitlines()]
  if any(line == joined or line.endswith(f': {joined}') for line in lines):
    return True
  paragraphs = (' '.join(p.split()) for p in re.split(r'\n\s*\n', text))
  if joined in paragraphs:
    return True
  found = re.search(
    rf'(?<!\w){re.escape(joined)}(?!\w)', ' '.join(text.split())
  )
  return len(words) >= _QUOTED_WORDS and found is not None


def _choices(name: str, value: Any) -> list[tuple[str, str]]:
  """Reads a list, {'A': text}, or {'label': [...], 'text': [...]}.

  Returns:
    Pairs of label and text.

  Raises:
    UnusableRow: it is none of these.
  """
  wrong = UnusableRow(
    f'{name} is not a list of texts: set pool.context_column=none to ignore it'
  )
  if isinstance(value, str):
    try:
      value = values.parse(value)
    except ValueError:
      raise wrong from None
  if isinstance(value, Mapping) and isinstance(value.get('text'), list):
    texts = value['text']
    labels = value.get('label') or value.get('labels') or LETTERS
  elif isinstance(value, Mapping):
    labels, texts = list(value), list(value.values())
  elif all(isinstance(v, Mapping) for v in value):
    labels = [v.get('label', letter) for v, letter in zip(value, LETTERS)]  # noqa: B905
    texts = [v.get('text') for v in value]
  else:
    labels, texts = LETTERS, value
  plain = all(isinstance(v, str | int | float) for v in (*labels, *texts))
  if not plain or len(labels) < len(texts):
    raise wrong
  return [
    (str(label), values.label_of(text, name))
    for label, text in zip(labels, texts, strict=False)
  ]


def _lines(choices: Sequence[tuple[str, str]]) -> str:
  return '\n'.join(f'{label}. {text}' for label, text in choices)


def lists_choices(whole: str, choices: Sequence[tuple[str, str]]) -> bool:
  """Whether a prompt already lists the choices, one after the other."""
  between = r'\W+(?:\w{1,2}\W+)?'
  listed = between.join(re.escape(text.strip()) for _, text in choices)
  return re.search(listed, whole) is not None


# A list of answers, or {'text': [...], ...} as in SQuAD.
_ANSWERS = 'answers'


def _printed_answers(text: str) -> Any:
  """Parses answers that a program printed into a cell; keeps other text.

  Raises:
    UnusableRow: they cannot be read.
  """
  try:
    return values.parse(text)
  except ValueError:
    if text.lstrip().startswith(("{'text'", '{"text"')):
      raise UnusableRow(
        'the response is a printed object that cannot be read: save the file '
        'as JSON lines or parquet'
      ) from None
    return text


def _response_text(value: Any) -> str:
  """The text of an answer, or ''.

  It may be text, a number, an object with a text field, a turn or a list of one
  turn, or a list of several answers, of which the first is taken.

  Raises:
    UnusableRow: it is none of these.
  """
  if isinstance(value, str) and conversations.looks_like(value):
    value = conversations.find(value)
  if isinstance(value, list) and value:
    if len(value) > 1 and isinstance(value[0], Mapping) and _is_turn(value[0]):
      raise UnusableRow(f'the response has {len(value)} turns, not one')
    value = value[0]
  if isinstance(value, Mapping) and _is_turn(value):
    turns = conversations.Turns([value])
    if turns.messages[0]['role'] != 'assistant':
      raise UnusableRow('the response is not a turn of the assistant')
    value = turns.messages[0]['content'] if turns.learnable else ''
  if isinstance(value, Mapping) and value:
    field = next((f for f in _TEXT_FIELDS if f in value), None)
    if field is None:
      raise UnusableRow(
        'the response is an object without any of the fields '
        f'{", ".join(_TEXT_FIELDS)}'
      )
    value = value[field]
    if isinstance(value, list):  # SQuAD's {'text': [...], 'answer_start': ...}
      value = value[0] if value else ''
  if values.is_missing(value):
    return ''
  return values.label_of(value, 'the response')


def _is_turn(value: Mapping[str, Any]) -> bool:
  return 'role' in value or ('from' in value and 'value' in value)
