"""Encodes prompts and responses as token ids, the same way for all stages.

Everything that feeds the model goes through PromptFormat, so the tokens around
the boundary between prompt and response are the same in scoring, finetuning,
evaluation and generation.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import sys
from typing import Any

import jinja2

from edsft_jax import errors
from edsft_jax.models import checkpoint
from edsft_jax.models.config_json import read_config, read_json_object
from edsft_jax.store import Message, Prompt

# Otherwise transformers warns that it found no PyTorch, which is not needed.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
import transformers

# A tokenizer of transformers; its annotations allow too many result types.
Tokenizer = Any

TRUNCATIONS = ('end', 'start', 'middle')
_PROBE = 'probe'
_DATE = '26 Jul 2024'


def load_prompt_format(
  model_path: str | pathlib.Path,
  template: str,
  separator: str,
  truncate: str,
  log: Callable[[str], None] = lambda line: None,
) -> 'PromptFormat':
  """Reads the tokenizer of a model directory, and nothing from elsewhere.

  Args:
    model_path: see `models.resolve`.
    template: 'auto' | 'raw' | Jinja text, see PromptFormat.
    separator: text between prompt and response, without a template.
    truncate: where a prompt beyond its limit is cut: 'end' | 'start' |
      'middle'.
    log: called with the format that 'auto' chose, and what the tokenizer lacks.

  Raises:
    InputError: an unknown option; a tokenizer that is missing, broken or larger
      than the model's embedding; a template that does not render.
  """
  directory = checkpoint.resolve(model_path)
  if truncate not in TRUNCATIONS:
    raise errors.InputError(
      f'prompt.truncate {truncate!r} is not one of {TRUNCATIONS}'
    )
  if template not in ('auto', 'raw') and '{' not in template:
    raise errors.InputError(
      f"prompt.template {template!r} is neither 'auto' nor 'raw' nor a Jinja "
      'template'
    )
  tokenizer = _load_tokenizer(directory)
  if template == 'auto':
    if tokenizer.chat_template:
      log("using the checkpoint's chat template for prompts")
    else:
      log('the checkpoint has no chat template: using raw prompts')
    chat_template = _own_template(tokenizer, directory)
  else:
    chat_template = None if template == 'raw' else template
  if tokenizer.pad_token_id is None:
    log('the tokenizer has no pad token: not needed, since padding is masked')
  model_end_ids = checkpoint.end_ids(directory)
  return PromptFormat(
    tokenizer, chat_template, separator, truncate, model_end_ids
  )


class PromptFormat:
  """Encodes prompts, and the responses that follow them.

  Raw: BOS (if the tokenizer adds one), the prompt and, before a response, the
  separator. With a chat template: the rendered conversation with its generation
  prompt; a prompt that is plain text is one user turn. Either way there is
  exactly one BOS.

  Attributes:
    end_ids: ids that end a response: the model's and the tokenizer's EOS.
    longest_token: characters of the longest token. Text that is too far from
      the ends to matter by this measure is not tokenised; a larger number
      changes no token.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    chat_template: str | None,
    separator: str,
    truncate: str,
    model_end_ids: Sequence[int],
  ):
    self._tokenizer = tokenizer
    self._template = chat_template
    self._separator = separator
    self._truncate = truncate
    eos = tokenizer.eos_token_id
    self._eos = eos if eos is not None else next(iter(model_end_ids), None)
    self.end_ids: tuple[int, ...] = tuple(
      dict.fromkeys(
        [*model_end_ids, *([] if self._eos is None else [self._eos])]
      )
    )
    self.longest_token = max(map(len, tokenizer.get_vocab()))
    # What the tokenizer adds before any text: BOS, or nothing. (An EOS that it
    # adds after the text would end the prompt before the answer.)
    bos = tokenizer.bos_token_id
    self._prefix = [i for i in tokenizer('').input_ids if i == bos][:1]
    if chat_template is not None and _PROBE not in self._render(_PROBE, True):
      raise errors.InputError(
        'prompt.template renders no prompt: it must print message.content'
      )

  def encode_prompt(
    self, prompt: Prompt, limit: int, for_response: bool
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

    Raises:
      InputError: the template rejects this conversation.
    """
    if limit < 1:
      raise errors.InputError(
        f'no room for a prompt ({limit} tokens): the new tokens fill the '
        'context, lower max_new_tokens'
      )
    text = _last_content(prompt)
    first, last = self._cut(len(text), self._room(limit))
    shortened = first + last < len(text)
    if shortened:
      text = text[:first] + text[len(text) - last :]
      prompt = _with_last_content(prompt, text)
    ids = self._encode_whole(prompt, for_response, limit)
    if len(ids) <= limit:
      return ids, shortened
    ends = [
      end
      for _, end in self._tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True
      ).offset_mapping
    ]
    # Cut text may have more tokens than it had within the whole, so the number
    # to keep is lowered until the prompt fits.
    kept = len(ends) - (len(ids) - limit)
    while kept > 0:
      shorter = _with_last_content(prompt, self._cut_text(text, ends, kept))
      ids = self._encode_whole(shorter, for_response, limit)
      if len(ids) <= limit:
        return ids, True
      kept -= len(ids) - limit
    num_prefix = min(len(self._prefix), limit - 1)
    head, tail = ids[:num_prefix], ids[num_prefix:]
    first, last = self._cut(len(tail), limit - num_prefix)
    return head + tail[:first] + tail[len(tail) - last :], True

  def encode_response(
    self, prompt: Prompt, response: str, limit: int = sys.maxsize
  ) -> list[int]:
    """Token ids of the response and its end token, to follow the prompt's.

    With a template, this is what it prints for the assistant's turn after the
    generation prompt, up to and including the end token. Without a template, or
    if the rendered conversation does not start with the rendered prompt, it is
    the response and EOS. Only the first `limit` ids are exact.

    Raises:
      InputError: the template does not print responses, so there would be
        nothing to learn.
    """
    response = _clean(response)
    ids = self._encode(self._response_text(prompt, response), limit)
    if (
      response.strip()
      and not self.decode(ids).strip()
      and _PROBE not in self._response_text(prompt, _PROBE)
    ):
      raise errors.InputError(
        'prompt.template does not print answers, so finetuning would have '
        "nothing to learn: it must print the content of the assistant's turn"
      )
    ends = [n for n, i in enumerate(ids, 1) if i in self.end_ids]
    # Templates may print a line break after the end token; it is never
    # generated.
    if ends and not self._tokenizer.decode(ids[ends[-1] :]).strip():
      return ids[: ends[-1]]
    return ids if self._eos is None else [*ids, self._eos]

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """Text of the ids, with special tokens only if `special`."""
    return self._tokenizer.decode(list(ids), skip_special_tokens=not special)

  def _response_text(self, prompt: Prompt, response: str) -> str:
    if self._template is None:
      return response
    before = self._render(prompt, True)
    turn = {'role': 'assistant', 'content': response}
    whole = self._render([*_turns(prompt), turn], False)
    return whole[len(before) :] if whole.startswith(before) else response

  def _encode_whole(
    self, prompt: Prompt, for_response: bool, limit: int
  ) -> list[int]:
    if self._template is not None:
      text = self._render(prompt, True)
    else:
      text = self._separator.join(turn['content'] for turn in _turns(prompt))
      text += self._separator if for_response else ''
    ids = self._encode(text, limit)
    while self._prefix and ids[:1] == self._prefix:
      ids = ids[1:]
    return self._prefix + ids

  def _encode(self, text: str, limit: int) -> list[int]:
    """Token ids; the first and last `limit` equal those of the whole text."""
    room = self._room(limit)
    if len(text) > 2 * room:
      text = text[:room] + text[-room:]
    return self._tokenizer(_clean(text), add_special_tokens=False).input_ids

  def _room(self, limit: int) -> int:
    """Number of characters that surely hold `limit` tokens, even after a cut.

    Avoids tokenising megabytes of text that cannot matter, which would take
    minutes and gigabytes.
    """
    return 2 * limit * self.longest_token

  def _render(self, prompt: Prompt, add_generation_prompt: bool) -> str:
    try:
      return self._tokenizer.apply_chat_template(
        _turns(prompt),
        chat_template=self._template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        # Llama 3's templates print today's date unless given one, and prompts
        # must not change from day to day.
        date_string=_DATE,
      )
    except (
      jinja2.TemplateError,
      TypeError,
      ValueError,
      KeyError,
      ArithmeticError,
      RecursionError,
    ) as error:
      line = ' '.join(str(error).split())
      raise errors.InputError(
        f'prompt.template does not render: {line}'
      ) from None

  def _cut(self, length: int, kept: int) -> tuple[int, int]:
    """How many of `length` items to keep at the start and at the end."""
    kept = min(kept, length)
    if self._truncate == 'end':
      return kept, 0
    if self._truncate == 'start':
      return 0, kept
    return kept - kept // 2, kept // 2

  def _cut_text(self, text: str, ends: list[int], kept: int) -> str:
    """The text cut to `kept` tokens; `ends` are the tokens' end characters."""
    first, last = self._cut(len(ends), kept)
    head = text[: ends[first - 1]] if first else ''
    tail = text[ends[len(ends) - last - 1] :] if last else ''
    return head + tail


def _load_tokenizer(directory: pathlib.Path) -> Tokenizer:
  if not (directory / 'tokenizer.json').is_file():
    raise errors.InputError(
      f'{directory} has no tokenizer.json: save the tokenizer next to the model'
    )
  settings = directory / 'tokenizer_config.json'
  named = settings.is_file() and read_json_object(settings)
  # Without a class name, transformers would guess one from the architecture and
  # build that tokenizer, ignoring tokenizer.json.
  tokenizer_class = (
    transformers.AutoTokenizer
    if named and named.get('tokenizer_class')
    else transformers.PreTrainedTokenizerFast
  )
  try:
    tokenizer = tokenizer_class.from_pretrained(
      directory, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # The tokenizer library raises bare Exceptions.
    line = ' '.join(str(error).split())
    raise errors.InputError(
      f"{directory}: the tokenizer cannot be read ({line}): copy the model's "
      'tokenizer files again'
    ) from None
  # Prompts are truncated here; otherwise transformers warns about long ones.
  tokenizer.model_max_length = sys.maxsize
  config = read_config(directory)
  largest = max(tokenizer.get_vocab().values(), default=-1)
  if largest >= config.vocab_size:
    raise errors.InputError(
      f'{directory}: the tokenizer has id {largest}, the embedding only '
      f'{config.vocab_size} rows: they belong to different models'
    )
  # tokenizer.json alone does not say which tokens are BOS and EOS.
  if tokenizer.bos_token_id is None and config.bos_id is not None:
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config.bos_id)
  if tokenizer.eos_token_id is None and config.eos_ids:
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_ids[0])
  return tokenizer


def _own_template(tokenizer: Tokenizer, directory: pathlib.Path) -> str | None:
  """The checkpoint's chat template; the default if there are several."""
  template = tokenizer.chat_template
  if not isinstance(template, dict):
    return template
  if 'default' not in template:
    raise errors.InputError(
      f'{directory} has the chat templates {", ".join(sorted(template))} and '
      "none named default: give one as prompt.template, or set it to 'raw'"
    )
  return template['default']


def _turns(prompt: Prompt) -> list[Message]:
  if isinstance(prompt, str):
    return [{'role': 'user', 'content': prompt}]
  return list(prompt)


def _last_content(prompt: Prompt) -> str:
  return _clean(_turns(prompt)[-1]['content'])


def _with_last_content(prompt: Prompt, text: str) -> Prompt:
  if isinstance(prompt, str):
    return text
  return [*prompt[:-1], {**prompt[-1], 'content': text}]


def _clean(text: str) -> str:
  """Replaces lone surrogates, which no tokenizer accepts, by question marks."""
  return text.encode('utf-8', 'replace').decode('utf-8')
