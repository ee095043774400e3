"""Encodes prompts and responses as token ids, the same way for all stages.

Everything that feeds the model goes through PromptFormat, so the tokens around
the boundary between prompt and response are the same in scoring, finetuning,
evaluation and generation.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
import pathlib
import sys

from edsft_jax import errors
from edsft_jax.models import checkpoint
from edsft_jax.models.chat_template import (
  ChatTemplate,
  parse_arguments,
  parse_date,
)
from edsft_jax.models.control_tokens import MODES, ControlTokens, clean
from edsft_jax.models.layout import PROBE, ChatLayout, Layout, RawLayout
from edsft_jax.models.tokenizer import Tokenizer, load_tokenizer
from edsft_jax.store import Message, Prompt

TRUNCATIONS = ('end', 'start', 'middle')
# Characters before a response that its tokens may depend on.
_CONTEXT = 64


def load_prompt_format(
  model_path: str | pathlib.Path,
  template: str,
  separator: str,
  truncate: str,
  template_arguments: str,
  control_tokens: str,
  date: str,
  log: Callable[[str], None] = lambda line: None,
) -> 'PromptFormat':
  """Reads the tokenizer of a model directory, and nothing from elsewhere.

  Args:
    model_path: see `models.resolve`.
    template: 'auto' | 'raw' | Jinja text, see PromptFormat.
    separator: text between prompt and response, without a template.
    truncate: where a prompt beyond its limit is cut: 'end' | 'start' |
      'middle'.
    template_arguments: a JSON object of variables for the template.
    control_tokens: what control tokens in the text of messages and responses
      are encoded as: 'text' | 'special'.
    date: the date that the template takes as today's, 'YYYY-MM-DD'.
    log: called with the format that 'auto' chose, what is not obvious about the
      template, and what the tokenizer lacks.

  Raises:
    InputError: an unknown option; a tokenizer that is missing, broken or larger
      than the model's embedding; a template that does not render.
  """
  directory = checkpoint.resolve(model_path)
  _check_options(template, truncate, control_tokens)
  arguments = parse_arguments(template_arguments)
  day = parse_date(date)
  tokenizer = load_tokenizer(directory)
  text = _template_text(template, tokenizer, log)
  end_ids = checkpoint.end_ids(directory)
  names = {
    token
    for i in end_ids
    if (token := tokenizer.token(i)) in tokenizer.added_tokens
  } | tokenizer.control_tokens
  layout: Layout
  if text:
    chat = ChatTemplate(text, tokenizer.names, arguments, day)
    names |= _written(chat, tokenizer.added_tokens)
    control = ControlTokens(tokenizer, names, control_tokens)
    layout = ChatLayout(chat, control)
  else:
    control = ControlTokens(tokenizer, names, control_tokens)
    layout = RawLayout(separator)
  result = PromptFormat(tokenizer, control, layout, truncate, end_ids)
  for note in _notes(tokenizer, layout, (*end_ids, tokenizer.eos_id)):
    log(note)
  return result


class PromptFormat:
  """Encodes prompts, and the responses that follow them.

  Raw: BOS (if the tokenizer adds one), the prompt and, before a response, the
  separator. With a chat template: the rendered conversation with all that the
  template writes before an answer, see ChatLayout; a prompt that is plain text
  is one user turn. Either way there is exactly one BOS.

  Attributes:
    end_ids: ids that end a response: the model's and the tokenizer's EOS, and
      the token that the template writes after an answer.
    longest_token: characters of the longest token. Text that is too far from
      the ends to matter by this measure is not tokenised; a larger number
      changes no token.
    control_note: for the log, what becomes of control tokens in messages.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    control: ControlTokens,
    layout: Layout,
    truncate: str,
    model_end_ids: Sequence[int],
  ):
    self._tokenizer = tokenizer
    self._control = control
    self._layout = layout
    self._truncate = truncate
    eos = tokenizer.eos_id
    self._eos = eos if eos is not None else next(iter(model_end_ids), None)
    ids = [*model_end_ids, *([] if self._eos is None else [self._eos])]
    if layout.end_token is not None:
      ids.append(tokenizer.added_tokens[layout.end_token])
    self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(ids))
    self.longest_token = tokenizer.longest_token
    self.control_note = f'encoded as {control.encoded_as}'

  def encode_prompt(
    self, prompt: Prompt, limit: int, for_response: bool, response: str = ''
  ) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether it was truncated.

    A prompt beyond `limit` loses text of its last turn, at the end, at the
    start or in the middle, as prompt.truncate says. The template's own tokens,
    the separator and earlier turns stay. If earlier turns alone fill the limit,
    the tokens are cut instead, and only BOS is sure to stay.

    Args:
      prompt: text, or turns with 'role' and 'content'.
      limit: number of tokens at most, at least 1.
      for_response: whether response tokens will follow (raw: the separator).
      response: the response, where it is known. One that the template prints
        with a block of its own, such as reasoning, is not preceded by the
        template's.

    Raises:
      InputError: the template rejects this conversation.
    """
    if limit < 1:
      raise errors.InputError(
        f'no room for a prompt ({limit} tokens): the new tokens fill the '
        'context, lower max_new_tokens'
      )

    def encode(prompt: Prompt) -> list[int]:
      text = self._layout.prompt(
        self._messages(prompt), for_response, self._marked(response)
      )
      return self._with_prefix(self._encode(text, limit))

    text = _last_content(prompt)
    first, last = self._cut(len(text), self._room(limit))
    shortened = first + last < len(text)
    if shortened:
      text = text[:first] + text[len(text) - last :]
      prompt = _with_last_content(prompt, text)
    ids = encode(prompt)
    if len(ids) <= limit:
      return ids, shortened
    offsets = self._control.encoding(self._marked(text)).offsets
    ends = [end for _, end in offsets]
    # Cut text may have more tokens than it had within the whole, so the number
    # to keep is lowered until the prompt fits.
    kept = len(ends) - (len(ids) - limit)
    while kept > 0:
      shorter = _with_last_content(prompt, self._cut_text(text, ends, kept))
      ids = encode(shorter)
      if len(ids) <= limit:
        return ids, True
      kept -= len(ids) - limit
    return self._cut_ids(ids, limit), True

  def encode_response(
    self, prompt: Prompt, response: str, limit: int = sys.maxsize
  ) -> list[int]:
    """Token ids of the response and its end token, to follow the prompt's.

    With a template, this is what it prints for the assistant's turn, up to and
    including the end token; without one, the response and EOS. The ids are
    those of the whole text, unless the tokenizer would merge the response with
    the prompt: then they are those of the response alone. Only the first
    `limit` ids are exact.

    Raises:
      InputError: the template does not print responses, so there would be
        nothing to learn.
    """
    messages = self._messages(prompt)
    response = self._marked(response)
    text = self._layout.response(messages, response)
    before = self._layout.prompt(messages, True, response)[-_CONTEXT:]
    ids = self._encode_after(before, text, limit)
    if self._eos is None or (ids and ids[-1] in self.end_ids):
      return ids
    return [*ids, self._eos]

  @property
  def has_template(self) -> bool:
    """Whether prompts go through a chat template."""
    return isinstance(self._layout, ChatLayout)

  @property
  def start_id(self) -> int:
    """The id that the first token of a text is predicted from.

    Raises:
      InputError: the tokenizer has neither BOS nor EOS.
    """
    start_id = self._tokenizer.start_id
    if start_id is None:
      raise errors.InputError(
        'the tokenizer has neither a bos_token nor an eos_token: whole texts '
        'cannot be scored'
      )
    return start_id

  def text(self, prompt: Prompt, chat: bool) -> str:
    """The text of a prompt for `encode_text` and `encode_pair`.

    Args:
      prompt: text, or turns with 'role' and 'content'.
      chat: whether to render the chat template, up to where an answer begins;
        otherwise the text is the prompt itself.
    """
    messages = self._messages(prompt)
    if chat:
      return self._layout.prompt(messages, True)
    return ''.join(turn['content'] for turn in messages)

  def encode_text(self, text: str) -> list[int]:
    """Ids of the whole of a text made by `text`, with BOS if there is one."""
    return self._with_prefix(self._control.encode(text))

  def encode_pair(
    self, context: str, continuation: str
  ) -> tuple[list[int], list[int]]:
    """Ids of a context, and of a continuation as it is tokenised after it.

    Both are encoded together, and the continuation gets what exceeds the
    context's own number of ids; white space at the end of the context becomes
    part of the continuation. This is lm-evaluation-harness's rule. Encoded
    alone, a continuation such as ' A' has other ids in some tokenizers.

    Args:
      context: a text made by `text`.
      continuation: plain text.

    Raises:
      InputError: the context's last token includes all of the continuation.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + self._marked(continuation)
    whole = self.encode_text(stripped + continuation)
    before = self.encode_text(stripped)
    if len(whole) <= len(before):
      raise errors.InputError(
        f'the continuation {continuation!r} has no token of its own after '
        f'{stripped[-20:]!r}: let the context end before white space'
      )
    return before, whole[len(before) :]

  def num_control_tokens(self, prompt: Prompt, response: str = '') -> int:
    """How many control tokens the text of the messages contains."""
    texts = [turn['content'] for turn in _turns(prompt)]
    return sum(map(self._control.count, [*texts, response]))

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """Text of the ids, with control tokens only if `special`."""
    if not special:
      ids = [i for i in ids if i not in self._control.ids]
    return self._tokenizer.decode(ids)

  def decode_response(self, ids: Sequence[int]) -> str:
    """Text of a generated response, without its end token.

    Not every tokenizer marks that token as special.
    """
    return self.decode(ids[:-1] if ids and ids[-1] in self.end_ids else ids)

  def _messages(self, prompt: Prompt) -> list[Message]:
    """The prompt's turns, marked."""
    return [
      {name: self._marked(value) for name, value in turn.items()}
      for turn in _turns(prompt)
    ]

  def _marked(self, text: str) -> str:
    return self._control.marked(clean(text))

  def _with_prefix(self, ids: list[int]) -> list[int]:
    """The ids after what goes before any text, which they may have already."""
    prefix = self._tokenizer.prefix
    while prefix and ids[: len(prefix)] == prefix:
      ids = ids[len(prefix) :]
    return prefix + ids

  def _encode(self, text: str, limit: int) -> list[int]:
    """Token ids; the first and last `limit` equal those of the whole text."""
    room = self._room(limit)
    if len(text) > 2 * room:
      text = text[:room] + text[-room:]
    return self._control.encode(text)

  def _encode_after(self, before: str, text: str, limit: int) -> list[int]:
    """Token ids of a text that follows another."""
    head = self._control.encode(before)
    ids = self._encode(before + text, len(head) + limit)
    if ids[: len(head)] == head:
      return ids[len(head) :]
    return self._encode(text, limit)

  def _room(self, limit: int) -> int:
    """Number of characters that surely hold `limit` tokens, even after a cut.

    Avoids tokenising megabytes of text that cannot matter, which would take
    minutes and gigabytes.
    """
    return 2 * limit * self.longest_token

  def _cut(self, length: int, kept: int) -> tuple[int, int]:
    """How many of `length` items to keep at the start and at the end."""
    kept = min(kept, length)
    if self._truncate == 'end':
      return kept, 0
    if self._truncate == 'start':
      return 0, kept
    return kept - kept // 2, kept // 2

  def _cut_ids(self, ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids, with those that go before any text."""
    num_prefix = min(len(self._tokenizer.prefix), limit - 1)
    head, tail = ids[:num_prefix], ids[num_prefix:]
    first, last = self._cut(len(tail), limit - num_prefix)
    return head + tail[:first] + tail[len(tail) - last :]

  def _cut_text(self, text: str, ends: list[int], kept: int) -> str:
    """The text cut to `kept` tokens; `ends` are the tokens' end characters."""
    first, last = self._cut(len(ends), kept)
    head = text[: ends[first - 1]] if first else ''
    tail = text[ends[len(ends) - last - 1] :] if last else ''
    return head + tail


def _template_text(
  template: str, tokenizer: Tokenizer, log: Callable[[str], None]
) -> str | None:
  """The chat template; None or '' for raw prompts."""
  if template == 'raw':
    return None
  if template != 'auto':
    return template
  text = tokenizer.chat_template()
  log(
    "using the checkpoint's chat template for prompts"
    if text
    else 'the checkpoint has no chat template: using raw prompts'
  )
  return text


def _check_options(template: str, truncate: str, mode: str) -> None:
  if truncate not in TRUNCATIONS:
    raise errors.InputError(
      f'prompt.truncate {truncate!r} is not one of {TRUNCATIONS}'
    )
  if template not in ('auto', 'raw') and '{' not in template:
    raise errors.InputError(
      f"prompt.template {template!r} is neither 'auto' nor 'raw' nor a Jinja "
      'template'
    )
  if mode not in MODES:
    raise errors.InputError(
      f'prompt.control_tokens {mode!r} is not one of {MODES}'
    )


def _notes(
  tokenizer: Tokenizer, layout: Layout, model_ends: Collection[int | None]
) -> Iterator[str]:
  """Lines for the log."""
  yield from layout.notes
  end = layout.end_token
  if end is not None and tokenizer.added_tokens[end] not in model_ends:
    yield (
      f'{end!r}, which the template writes after an answer, ends a response '
      "besides the model's own end tokens"
    )
  if not tokenizer.has_pad_token:
    yield 'the tokenizer has no pad token: not needed, since padding is masked'


def _written(chat: ChatTemplate, added_tokens: Collection[str]) -> set[str]:
  """The added tokens that a template writes around earlier turns.

  Tokenizers do not mark all of these as special. Tokens of the last answer
  alone, such as <think>, may be part of an answer, and white space is text.
  """
  turns: list[Message] = [
    {'role': role, 'content': PROBE} for role in ('user', 'assistant', 'user')
  ]
  try:
    text = chat.render(turns, add_generation_prompt=False)
  except errors.InputError:  # Some templates take a single turn.
    text = chat.render(turns[:1], add_generation_prompt=False)
  return {token for token in added_tokens if token.strip() and token in text}


def _turns(prompt: Prompt) -> list[Message]:
  if isinstance(prompt, str):
    return [{'role': 'user', 'content': prompt}]
  return list(prompt)


def _last_content(prompt: Prompt) -> str:
  return clean(_turns(prompt)[-1]['content'])


def _with_last_content(prompt: Prompt, text: str) -> Prompt:
  if isinstance(prompt, str):
    return text
  return [*prompt[:-1], {**prompt[-1], 'content': text}]
