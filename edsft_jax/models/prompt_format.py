"""Prompts and responses -> token ids, one way for scoring and finetuning.

Everything that feeds the model goes through PromptFormat, so the tokens on
both sides of the boundary between prompt and response are the same when the
model is scored, finetuned, evaluated and asked to answer.
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

# transformers would print that it found no PyTorch, which is not needed.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
import transformers

# Of transformers; its own types promise too many kinds of results.
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
  """Reads a model directory's tokenizer; nothing is looked for elsewhere.

  Args:
    model_path: see `models.resolve`.
    template: 'auto' | 'raw' | Jinja text, see PromptFormat.
    separator: stands between prompt and response where there is no template.
    truncate: which end a prompt beyond its limit loses: 'end' | 'start' |
      'middle'.
    log: is told which format 'auto' chose, and what the tokenizer lacks.

  Raises:
    InputError: an unknown option, a tokenizer that is missing, broken or
      larger than the model's embedding, a template that does not render.
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
      log('prompts go through the chat template of the checkpoint')
    else:
      log('the checkpoint has no chat template: prompts go in raw')
    chat_template = _own_template(tokenizer, directory)
  else:
    chat_template = None if template == 'raw' else template
  if tokenizer.pad_token_id is None:
    log('the tokenizer has no pad token: padding is masked, none is needed')
  model_end_ids = checkpoint.end_ids(directory)
  return PromptFormat(
    tokenizer, chat_template, separator, truncate, model_end_ids
  )


class PromptFormat:
  """How a prompt becomes tokens, and a response the tokens after them.

  Raw: BOS (if the tokenizer sets one), the prompt and, where a response
  follows, the separator. With a chat template: the rendered conversation with
  its generation prompt; a prompt that is plain text is one user turn. Either
  way BOS stands exactly once.

  Attributes:
    end_ids: ids that end a response: the model's own and the tokenizer's EOS.
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
    self._longest_token = max(map(len, tokenizer.get_vocab()))
    # What the tokenizer puts before any text: BOS, or nothing. (What it puts
    # behind, an EOS, would end the prompt before the answer.)
    bos = tokenizer.bos_token_id
    self._prefix = [i for i in tokenizer('').input_ids if i == bos][:1]
    if chat_template is not None and _PROBE not in self._render(_PROBE, True):
      raise errors.InputError(
        'prompt.template renders no prompt: it must print message.content'
      )

  def encode_prompt(
    self, prompt: Prompt, limit: int, for_response: bool
  ) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether it had to be shortened.

    A prompt beyond `limit` loses text of its last turn, at the end, the start
    or in the middle as the truncation says; the template's own tokens, the
    separator and earlier turns stay. Where earlier turns alone fill the limit,
    the tokens are cut instead, and only BOS is sure to stay.

    Args:
      prompt: text, or turns with 'role' and 'content'.
      limit: most tokens, at least 1.
      for_response: whether response tokens will follow (raw: the separator).

    Raises:
      InputError: the template does not take this conversation.
    """
    if limit < 1:
      raise errors.InputError(
        f'no room for a prompt ({limit} tokens): the new tokens fill the '
        'context, ask for fewer'
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
    # Cut text may fall into more tokens than it had in the whole, so the
    # number to keep goes down until the prompt fits.
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
    """Token ids of what follows the prompt's: the response and its end.

    With a template, the text that it prints for the assistant's turn after
    the generation prompt, up to and with the end token; where the turn's
    rendering does not begin with the prompt's, and without a template, the
    response and EOS. Ids beyond the first `limit` are not to be relied on.

    Raises:
      InputError: the template prints nothing of a response, so that there
        would be nothing to learn.
    """
    response = _clean(response)
    ids = self._encode(self._response_text(prompt, response), limit)
    if (
      response.strip()
      and not self.decode(ids).strip()
      and _PROBE not in self._response_text(prompt, _PROBE)
    ):
      raise errors.InputError(
        'prompt.template prints nothing of an answer, so that finetuning would '
        "supervise nothing: it must print the content of the assistant's turn"
      )
    ends = [n for n, i in enumerate(ids, 1) if i in self.end_ids]
    # Templates may print a line break after the end token; nobody samples it.
    if ends and not self._tokenizer.decode(ids[ends[-1] :]).strip():
      return ids[: ends[-1]]
    return ids if self._eos is None else [*ids, self._eos]

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """Text of the ids, special tokens left out unless they are asked for."""
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
    """Token ids; the first and the last `limit` are those of the whole text."""
    room = self._room(limit)
    if len(text) > 2 * room:
      text = text[:room] + text[-room:]
    return self._tokenizer(_clean(text), add_special_tokens=False).input_ids

  def _room(self, limit: int) -> int:
    """Characters that hold `limit` tokens, whatever a cut does to the last.

    Of megabytes of text only so much can matter, and a tokenizer takes minutes
    and gigabytes over the rest.
    """
    return 2 * limit * self._longest_token

  def _render(self, prompt: Prompt, add_generation_prompt: bool) -> str:
    try:
      return self._tokenizer.apply_chat_template(
        _turns(prompt),
        chat_template=self._template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        # Llama 3's templates print today's date unless they are given one;
        # what the model reads must not change overnight.
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
    """How many of `length` stay at the front and at the back."""
    kept = min(kept, length)
    if self._truncate == 'end':
      return kept, 0
    if self._truncate == 'start':
      return 0, kept
    return kept - kept // 2, kept // 2

  def _cut_text(self, text: str, ends: list[int], kept: int) -> str:
    """The text of `kept` of its tokens, which end at these characters."""
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
  # Where no class is named, transformers would guess one by the architecture
  # and build its own tokenizer, whatever tokenizer.json says.
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
      f'{directory} has no tokenizer that can be read: {line}'
    ) from None
  # Prompts are cut here; transformers would warn of each long one.
  tokenizer.model_max_length = sys.maxsize
  config = read_config(directory)
  largest = max(tokenizer.get_vocab().values(), default=-1)
  if largest >= config.vocab_size:
    raise errors.InputError(
      f'{directory}: the tokenizer has id {largest}, the embedding only '
      f'{config.vocab_size} rows: they are of different models'
    )
  # A tokenizer.json alone does not say which of its tokens begin and end.
  if tokenizer.bos_token_id is None and config.bos_id is not None:
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config.bos_id)
  if tokenizer.eos_token_id is None and config.eos_ids:
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_ids[0])
  return tokenizer


def _own_template(tokenizer: Tokenizer, directory: pathlib.Path) -> str | None:
  """The checkpoint's chat template; of several with names, the default."""
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
  """Lone surrogates, which no tokenizer takes, become question marks."""
  return text.encode('utf-8', 'replace').decode('utf-8')
