"""Renders conversations by chat templates, Jinja as transformers renders it."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import json
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from edsft_jax import errors
from edsft_jax.store import Message

# Two answers with different first and last characters: what a template writes
# around both is its own.
ANSWERS = ('Paris', 'seven')
# Variables that every template is given, so no argument may have these names.
_RESERVED = ('messages', 'add_generation_prompt')


class Frame(NamedTuple):
  """What a template writes around the answer to a conversation.

  Attributes:
    prompt: the conversation with its generation prompt.
    before: the finished conversation up to the answer's text.
    after: what follows the answer's text.
    prints_answers: whether the answer's text is printed at all.
  """

  prompt: str
  before: str
  after: str
  prints_answers: bool


class ChatTemplate:
  """A chat template with all of its variables but the conversation."""

  def __init__(
    self,
    text: str,
    tokens: Mapping[str, str],
    arguments: Mapping[str, Any],
    date: datetime.date,
  ):
    """Compiles a template.

    Args:
      text: the template, in Jinja.
      tokens: texts of special tokens by name, such as 'bos_token'.
      arguments: further variables; they take precedence.
      date: the date that the template takes as today's, at midnight.

    Raises:
      InputError: its syntax is wrong.
    """
    self._variables = {
      # Llama's templates print today's date unless given one.
      'date_string': date.strftime('%d %b %Y'),
      'tools': None,
      'documents': None,
      **tokens,
      **arguments,
    }
    now = datetime.datetime.combine(date, datetime.time())
    with _rendering():
      self._template = _environment(now).from_string(text)

  def render(
    self, messages: Sequence[Message], add_generation_prompt: bool
  ) -> str:
    """The conversation as text.

    Raises:
      InputError: the template rejects it, or fails.
    """
    with _rendering():
      return self._template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        **self._variables,
      )

  def frame(self, messages: Sequence[Message]) -> Frame:
    """What the template writes around the answer to a conversation.

    Raises:
      InputError: the template rejects it, or fails.
    """
    first, second = (self.finished(messages, answer) for answer in ANSWERS)
    num_after = num_common(first[::-1], second[::-1])
    return Frame(
      prompt=self.render(messages, add_generation_prompt=True),
      before=first[: num_common(first, second)],
      after=first[len(first) - num_after :],
      prints_answers=first != second,
    )

  def finished(self, messages: Sequence[Message], answer: str) -> str:
    """The conversation with an answer, as text.

    Raises:
      InputError: the template rejects it, or fails.
    """
    turn = {'role': 'assistant', 'content': answer}
    return self.render([*messages, turn], add_generation_prompt=False)


def num_common(first: Sequence[Any], second: Sequence[Any]) -> int:
  """How many items two sequences begin with in common."""
  same, limit = 0, min(len(first), len(second))
  while same < limit:
    middle = (same + limit + 1) // 2
    if first[same:middle] == second[same:middle]:
      same = middle
    else:
      limit = middle - 1
  return same


def parse_arguments(text: str) -> dict[str, Any]:
  """Parses prompt.template_arguments, a JSON object.

  Raises:
    InputError: it is not one, or sets a reserved variable.
  """
  try:
    arguments = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise errors.InputError(
      f'prompt.template_arguments {text!r} is not JSON ({error}): give an '
      'object such as {"enable_thinking": false}'
    ) from None
  if not isinstance(arguments, dict):
    raise errors.InputError(
      f'prompt.template_arguments {text!r} is not a JSON object: give one '
      'such as {"enable_thinking": false}'
    )
  for name in _RESERVED:
    if name in arguments:
      raise errors.InputError(
        f'prompt.template_arguments has {name!r}, which templates are given '
        'for each prompt: remove it'
      )
  return arguments


def parse_date(text: str) -> datetime.date:
  """Parses prompt.date.

  Raises:
    InputError: it is not a date in the form YYYY-MM-DD.
  """
  try:
    date = datetime.date.fromisoformat(text)
  except ValueError:
    date = None
  if date is None or date.isoformat() != text:
    raise errors.InputError(
      f'prompt.date {text!r} is not a date: give one as YYYY-MM-DD'
    )
  return date


@contextlib.contextmanager
def _rendering() -> Iterator[None]:
  try:
    yield
  except (
    jinja2.TemplateError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
  ) as error:
    line = ' '.join(str(error).split())
    raise errors.InputError(
      f'prompt.template does not render: {line}'
    ) from None


def _environment(now: datetime.datetime) -> jinja2.Environment:
  """The environment that chat templates are written for, at a fixed time."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _raise_exception
  environment.globals['strftime_now'] = now.strftime
  return environment


class _Generation(ext.Extension):
  """{% generation %}, which marks answers, and changes nothing here."""

  tags = {'generation'}  # noqa: RUF012 (as in the base class)

  def parse(self, parser: parser.Parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return nodes.Scope(body, lineno=line)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """Jinja's own filter would escape HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)
