"""Finds the columns of prompt, response, task and id, and reads rows.

Columns are detected, whatever their case, in this order:

  prompt       `prompt`, with one of ANSWER_COLUMNS
  messages     `messages`: a list of {'role', 'content'}, or its JSON text;
               the last assistant turn is the response
  instruction  `instruction`, with `input` or `context` appended, and an answer
  question     `question` with an answer

A prompt column may also hold a conversation. A prompt column named in the
config is used alone, without `input` or `context`. The task is `task`, else
`category`; the id is `id`, else a hash of the prompt. If some rows have a task,
the others get the task `none`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

from edsft_jax import errors, store

# The first of these that exists is the response.
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
# A column with one of these words in its name is never kept in the pool,
# whatever its values.
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
  """Whether a column's name suggests that it holds answers.

  Splits names into words at punctuation, digits and capitals: `Gold answer`,
  `answer_2` and `goldAnswer` all contain the word answer.
  """
  words = re.findall(r'[^\W\d_]+', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name))
  return any(word.casefold() in _ANSWER_WORDS for word in words)


class UnusableRow(Exception):
  """Why a row cannot be used; the message never reveals its response."""


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of a file's columns; '' if there is none.

  Attributes:
    prompt: text or a conversation.
    context: text to append to the prompt.
    messages: whether the prompt column may hold a conversation as JSON text.
    response: the answer.
    task: the task label.
    task_named: whether the task column was named by the user, not detected.
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
    """The columns that have a role."""
    names = (self.prompt, self.context, self.response, self.task, self.id)
    return set(names) - {''}


@dataclasses.dataclass(frozen=True)
class Named:
  """Columns that the user named; '' to detect one."""

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
  """A hash that is equal for equal prompts.

  A conversation of one user turn equals that turn's text.
  """
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
    names: its columns.
    named: the columns that the user named.
    optional: detect a column if the named one does not exist.

  Raises:
    InputError: a named column does not exist or is named twice, or there is no
      prompt column.
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
      f'set pool.prompt_column to one of its columns: {", ".join(names)}'
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
  """Returns the columns that the user named.

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
        f'{option} has the name of an answer column, and selection must not '
        'read answers: rename the column if it does not hold any'
      )
    if name and name in options:
      raise errors.InputError(
        f'{option} is also the column of {options[name]}: name another one'
      )
    options[name] = f'pool.{field}_column'
  return set(options)


def read_id(values: Mapping[str, Any], columns: Columns) -> str:
  """The row's id; '' if it has none, or none that can be written."""
  value = values.get(columns.id)
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # A column with gaps may hold whole numbers as floats.
  if isinstance(value, bool) or not isinstance(value, str | int):
    return ''
  text = str(value).strip()
  return '' if store.damage(text) else text


def read_item(values: Mapping[str, Any], columns: Columns) -> Item:
  """Reads a row; a row without an id gets a hash of its prompt.

  Raises:
    UnusableRow: with the reason.
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
  """The prompt, and the answer at the end of a conversation, or ''."""
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
    raise UnusableRow('the conversation does not end with a turn to answer')
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
  """Whether a value is None, blank text, or NaN, which some tools write."""
  if isinstance(value, str):
    return not value.strip()
  return value is None or value != value


def _refuse_damaged(what: str, text: str) -> None:
  if damage := store.damage(text):
    raise UnusableRow(f'the {what} has {damage}')
