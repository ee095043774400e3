"""Reads the tokenizer of a model directory.

tokenizer.json is read as it is, by the tokenizers library. transformers would
build another tokenizer by the class that tokenizer_config.json names, and use
only parts of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
import re
from typing import Any

import tokenizers

from edsft_jax import errors
from edsft_jax.models.config_json import read_config, read_json_object

# Files that hold a vocabulary, in the order of preference.
VOCABULARIES = (
  ('tokenizer.json',),
  ('vocab.json', 'merges.txt'),
  ('tokenizer.model',),
  ('tekken.json',),
  ('tiktoken.model',),
)
FILES = (
  *(name for names in VOCABULARIES for name in names),
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
)
# What a tokenizer that was built from other files has to reproduce.
PROBE = (
  'A few words,  two spaces;\nlines:\n\n\t"tabs", caf\u00e9 na\u00efve '
  '\u00dcber, 1234567890 (3.14) x_1 = [a, b] & c/d? yes!'
)

# How control tokens are spelled, in tokenizers that do not mark them.
_CONTROL_SPELLING = re.compile(r'<[|\uff5c].*[|\uff5c]>|</?s>', re.S)


def check_files(directory: pathlib.Path) -> None:
  """Rejects a directory without a vocabulary.

  Raises:
    InputError: naming the files that would do.
  """
  if not _vocabulary(directory):
    listed = ', no '.join(' with '.join(names) for names in VOCABULARIES)
    raise errors.InputError(
      f'{directory} has no {listed}: save the tokenizer next to the model'
    )


def load_tokenizer(directory: pathlib.Path) -> 'Tokenizer':
  """Reads the tokenizer of a model directory, and nothing from elsewhere.

  A directory without tokenizer.json goes through the class of transformers
  that its config names, and the result has to reproduce PROBE.

  Raises:
    InputError: the tokenizer is missing, broken, larger than the model's
      embedding, or loses text; its files contradict each other.
  """
  check_files(directory)
  file = directory / 'tokenizer.json'
  defaults: Mapping[str, Any] = {}
  if file.is_file():
    try:
      backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises bare Exceptions.
      line = ' '.join(str(error).split())
      raise errors.InputError(
        f'{file}: the tokenizer cannot be read ({line}): copy the file again'
      ) from None
  else:
    backend, defaults = _convert(directory)
  # Files may ask for truncation and padding, which is done here instead.
  backend.no_truncation()
  backend.no_padding()
  tokenizer = Tokenizer(backend, directory, _Settings(directory, defaults))
  largest = max(backend.get_vocab().values(), default=-1)
  num_rows = read_config(directory).vocab_size
  if largest >= num_rows:
    raise errors.InputError(
      f'{directory}: the tokenizer has id {largest}, the embedding only '
      f'{num_rows} rows: they belong to different models'
    )
  return tokenizer


class Tokenizer:
  """A tokenizer with its special tokens and chat template.

  Attributes:
    backend: the tokenizer of the tokenizers library.
    prefix: ids that go before any text: BOS, or none. What a tokenizer adds
      after the text (add_eos_token) is left out: it would end the prompt before
      the answer.
    eos_id: id that ends a text, if known.
    names: texts of the special tokens by name, such as 'bos_token'; templates
      read them.
    added_tokens: ids of the tokens that are matched before any other, by text.
    control_tokens: those added tokens that are special, or spelled like it.
    has_pad_token: whether a token for padding is named.
    longest_token: characters of the longest token.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    directory: pathlib.Path,
    settings: '_Settings',
  ):
    self.backend = backend
    self._directory = directory
    self._settings = settings
    settings.add_tokens(backend)
    config = read_config(directory)
    self.names = settings.names
    self.has_pad_token = 'pad_token' in self.names
    bos_id = self._named('bos_token', config.bos_id)
    self.eos_id = self._named('eos_token', next(iter(config.eos_ids), None))
    added = backend.get_added_tokens_decoder()
    self.added_tokens = {token.content: i for i, token in added.items()}
    control = settings.control_tokens | set(self.names.values())
    control |= {token.content for token in added.values() if token.special}
    control |= set(filter(_CONTROL_SPELLING.fullmatch, self.added_tokens))
    self.control_tokens = control & self.added_tokens.keys()
    self.prefix = self._prefix(bos_id)
    self.longest_token = max(map(len, backend.get_vocab()))

  def encoding(self, text: str) -> tokenizers.Encoding:
    """Ids and offsets of a text: nothing is added, added tokens are found."""
    return self.backend.encode(text, add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of the ids, with all tokens."""
    return self.backend.decode(list(ids), skip_special_tokens=False)

  def token(self, token_id: int) -> str | None:
    """The text of an id, or None if the tokenizer does not have it."""
    return self.backend.id_to_token(token_id)

  @property
  def start_id(self) -> int | None:
    """The id that a text's first token is predicted from: BOS, or else EOS."""
    bos = self.names.get('bos_token')
    return self.eos_id if bos is None else self.added_tokens[bos]

  def chat_template(self) -> str | None:
    """The default chat template, if there is one.

    Raises:
      InputError: there are several, and none is named default.
    """
    return self._settings.chat_template()

  def _named(self, name: str, id_in_config: int | None) -> int | None:
    """Id of a special token; config.json's where no file names the token."""
    text = self.names.get(name)
    if text is None:
      if self._settings.denies(name) and name == 'bos_token':
        return None
      token = None if id_in_config is None else self.token(id_in_config)
      if token is not None:
        self.names[name] = token
        self._match(token)
      return id_in_config
    token_id = self.backend.token_to_id(text)
    if token_id is None:
      raise errors.InputError(
        f'{self._directory}: the tokenizer does not have the {name} {text!r}, '
        'which its config names: correct the name, or save the tokenizer again'
      )
    self._match(text)
    return token_id

  def _match(self, token: str) -> None:
    """Makes the tokenizer find a special token in what templates print."""
    added = self.backend.get_added_tokens_decoder().values()
    # Added again, it would lose options such as rstrip.
    if token not in {known.content for known in added}:
      self.backend.add_special_tokens([token])

  def _prefix(self, bos_id: int | None) -> list[int]:
    encoding = self.backend.encode('a')
    prefix = []
    for i, is_special in zip(
      encoding.ids, encoding.special_tokens_mask, strict=True
    ):
      if not is_special:
        break
      prefix.append(i)
    add_bos = self._settings.add_bos
    if add_bos is None:
      return prefix
    if bos_id is None:
      if not add_bos:
        return prefix
      raise errors.InputError(
        f'{self._directory}: add_bos_token is true, but no bos_token is named: '
        'correct tokenizer_config.json'
      )
    if add_bos and bos_id not in prefix:
      return [bos_id, *prefix]
    return prefix if add_bos else [i for i in prefix if i != bos_id]


class _Settings:
  """What the config files next to a vocabulary say.

  Attributes:
    names: texts of the special tokens, by name.
    control_tokens: texts of the tokens that some file calls special.
    add_bos: whether BOS goes before a text; None if no file says so.
  """

  def __init__(self, directory: pathlib.Path, defaults: Mapping[str, Any]):
    self._directory = directory
    config = self._read('tokenizer_config.json')
    # transformers before 4.34 preferred the map; later ones repeat it.
    token_map = self._read('special_tokens_map.json')
    first, second = (config, token_map)
    if 'added_tokens_decoder' not in config:
      first, second = second, first
    self._config = {**defaults, **second, **first}
    self.names = {
      name: text
      for name, value in self._config.items()
      if name.endswith('_token') and (text := _text_of(value)) is not None
    }
    self.add_bos = self._config.get('add_bos_token')
    if self.add_bos not in (True, False, None):
      raise self._malformed('add_bos_token')
    self._added = dict(self._listed_tokens())
    self.control_tokens = {
      token.content for token in self._added.values() if token.special
    }
    for name in (
      'additional_special_tokens',
      'extra_special_tokens',
      'chat_control_tokens',
    ):
      value = self._config.get(name) or []
      values = value.values() if isinstance(value, dict) else value
      self.control_tokens |= set(filter(None, map(_text_of, values)))

  def denies(self, name: str) -> bool:
    """Whether a special token is set to null, not just left out."""
    return name in self._config and self._config[name] is None

  def add_tokens(self, backend: tokenizers.Tokenizer) -> None:
    """Adds listed tokens that the vocabulary file does not have.

    Raises:
      InputError: a token would get another id than the listed one.
    """
    for token_id, token in sorted(self._added.items()):
      if backend.token_to_id(token.content) is None:
        backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != token_id:
          raise errors.InputError(
            f'{self._directory}: the added token {token.content!r} should have '
            f'id {token_id}, but the tokenizer gives it {found}: save the '
            'tokenizer again'
          )

  def chat_template(self) -> str | None:
    """The default chat template, see Tokenizer.chat_template."""
    file = self._directory / 'chat_template.jinja'
    if file.is_file():
      return file.read_text(encoding='utf-8')
    template = self._config.get('chat_template')
    template = template or self._read('chat_template.json').get('chat_template')
    if isinstance(template, list):
      try:
        template = {entry['name']: entry['template'] for entry in template}
      except (KeyError, TypeError):
        raise self._malformed('chat_template') from None
    if not isinstance(template, dict):
      return template or None
    if 'default' not in template:
      raise errors.InputError(
        f'{self._directory} has the chat templates '
        f'{", ".join(sorted(template))} and none named default: give one as '
        "prompt.template, or set it to 'raw'"
      )
    return template['default']

  def _listed_tokens(self) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    listed = self._config.get('added_tokens_decoder')
    if listed is not None:
      try:
        for token_id, fields in listed.items():
          yield int(token_id), tokenizers.AddedToken(**fields)
      except (AttributeError, TypeError, ValueError):
        raise self._malformed('added_tokens_decoder') from None
      return
    for text, token_id in self._read('added_tokens.json').items():
      yield (
        token_id,
        tokenizers.AddedToken(text, special=text in self.names.values()),
      )

  def _malformed(self, field: str) -> errors.InputError:
    return errors.InputError(
      f'{self._directory}: {field} of the tokenizer is malformed: copy the '
      "model's tokenizer files again"
    )

  def _read(self, name: str) -> dict[str, Any]:
    file = self._directory / name
    return read_json_object(file) if file.is_file() else {}


def _text_of(value: Any) -> str | None:
  """The text of a token in a config file, which may be an object."""
  text = value.get('content') if isinstance(value, dict) else value
  return text if isinstance(text, str) else None


def _vocabulary(directory: pathlib.Path) -> tuple[str, ...]:
  """The files of the first kind of vocabulary that a directory has."""
  for names in VOCABULARIES:
    if all((directory / name).is_file() for name in names):
      return names
  return ()


def _convert(
  directory: pathlib.Path,
) -> tuple[tokenizers.Tokenizer, Mapping[str, Any]]:
  """Builds a tokenizer by its class in transformers.

  Returns:
    The tokenizer, and the class's special tokens by name.

  Raises:
    InputError: it cannot be built, or loses text.
  """
  names = _vocabulary(directory)
  settings = directory / 'tokenizer_config.json'
  is_named = settings.is_file() and read_json_object(settings).get(
    'tokenizer_class'
  )
  if names == ('tokenizer.model',) and not is_named:
    # By the model's family, transformers would put no space before a text.
    raise errors.InputError(
      f'{directory}: {names[0]} can be read in several ways, and no '
      'tokenizer_class in tokenizer_config.json says which: copy that file of '
      'the model too, or save the tokenizer as tokenizer.json'
    )
  # Otherwise transformers warns that it found no PyTorch, which is not needed.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  # Only here, since importing it takes a second.
  import transformers

  files = ' and '.join(names)
  transformers.logging.set_verbosity_error()
  try:
    loaded = transformers.AutoTokenizer.from_pretrained(
      directory, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # Converters raise many types.
    line = ' '.join(str(error).split())
    raise errors.InputError(
      f'{directory}: no tokenizer can be built from {files} ({line}): save it '
      'as tokenizer.json, or install what reads these files (sentencepiece or '
      'tiktoken for tokenizer.model)'
    ) from None
  what = f'{type(loaded).__name__} of {files}'
  backend = getattr(loaded, 'backend_tokenizer', None)
  remedy = 'save it as tokenizer.json, from a tokenizer that works'
  if not isinstance(backend, tokenizers.Tokenizer):
    raise errors.InputError(
      f'{directory}: the tokenizer ({what}) does not run on the tokenizers '
      f'library: {remedy}'
    )
  backend.no_truncation()
  backend.no_padding()
  ids = backend.encode(PROBE, add_special_tokens=False).ids
  text = backend.decode(ids, skip_special_tokens=False)
  # Many tokenizers begin every text with a space.
  if text.removeprefix(' ') != PROBE:
    raise errors.InputError(
      f'{directory}: the tokenizer ({what}) loses text, {PROBE!r} comes back '
      f'as {text!r}: {remedy}'
    )
  return backend, loaded.special_tokens_map
