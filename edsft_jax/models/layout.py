"""How a conversation and its answer are laid out as text.

Messages are marked (see control_tokens.py), and so is the text.
"""

from collections.abc import Iterator, Sequence
import re
from typing import Protocol

from edsft_jax import errors
from edsft_jax.models.chat_template import (
  ANSWERS,
  ChatTemplate,
  Frame,
  num_common,
)
from edsft_jax.models.control_tokens import ControlTokens
from edsft_jax.store import Message

PROBE = 'probe'
# The start of a tag such as <think> or [THINK].
_UNCLOSED = re.compile(r'[<\[][^<>\[\]\s]*$')
_PROBES: list[Message] = [{'role': 'user', 'content': PROBE}]


class Layout(Protocol):
  """The text that a prompt and its response become.

  Attributes:
    end_token: the control token that the layout ends a response with, or None:
      a response ends with EOS.
    notes: lines for the log, about what is not obvious.
  """

  end_token: str | None
  notes: Sequence[str]

  def prompt(
    self, messages: Sequence[Message], for_response: bool, response: str = ''
  ) -> str:
    """All text before a response.

    Args:
      messages: the conversation.
      for_response: whether response tokens will follow.
      response: the response, if it is known and may change what precedes it.
    """

  def response(self, messages: Sequence[Message], response: str) -> str:
    """The text of a response, with the end token if the layout has one."""


class RawLayout:
  """The texts of all turns and, before a response, joined by a separator."""

  end_token: str | None = None
  notes: Sequence[str] = ()

  def __init__(self, separator: str):
    self._separator = separator

  def prompt(
    self, messages: Sequence[Message], for_response: bool, response: str = ''
  ) -> str:
    """The joined texts; see Layout."""
    text = self._separator.join(turn['content'] for turn in messages)
    return text + (self._separator if for_response else '')

  def response(self, messages: Sequence[Message], response: str) -> str:
    """The response as it is."""
    return response


class ChatLayout:
  """A rendered conversation with all that the template writes before an answer.

  That is the generation prompt and whatever the template writes between it and
  an answer: Qwen 3 writes an empty <think> block. Prompts are scored with it
  too, so that scores are those of the place where finetuning's responses begin.
  A response with its own block, which the template prints instead of the empty
  one, follows the generation prompt directly.

  Some templates write in the generation prompt what they do not write before an
  answer (DeepSeek R1 an open <think>). Then responses follow the generation
  prompt as they are.
  """

  def __init__(self, template: ChatTemplate, control: ControlTokens):
    """Renders a probe.

    Raises:
      InputError: the template prints no prompt.
    """
    self._template = template
    self._control = control
    self._fixed_parts: dict[str, str] = {'': ''}
    # A prompt and its response are asked for one after the other.
    self._last: tuple[Sequence[Message], Frame] | None = None
    frame = template.frame(_PROBES)
    if PROBE not in frame.prompt:
      raise errors.InputError(
        'prompt.template renders no prompt: it must print message.content'
      )
    self.end_token: str | None = None
    if frame.prints_answers and (end := control.first(frame.after)):
      self.end_token = frame.after[end]
    self.notes: Sequence[str] = [*self._notes(frame)]

  def prompt(
    self, messages: Sequence[Message], for_response: bool, response: str = ''
  ) -> str:
    """The rendered conversation; see Layout."""
    frame = self._frame(messages)
    if response and self._own_block(frame, messages, response) is not None:
      return frame.prompt
    return frame.prompt + self._fixed(frame)

  def response(self, messages: Sequence[Message], response: str) -> str:
    """What the template prints after the prompt; see Layout.

    Text after the end token, often a line break, is left out.

    Raises:
      InputError: the template does not print responses, so there would be
        nothing to learn.
    """
    frame = self._frame(messages)
    after = self._end(frame)
    if not response.strip():
      return after
    if not frame.prints_answers:
      raise errors.InputError(
        'prompt.template does not print answers, so finetuning would have '
        "nothing to learn: it must print the content of the assistant's turn"
      )
    if not frame.before.startswith(frame.prompt):
      return _after_opened(_opened(frame), response) + after
    if (block := self._own_block(frame, messages, response)) is not None:
      return block + after
    text = self._template.finished(messages, response)
    if text.startswith(frame.before) and text.endswith(frame.after):
      first = len(frame.prompt) + len(self._fixed(frame))
      return text[first : len(text) - len(frame.after)] + after
    return response + after

  def _frame(self, messages: Sequence[Message]) -> Frame:
    if self._last is None or self._last[0] != messages:
      self._last = messages, self._template.frame(messages)
    return self._last[1]

  def _end(self, frame: Frame) -> str:
    """What ends a response: all up to the first control token.

    Without one, EOS will follow what is printed.
    """
    if not frame.prints_answers:
      return ''
    end = self._control.first(frame.after)
    return frame.after[: end.stop] if end else frame.after.rstrip()

  def _own_block(
    self, frame: Frame, messages: Sequence[Message], response: str
  ) -> str | None:
    """What is printed for a response that replaces the fixed part, or None."""
    if not self._fixed(frame):
      return None
    text = self._template.finished(messages, response)
    if text.startswith(frame.before) or not text.endswith(frame.after):
      return None
    if not text.startswith(frame.prompt):
      return None
    return text[len(frame.prompt) : len(text) - len(frame.after)]

  def _fixed(self, frame: Frame) -> str:
    """What is printed between the generation prompt and any answer.

    Without text at its end that the tokenizer would merge with the answer's,
    such as a space.
    """
    if not frame.prints_answers or not frame.before.startswith(frame.prompt):
      return ''
    text = frame.before[len(frame.prompt) :]
    if text not in self._fixed_parts:
      self._fixed_parts[text] = self._unmerged(text)
    return self._fixed_parts[text]

  def _unmerged(self, text: str) -> str:
    first, second = (self._control.encoding(text + x) for x in ANSWERS)
    # A space becomes part of the next word's token. Line breaks do not, even if
    # their own tokens depend on what follows: GPT-2's rule splits two of them
    # only before a letter.
    ends = ({end for _, end in found.offsets} for found in (first, second))
    if not text.endswith(' ') and all(len(text) in found for found in ends):
      return text
    for n in range(num_common(first.ids, second.ids), 0, -1):
      _, end = first.offsets[n - 1]
      if self._control.encode(text[:end]) == first.ids[:n]:
        return text[:end]
    return ''

  def _notes(self, frame: Frame) -> Iterator[str]:
    if fixed := self._fixed(frame):
      yield (
        f'the template writes {fixed!r} before an answer: it is part of the '
        'prompt'
      )
    if frame.prints_answers and not frame.before.startswith(frame.prompt):
      yield (
        f'the generation prompt ends with {_opened(frame)!r}, which the '
        'template does not write before an answer: answers follow it as they '
        'are'
      )


def _opened(frame: Frame) -> str:
  """What only the generation prompt has, such as an open <think>."""
  same = num_common(frame.prompt, frame.before)
  # "<think>" and "</think>" have a "<" in common.
  if tag := _UNCLOSED.search(frame.prompt[:same]):
    same = tag.start()
  return frame.prompt[same:]


def _after_opened(opened: str, response: str) -> str:
  """The response without what the prompt opened already."""
  tag = opened.strip()
  if not tag or not response.lstrip().startswith(tag):
    return response
  return response.lstrip().removeprefix(tag).lstrip()
