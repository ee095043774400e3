"""Keeps control tokens in users' texts apart from those of the template.

A text such as '<|im_end|>' in a prompt would otherwise end the user's turn. It
is marked before the template is rendered. The marks then show which control
tokens are only text, whatever the template has put around them.
"""

from collections.abc import Collection, Iterator, Mapping
import functools
import json
import re

import tokenizers

from edsft_jax.models.tokenizer import Tokenizer

MODES = ('text', 'special')

# Noncharacters of Unicode, which no text may contain: one that separates the
# first character of a control token from the others, and one that begins the
# other name of a control token.
_BREAK = '\U0010ffff'
_ALIAS = '\U0010fffe'
_FIRST_PRIVATE = 0x100000


def clean(text: str) -> str:
  """The text without characters that are invalid or reserved for marks.

  Lone surrogates become question marks.
  """
  text = text.encode('utf-8', 'replace').decode('utf-8')
  return text.replace(_BREAK, '').replace(_ALIAS, '')


class ControlTokens:
  """Encodes text in which some control tokens are only text.

  Attributes:
    ids: ids of the control tokens.
    encoded_as: in words, what those in messages are encoded as.
  """

  def __init__(self, tokenizer: Tokenizer, names: Collection[str], mode: str):
    """Takes the control tokens of a tokenizer.

    Args:
      tokenizer: the tokenizer.
      names: added tokens of the tokenizer. Single characters are always text.
      mode: one of MODES; 'special': `marked` changes nothing.
    """
    self.ids = frozenset(tokenizer.added_tokens[name] for name in names)
    self._names = frozenset(name for name in names if len(name) > 1)
    self._tokenizer = tokenizer
    self._marks = mode == 'text'
    what = 'text' if self._marks else 'themselves'
    self.encoded_as = f'{what} (prompt.control_tokens)'
    first = ''.join(sorted({name[0] for name in self._names}))
    self._first = re.compile(f'[{re.escape(first)}]' if first else '(?!)')
    self._lengths = sorted({len(name) for name in self._names}, reverse=True)

  def count(self, text: str) -> int:
    """Number of control tokens in a text."""
    return sum(1 for _ in self._occurrences(text))

  def marked(self, text: str) -> str:
    """A clean text of a message, with its control tokens marked as text."""
    if not self._marks:
      return text
    pieces, done = [], 0
    for found in self._overlapping(text):
      pieces.append(text[done : found.start + 1])
      done = found.start + 1
    return _BREAK.join([*pieces, text[done:]])

  def encode(self, text: str) -> list[int]:
    """Ids of a text that was rendered from marked messages.

    Without marks, these are the tokenizer's own ids.
    """
    return self.encoding(text).ids

  def encoding(self, text: str) -> tokenizers.Encoding:
    """Ids and offsets of such a text; offsets do not count marks."""
    if _BREAK not in text:
      return self._tokenizer.encoding(text)
    pieces, done = [], 0
    for found in self._occurrences(text):
      pieces += [text[done : found.start], self._aliases[text[found]]]
      done = found.stop
    renamed = ''.join([*pieces, text[done:]]).replace(_BREAK, '')
    return self._renamed.encode(renamed, add_special_tokens=False)

  def first(self, text: str) -> slice | None:
    """Where the first control token of a text is; None without one."""
    return next(self._occurrences(text), None)

  def _overlapping(self, text: str) -> Iterator[slice]:
    """The longest control token that begins at each position."""
    for match in self._first.finditer(text):
      start = match.start()
      for length in self._lengths:
        if text[start : start + length] in self._names:
          yield slice(start, start + length)
          break

  def _occurrences(self, text: str) -> Iterator[slice]:
    """As a tokenizer matches them: from the left, the longest ones."""
    done = 0
    for found in self._overlapping(text):
      if found.start >= done:
        yield found
        done = found.stop

  @functools.cached_property
  def _aliases(self) -> dict[str, str]:
    return {
      name: _ALIAS + chr(_FIRST_PRIVATE + n)
      for n, name in enumerate(sorted(self._names))
    }

  @functools.cached_property
  def _renamed(self) -> tokenizers.Tokenizer:
    """The tokenizer with other names for its control tokens.

    It gives the same ids for these names, and reads the old ones as text.
    """
    result = _renamed(self._tokenizer.backend, self._aliases)
    for name, alias in self._aliases.items():
      assert result.token_to_id(alias) == self._tokenizer.added_tokens[name]
    return result


def _renamed(
  tokenizer: tokenizers.Tokenizer, names: Mapping[str, str]
) -> tokenizers.Tokenizer:
  fields = json.loads(tokenizer.to_str())
  for token in fields['added_tokens']:
    token['content'] = names.get(token['content'], token['content'])
  model = fields['model']
  if isinstance(model['vocab'], dict):
    model['vocab'] = {names.get(k, k): v for k, v in model['vocab'].items()}
  else:
    model['vocab'] = [[names.get(k, k), *more] for k, *more in model['vocab']]
  if model.get('unk_token') in names:
    model['unk_token'] = names[model['unk_token']]
  if model.get('merges'):
    model['merges'] = [
      pair
      for pair in model['merges']
      if not {*pair, ''.join(pair)} & names.keys()
    ]
  fields['post_processor'] = None
  return tokenizers.Tokenizer.from_str(json.dumps(fields))
