"""Which column is what, and what a row says through them.

Found by themselves, whatever their capitals, in this order:

  prompt       `prompt`, with one of ANSWER_COLUMNS
  messages     `messages`: a list of {'role', 'content'}, or its JSON text;
               the last assistant turn is the response
  instruction  `instruction` with `input` or `context` under it, and an answer
  question     `question` with an answer

A prompt column may hold a conversation, too. A column named by config is taken
alone. The task is `task`, else `category`; the id is `id`, else a hash of the
prompt. Where some rows have a task, the others are of the task `none`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

from edsft_jax import errors, store

# Taken as the response, the first that is there.
ANSWER_COLUMNS = (
  'response',
  'completion',
  'output',
  'answer',
  'target',
  'responses',
  'outputs',
  'answers',
  'targets',
)
# A column with one of these words in its name is never kept next to the prompt,
# whatever it holds.
_ANSWER_WORDS = frozenset(
  (
    *ANSWER_COLUMNS,
    'ans',
    'assistant',
    'chosen',
    'completions',
    'conversation',
    'conversations',
    'correct',
    'expected',
    'generated',
    'generation',
    'generations',
    'gold',
    'golden',
    'label',
    'labels',
    'messages',
    'prediction',
    'reference',
    'references',
    'rejected',
    'replies',
    'reply',
    'resp',
    'result',
    'results',
    'solution',
    'solutions',
    'text',
    'truth',
  )
)
ROLES = ('system', 'developer', 'user', 'assistant', 'tool')


def may_be_answer(name: str) -> bool:
  """Whether a column's name says that it may hold answers.

  Words are told apart by signs, digits and capitals: `Gold answer`,
  `answer_2` and `goldAnswer` all speak of an answer.
  """
  words = re.findall(r'[^\W\d_]+', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name))
  return any(word.casefold() in _ANSWER_WORDS for word in words)


class UnusableRow(Exception):
  """Why a row cannot be used; never says what its response is."""


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of a file's columns; '' where there is none.

  Attributes:
    prompt: text, or a conversation.
    context: text that stands under the prompt's.
    messages: whether the prompt column may hold a conversation as JSON text.
    response: the answer.
    task: the label.
    task_named: the task column was named by a person, not found.
    id: the id.
  """

  prompt: str
  context: str = ''
  messages: bool = False
  response: str = ''
  task: str = ''
  task_named: bool = False
  id: str = ''

  @property
  def used(self) -> set[str]:
    """All that are something."""
    names = (self.prompt, self.context, self.response, self.task, self.id)
    return set(names) - {''}


@dataclasses.dataclass(frozen=True)
class Named:
  """Columns that a person named; '' finds the usual one."""

  prompt: str = ''
  response: str = ''
  task: str = ''
  id: str = ''


@dataclasses.dataclass(frozen=True)
class Item:
  """A usable row."""

  id: str
  prompt: store.Prompt
  task: str
  response: str

  @property
  def key(self) -> bytes:
    """See `prompt_key`."""
    return prompt_key(self.prompt)


def prompt_key(prompt: store.Prompt) -> bytes:
  """Equal for equal prompts; a lone user turn is that turn's text."""
  if isinstance(prompt, list):
    if len(prompt) == 1 and prompt[0]['role'] == 'user':
      prompt = prompt[0]['content']
    else:
      prompt = '\0' + json.dumps(prompt, sort_keys=True)
  return hashlib.sha256(prompt.encode()).digest()


def find_columns(
  source: str, names: Sequence[str], named: Named, optional: bool = False
) -> Columns:
  """Finds a file's columns.

  Args:
    source: the file, for messages.
    names: the columns that it has.
    named: those that a person named.
    optional: look for the usual column where a named one is not there.

  Raises:
    InputError: a named column is not there or named twice, or there is no
      prompt.
  """
  if optional:
    named = Named(
      **{
        field: name if name in names else ''
        for field, name in dataclasses.asdict(named).items()
      }
    )
  taken = _check_named(source, names, named)
  folded = {name.casefold(): name for name in reversed(names)}

  def find(*usual: str) -> str:
    found = (folded.get(name, '') for name in usual)
    return next((n for n in found if n and n not in taken), '')

  prompt, context, messages = named.prompt, '', False
  if prompt:
    messages = prompt.casefold() == 'messages'
  else:
    prompt = find('prompt')
    answered = named.response or find(*ANSWER_COLUMNS)
    if find('messages') and not (prompt and answered):
      prompt, messages = find('messages'), True
    if not prompt and (prompt := find('instruction')):
      context = find('input', 'context')
    prompt = prompt or find('question')
  if not prompt:
    raise errors.InputError(
      f'{source} has no column prompt, messages, instruction or question: '
      f'name one of its columns by pool.prompt_column: {", ".join(names)}'
    )
  taken.add(prompt)
  return Columns(
    prompt=prompt,
    context=context,
    messages=messages,
    response=named.response or find(*ANSWER_COLUMNS),
    task=named.task or find('task', 'category'),
    task_named=bool(named.task),
    id=named.id or find('id'),
  )


