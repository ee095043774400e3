"""Reads conversations in the common formats.

A turn is {'role', 'content'} or {'from', 'value'} (ShareGPT); its content is
text or a list of text parts. A row is unusable if its conversation has parts
that are not text (tool calls, pictures) or ends within an answer; the reason
names the field. Other fields of turns are reported, not dropped silently.
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
# Parts of a turn that a chat template would render and that are not text.
_NOT_TEXT = (
  'tool_calls',
  'tool_call_id',
  'function_call',
  'functions',
  'tools',
  'audio',
  'image',
  'images',
  'video',
  'videos',
  'refusal',
)
_UNLEARNT = {
  'weight': False,
  'train': False,
  'training': False,
  'trainable': False,
  'learn': False,
  'loss': False,
  'mask': True,
  'masked': True,
}
_FALSE, _TRUE = ('0', '0.0', 'false', 'no'), ('1', '1.0', 'true', 'yes')
_PREFILL = ('prefix', 'prefill', 'partial')
_KEPT = frozenset((*_ROLE_FIELDS, *_TEXT_FIELDS, *_UNLEARNT, *_PREFILL, 'name'))
# Keys of turns, in JSON or as printed by Python.
_ROLE_KEY = re.compile(r"""["'](role|from)["']\s*:""")
_KNOWN_ROLE = re.compile(
  rf"""["'](role|from)["']\s*:\s*["']({'|'.join(_ROLES)})["']""", re.I
)
_TEXT_KEY = re.compile(r"""["'](content|value|text|parts)["']\s*:""")
_LOOKS_LIKE_ROLE = re.compile(r'[\w-]{1,20}')


class Turns:
  """A conversation.

  Attributes:
    messages: its turns.
    left_out: names of fields that templates do not use, such as dates and ids.
    learnable: whether the last turn is meant for training.
    prefill: the field that marks the last turn as the beginning of an answer,
      or ''.
  """

  def __init__(self, turns: Sequence[Any]):
    """Reads turns.

    Raises:
      UnusableRow: naming the role or field that is not supported.
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
      str(turn.get(field)).strip().casefold() in (_TRUE if flag else _FALSE)
      for field, flag in _UNLEARNT.items()
    )
    self.prefill = next((f for f in _PREFILL if turn.get(f)), '')

  def split(self) -> tuple[list[store.Message], str]:
    """Returns the conversation up to the turn to answer, and the answer or ''.

    Raises:
      UnusableRow: no turn is left to answer.
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
      raise values.UnusableRow(
        'the conversation does not end with a turn to answer'
      )
    if not messages[-1]['content'].strip():
      raise values.UnusableRow('the prompt is empty')
    return messages, response


def looks_like(text: str) -> bool:
  """Whether a text looks like a list of turns, which may be broken."""
  if text.lstrip()[:1] not in ('[', '{') or not _ROLE_KEY.search(text):
    return False
  return bool(_KNOWN_ROLE.search(text) or _TEXT_KEY.search(text))


def find(value: Any) -> list[Any] | None:
  """The turns in a cell, from a list or from text; None if it has none.

  Raises:
    UnusableRow: the text looks like a conversation but is broken.
  """
  if isinstance(value, str):
    if not looks_like(value):
      return None
    try:
      value = values.parse(value)
    except ValueError as e:
      raise values.UnusableRow(
        f'it looks like a conversation, but is {e}'
      ) from None
  if isinstance(value, Mapping):
    return [value] if _is_turn(value) else _nested(value)
  return value if isinstance(value, list) else None


def _is_turn(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and any(isinstance(value.get(field), str) for field in _ROLE_FIELDS)
    and any(field in value for field in _TEXT_FIELDS)
  )


def _nested(value: Mapping[str, Any]) -> list[Any] | None:
  """The first list of turns inside an object, under whatever names."""
  for inner in value.values():
    if isinstance(inner, list) and inner and all(map(_is_turn, inner)):
      return inner
    if isinstance(inner, Mapping) and (found := _nested(inner)):
      return found
  return None


def history(value: Any) -> list[Any]:
  """Reads `history`: a list of turns, or of pairs of question and answer.

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
  """The contents of the turns with these roles."""
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
  """The text of a turn; an answer without content is ''."""
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
  """The text of one part of a turn."""
  if isinstance(part, Mapping):
    kind = part.get('type', 'text')
    if kind not in ('text', 'input_text', 'output_text'):
      name = kind if str(kind).isidentifier() else 'unknown'
      raise values.UnusableRow(f'a turn has a part of type {name!r}')
    part = part.get('text')
  if not isinstance(part, str):
    raise values.UnusableRow('a part of a turn is not text')
  return values.text_of(part, 'the conversation')
