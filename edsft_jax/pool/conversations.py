"""Conversations as people store them, as turns of a role and a text.

A turn is {'role', 'content'} or ShareGPT's {'from', 'value'}; its content is
text or a list of text parts. What a chat template would need and a text cannot
hold (tool calls, pictures, a half-written answer) makes a row unusable, with
the field named; nothing is taken out of a turn silently.
"""

from collections.abc import Collection, Mapping, Sequence
import re
from typing import Any

from edsft_jax import store
from edsft_jax.pool import values

# OpenAI, ShareGPT, OpenAssistant, Gemini, Glaive.
_ROLES = {
  'system': 'system',
  'developer': 'developer',
  'user': 'user',
  'human': 'user',
  'prompter': 'user',
  'assistant': 'assistant',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'bot': 'assistant',
  'model': 'assistant',
  'tool': 'tool',
  'function': 'tool',
  'environment': 'tool',
  'observation': 'tool',
}
_ROLE_FIELDS = ('role', 'from')
_TEXT_FIELDS = ('content', 'value', 'text', 'parts')
# Parts of a turn that a template would render and text cannot hold.
_NOT_TEXT = (
  'tool_calls',
  'tool_call_id',
  'function_call',
  'functions',
  'tools',
  'audio',
  'images',
  'refusal',
)
_UNLEARNT = {'weight': 0, 'train': False, 'training': False, 'loss': False}
_PREFILL = ('prefix', 'prefill', 'partial')
_KEPT = frozenset((*_ROLE_FIELDS, *_TEXT_FIELDS, *_UNLEARNT, *_PREFILL, 'name'))
# How a list of turns begins, in JSON or as Python prints it.
_LOOKS_LIKE_TURNS = re.compile(
  r"""\s*[\[{].{0,200}?["'](role|from)["']\s*:""", re.S
)
_LOOKS_LIKE_ROLE = re.compile(r'[\w-]{1,20}')


class Turns:
  """A conversation with what its turns have besides role and text.

  Attributes:
    messages: its turns.
    left_out: names of fields that no template reads (dates, ids).
    learnable: whether the last turn may be learnt from.
    prefill: the field that makes the last turn the beginning of an answer.
  """

  def __init__(self, turns: Sequence[Any]):
    """Reads turns.

    Raises:
      UnusableRow: naming the role or the field that cannot be kept.
    """
    self.messages: list[store.Message] = []
    self.left_out: set[str] = set()
    self.learnable = True
    self.prefill = ''
    for turn in turns:
      self._add(turn)

  def _add(self, turn: Any) -> None:
    if not isinstance(turn, Mapping):
      raise values.UnusableRow('a turn of the conversation is not an object')
    role = _role(turn)
    for field in _NOT_TEXT:
      if not values.is_missing(turn.get(field)):
        raise values.UnusableRow(f'a turn has {field}, which is not text')
    message = {'role': role, 'content': _content(turn, role)}
    if not values.is_missing(turn.get('name')):
      message['name'] = values.text_of(turn['name'], 'the name in a turn')
    self.messages.append(message)
    self.left_out |= {
      name
      for name, value in turn.items()
      if name not in _KEPT and not values.is_missing(value)
    }
    self.learnable = not any(
      turn.get(field) is not None and turn[field] == unlearnt
      for field, unlearnt in _UNLEARNT.items()
    )
    self.prefill = next((f for f in _PREFILL if turn.get(f)), '')

  def split(self) -> tuple[list[store.Message], str]:
    """The conversation up to the turn to answer, and the answer after it.

    Raises:
      UnusableRow: there is no turn to answer.
    """
    messages, response = list(self.messages), ''
    if self.prefill:
      raise values.UnusableRow(
        f'the last turn is the beginning of an answer ({self.prefill})'
      )
    if messages and messages[-1]['role'] == 'assistant':
      answer = messages.pop()['content']
      response = answer if self.learnable and answer.strip() else ''
    if not any(m['role'] == 'user' for m in messages):
      raise values.UnusableRow('the conversation has no user turn')
    if messages[-1]['role'] not in ('user', 'tool'):
      raise values.UnusableRow('the conversation ends with no turn to answer')
    if not messages[-1]['content'].strip():
      raise values.UnusableRow('the prompt is empty')
    return messages, response


def looks_like(text: str) -> bool:
  """Whether a text is a list of turns, or an attempt at one."""
  return text.lstrip()[:1] in ('[', '{') and bool(_LOOKS_LIKE_TURNS.match(text))


def find(value: Any) -> list[Any] | None:
  """The turns that a cell holds, as a list or as text; None if it has none.

  Raises:
    UnusableRow: it is text that begins as a conversation and is broken.
  """
  if isinstance(value, str):
    if not looks_like(value):
      return None
    try:
      value = values.parse(value)
    except ValueError as e:
      raise values.UnusableRow(
        f'it begins as a conversation does, but is {e}'
      ) from None
  if isinstance(value, Mapping):
    nested = (value.get(name) for name in ('messages', 'conversations'))
    value = next((v for v in nested if isinstance(v, list)), None)
  return value if isinstance(value, list) else None


def history(value: Any) -> list[Any]:
  """The turns in a `history`: turns, or pairs of what was said and answered.

  Raises:
    UnusableRow: it is neither.
  """
  if isinstance(value, str):
    try:
      value = values.parse(value)
    except ValueError:
      value = None
  if not isinstance(value, list):
    raise values.UnusableRow('history is not a list of turns')
  turns: list[Any] = []
  for item in value:
    if isinstance(item, list) and len(item) == 2:
      roles = zip(('user', 'assistant'), item, strict=True)
      turns += [{'role': role, 'content': text} for role, text in roles]
    else:
      turns.append(item)
  return turns


def texts(
  messages: Sequence[store.Message], roles: Collection[str]
) -> list[str]:
  """What the turns of some roles say."""
  return [m['content'] for m in messages if m['role'] in roles]


def _role(turn: Mapping[str, Any]) -> str:
  role = next((turn[f] for f in _ROLE_FIELDS if turn.get(f) is not None), None)
  known = _ROLES.get(role.casefold()) if isinstance(role, str) else None
  if known is not None:
    return known
  if isinstance(role, str) and _LOOKS_LIKE_ROLE.fullmatch(role):
    raise values.UnusableRow(
      f'a turn has the role {role!r}, not one of {", ".join(_ROLES)}'
    )
  raise values.UnusableRow(f'a turn has none of the roles {", ".join(_ROLES)}')


def _content(turn: Mapping[str, Any], role: str) -> str:
  """A turn's text; nothing is an empty answer."""
  field = next((f for f in _TEXT_FIELDS if turn.get(f) is not None), None)
  if field is None:
    if role == 'assistant':
      return ''
    raise values.UnusableRow('a turn has no content')
  content = turn[field]
  if isinstance(content, list):
    return '\n'.join(_part(part) for part in content)
  if not isinstance(content, str):
    raise values.UnusableRow('the content of a turn is not text')
  return values.text_of(content, 'the conversation')


def _part(part: Any) -> str:
  """A text part of a turn's content."""
  if isinstance(part, Mapping):
    kind = part.get('type', 'text')
    if kind not in ('text', 'input_text', 'output_text'):
      name = kind if str(kind).isidentifier() else 'unknown'
      raise values.UnusableRow(f'a turn has a part of type {name!r}')
    part = part.get('text')
  if not isinstance(part, str):
    raise values.UnusableRow('a part of a turn is not text')
  return values.text_of(part, 'the conversation')