def _check_named(source: str, names: Sequence[str], named: Named) -> set[str]:
  """The columns that a person named.

  Raises:
    InputError: one does not exist, is named twice, or holds answers.
  """
  options: dict[str, str] = {}
  for field, name in dataclasses.asdict(named).items():
    option = f'pool.{field}_column={name!r}'
    if name and name not in names:
      raise errors.InputError(
        f'{option} is not in {source}: it has the columns {", ".join(names)}'
      )
    if (
      name and field in ('prompt', 'task') and name.casefold() in ANSWER_COLUMNS
    ):
      raise errors.InputError(
        f'{option} holds answers by its name, and what selects must not read '
        'one: rename the column if it does not'
      )
    if name and name in options:
      raise errors.InputError(
        f'{option} is the column of {options[name]} too: name another'
      )
    options[name] = f'pool.{field}_column'
  return set(options)


def read_id(values: Mapping[str, Any], columns: Columns) -> str:
  """The row's own id; '' when it has none, or none that can be written."""
  value = values.get(columns.id)
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # Whole numbers next to missing ones come as floats.
  if isinstance(value, bool) or not isinstance(value, str | int):
    return ''
  text = str(value).strip()
  return '' if store.damage(text) else text


def read_item(values: Mapping[str, Any], columns: Columns) -> Item:
  """What a row says; the id is a hash of the prompt where it has none.

  Raises:
    UnusableRow: saying why.
  """
  raw_id = values.get(columns.id)
  given_id = read_id(values, columns)
  if not given_id and not _is_missing(raw_id):
    raise UnusableRow('the id is neither text nor a whole number')

  prompt, response = _read_prompt(values, columns)
  response = _read_response(values.get(columns.response)) or response
  _refuse_damaged('response', response)
  task = _read_task(values.get(columns.task))
  item = Item(given_id, prompt, task, response)
  if given_id:
    return item
  return dataclasses.replace(item, id=item.key.hex()[:24])


def _read_prompt(
  values: Mapping[str, Any], columns: Columns
) -> tuple[store.Prompt, str]:
  """The prompt, and the answer that a conversation ends with, or ''."""
  value = values.get(columns.prompt)
  if _is_missing(value):
    raise UnusableRow('the prompt is missing or empty')
  if columns.messages and isinstance(value, str):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      raise UnusableRow('messages is broken JSON') from None
    if not isinstance(value, list):
      raise UnusableRow('messages is not a list of turns')
  if isinstance(value, list):
    return _split_turns(value)
  if not isinstance(value, str):
    raise UnusableRow('the prompt is not text')
  context = values.get(columns.context)
  if not _is_missing(context):
    if not isinstance(context, str):
      raise UnusableRow(f'{columns.context} is not text')
    value = f'{value}\n\n{context}'
  _refuse_damaged('prompt', value)
  return value, ''


def _split_turns(turns: list[Any]) -> tuple[list[store.Message], str]:
  """The conversation up to its last user turn, and the answer after it."""
  messages = []
  for turn in turns:
    if not isinstance(turn, Mapping):
      raise UnusableRow('a turn of messages is not an object')
    role, content = turn.get('role'), turn.get('content')
    if role not in ROLES:
      raise UnusableRow(f'a turn has none of the roles {", ".join(ROLES)}')
    if not isinstance(content, str):
      raise UnusableRow('the content of a turn is not text')
    _refuse_damaged('conversation', content)
    messages.append({'role': role, 'content': content})
  response = ''
  if messages and messages[-1]['role'] == 'assistant':
    response = messages.pop()['content']
  if not any(m['role'] == 'user' for m in messages):
    raise UnusableRow('the conversation has no user turn')
  if messages[-1]['role'] not in ('user', 'tool'):
    raise UnusableRow('the conversation ends with no turn to answer')
  if not messages[-1]['content'].strip():
    raise UnusableRow('the prompt is empty')
  return messages, response if response.strip() else ''


def _read_response(value: Any) -> str:
  """Text, a number, the first of several texts, or one assistant turn."""
  if isinstance(value, list) and value:
    value = value[0]
    if isinstance(value, Mapping) and value.get('role') == 'assistant':
      value = value.get('content')
    if not isinstance(value, str):
      raise UnusableRow('the response is not text')
  if _is_missing(value) or value == []:
    return ''
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  if not isinstance(value, str):
    raise UnusableRow('the response is not text')
  return value


def _read_task(value: Any) -> str:
  if _is_missing(value):
    return ''
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  if not isinstance(value, str):
    raise UnusableRow('the task is not text')
  _refuse_damaged('task', value)
  return value.strip()


def _is_missing(value: Any) -> bool:
  """Nothing, blank text, or the NaN that some tools write for nothing."""
  if isinstance(value, str):
    return not value.strip()
  return value is None or value != value


def _refuse_damaged(what: str, text: str) -> None:
  if damage := store.damage(text):
    raise UnusableRow(f'the {what} has {damage}')
