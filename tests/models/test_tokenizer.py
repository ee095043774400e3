"""Tokenizers of model directories, read as their files say."""

import json
import shutil

import chat_models
import formats
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors
import transformers

from edsft_jax import errors
from edsft_jax.models import tokenizer as tokenizer_lib

TEXTS = [
  'The quick brown fox: 1234 dogs, "12.5" % (and  two spaces).',
  ' leading space, trailing space ',
  "it's don't I'LL we're\n\n\tcode(x):\n    return x_1[0]\r\n",
  'caf\u00e9 cafe\u0301 na\u00efve \u00dc\u00df \u65e5\u672c\u8a9e \U0001f642',
  '2024-07-26 3.14159 00017',
  '',
  '\n',
]
QWEN_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def write(path, kind='byte_level', has_bos=False, **settings):
  model = chat_models.ChatModel(
    kind, '', ('<s>', '</s>'), '</s>', has_bos=has_bos
  )
  chat_models.write(model, path)
  file = path / 'tokenizer_config.json'
  fields = {**json.loads(file.read_text()), **settings}
  del fields['chat_template']
  file.write_text(json.dumps(fields))
  return path


def change(path, name, **fields):
  """Changes fields of a JSON file; None removes one."""
  file = path / name
  old = json.loads(file.read_text()) if file.exists() else {}
  new = {k: v for k, v in {**old, **fields}.items() if v is not None}
  file.write_text(json.dumps(new))


def with_parts(path, **parts):
  """Changes parts of tokenizer.json."""
  file = str(path / 'tokenizer.json')
  tokenizer = tokenizers.Tokenizer.from_file(file)
  for name, part in parts.items():
    setattr(tokenizer, name, part)
  tokenizer.save(file)


def raw_ids(path, text, **options):
  prompt_format = formats.load(path, template='raw', **options)
  return prompt_format.encode_prompt(text, 400, False)[0]


def json_ids(path, text):
  tokenizer = tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json'))
  return tokenizer.encode(text).ids


@pytest.mark.parametrize(
  'tokenizer_class',
  [
    'PreTrainedTokenizerFast',
    'GPT2TokenizerFast',
    'GPT2Tokenizer',
    'Qwen2Tokenizer',
    'Qwen2TokenizerFast',
    'LlamaTokenizer',
    'LlamaTokenizerFast',
    'TokenizersBackend',
    'NoSuchTokenizer',
    None,
  ],
)
@pytest.mark.parametrize('kind', ['byte_level', 'llama2', 'metaspace', 'gemma'])
def test_tokenizer_json_is_read_as_it_is(tmp_path, tokenizer_class, kind):
  """Whatever class is named."""
  path = write(tmp_path / 'm', kind, has_bos=True)
  change(path, 'tokenizer_config.json', tokenizer_class=tokenizer_class)
  for text in TEXTS:
    assert raw_ids(path, text) == json_ids(path, text)


@pytest.mark.parametrize(
  ('tokenizer_class', 'kind', 'parts'),
  [
    ('PreTrainedTokenizerFast', 'llama2', {}),
    ('LlamaTokenizerFast', 'metaspace', {}),
    ('GPT2TokenizerFast', 'byte_level', {}),
    (
      'Qwen2TokenizerFast',
      'byte_level',
      {
        'normalizer': normalizers.NFC(),
        'pre_tokenizer': pre_tokenizers.Sequence(
          [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
          ]
        ),
      },
    ),
  ],
)
@pytest.mark.parametrize('has_bos', [True, False])
def test_ids_and_bos_are_those_of_transformers_where_it_reads_the_file(
  tmp_path, tokenizer_class, kind, parts, has_bos
):
  """Tokenizers whose parts are those that the class would build."""
  path = write(tmp_path / 'm', kind, has_bos, tokenizer_class=tokenizer_class)
  with_parts(path, **parts)
  peer = transformers.AutoTokenizer.from_pretrained(path)
  if tokenizer_class != 'PreTrainedTokenizerFast':
    assert type(peer).__name__ == tokenizer_class.removesuffix('Fast')
  for text in TEXTS:
    assert raw_ids(path, text) == peer(text).input_ids
  assert (peer('a').input_ids[0] == peer.bos_token_id) == has_bos


def test_settings_of_truncation_and_padding_are_left_out(tmp_path):
  path = write(tmp_path / 'm')
  expected = json_ids(path, TEXTS[0])
  tokenizer = tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json'))
  tokenizer.enable_truncation(5)
  tokenizer.enable_padding(length=300)
  tokenizer.save(str(path / 'tokenizer.json'))
  assert raw_ids(path, TEXTS[0]) == expected


@pytest.mark.parametrize('has_bos', [True, False])
@pytest.mark.parametrize('add_bos', [True, False, None])
@pytest.mark.parametrize('add_eos', [True, False, None])
def test_bos_and_eos_of_the_config(tmp_path, has_bos, add_bos, add_eos):
  """BOS as told; an EOS after the prompt would end it before the answer."""
  path = write(tmp_path / 'm', has_bos=has_bos)
  change(
    path, 'tokenizer_config.json', add_bos_token=add_bos, add_eos_token=add_eos
  )
  text = json_ids(path, 'Hi')[has_bos:]
  expected = has_bos if add_bos is None else add_bos
  assert raw_ids(path, 'Hi') == [0] * expected + text
  response = formats.load(path).encode_response('Hi', 'Yes')
  assert response[-1] == 1
  assert response.count(1) == 1


def test_eos_of_the_post_processor_is_left_out(tmp_path):
  path = write(tmp_path / 'm')
  template = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)]
  )
  text = json_ids(path, 'Hi')
  with_parts(path, post_processor=template)
  assert raw_ids(path, 'Hi') == [0, *text]


def test_add_bos_without_a_bos_is_refused(tmp_path):
  path = write(tmp_path / 'm', add_bos_token=True, bos_token=None)
  with pytest.raises(errors.InputError, match='no bos_token is named'):
    formats.load(path)


def test_special_tokens_of_either_file(tmp_path):
  path = write(tmp_path / 'm')
  template = '{{ bos_token }}|{{ eos_token }}|{{ messages[0].content }}'
  change(path, 'tokenizer_config.json', bos_token=None, eos_token=None)
  change(path, 'config.json', bos_token_id=None, eos_token_id=None)
  change(
    path, 'special_tokens_map.json', bos_token='<s>',
    eos_token={'content': '</s>', 'lstrip': False}
  )  # fmt: skip
  prompt_format = formats.load(path, template=template)
  ids, _ = prompt_format.encode_prompt('Hi', 400, True)
  assert ids == json_ids(path, '<s>|</s>|Hi')
  assert prompt_format.end_ids == (1,)


def test_a_named_token_keeps_its_options(tmp_path):
  """Phi-3's </s> swallows the spaces after it."""
  path = tmp_path / 'm'
  chat_models.write(chat_models.CHAT_MODELS['phi3'], path)
  change(path, 'tokenizer_config.json', eos_token='</s>')
  ids = raw_ids(path, 'a</s>  b', control_tokens='special')
  assert ids == json_ids(path, 'a</s>  b')


def test_an_eos_that_the_tokenizer_lacks_is_refused(tmp_path):
  path = write(tmp_path / 'm', eos_token='<|end|>')
  with pytest.raises(errors.InputError, match=r"eos_token '<\|end\|>'"):
    formats.load(path)


@pytest.mark.parametrize('file', ['tokenizer_config.json', 'added_tokens.json'])
def test_added_tokens_of_the_config_files(tmp_path, file):
  path = write(tmp_path / 'm')
  size = json.loads((path / 'config.json').read_text())['vocab_size']
  change(path, 'config.json', vocab_size=size + 1)
  tokens = {'<|end|>': size}
  if file == 'tokenizer_config.json':
    fields = {'content': '<|end|>', 'special': True}
    tokens = {'added_tokens_decoder': {str(size): fields}}
  change(path, file, **tokens)
  ids = raw_ids(path, 'a<|end|>', control_tokens='special')
  assert ids == [*json_ids(path, 'a'), size]
  # With another id, it belongs to another tokenizer.
  text = (path / file).read_text().replace(str(size), str(size + 1))
  (path / file).write_text(text)
  with pytest.raises(errors.InputError, match=f'should have id {size + 1}'):
    formats.load(path)


def test_where_the_chat_template_comes_from(tmp_path):
  path = write(tmp_path / 'm')

  def shown():
    prompt_format = formats.load(path)
    return prompt_format.decode(prompt_format.encode_prompt('Hi', 9, True)[0])

  content = '{{ messages[0].content }}'
  assert shown() == 'Hi\n'
  change(path, 'chat_template.json', chat_template=f'1 {content}')
  assert shown() == '1 Hi'
  change(path, 'tokenizer_config.json', chat_template=f'2 {content}')
  assert shown() == '2 Hi'
  (path / 'chat_template.jinja').write_text(f'3 {content}\n')
  assert shown() == '3 Hi'


def as_vocab_and_merges(path):
  """Replaces tokenizer.json as transformers' older files."""
  model = json.loads((path / 'tokenizer.json').read_text())['model']
  (path / 'vocab.json').write_text(json.dumps(model['vocab']))
  lines = ['#version: 0.2', *(' '.join(pair) for pair in model['merges'])]
  (path / 'merges.txt').write_text('\n'.join(lines) + '\n')
  (path / 'tokenizer.json').unlink()


def test_vocab_and_merges_without_tokenizer_json(tmp_path):
  path = write(
    tmp_path / 'm', tokenizer_class='GPT2Tokenizer', unk_token='</s>'
  )
  shutil.copytree(path, tmp_path / 'other')
  as_vocab_and_merges(path)
  for text in TEXTS:
    assert raw_ids(path, text) == json_ids(tmp_path / 'other', text)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
  """By this class, spaces are not part of the vocabulary of bytes."""
  path = write(tmp_path / 'm', tokenizer_class='LlamaTokenizer')
  as_vocab_and_merges(path)
  with pytest.raises(
    errors.InputError, match=r'LlamaTokenizer of vocab\.json and merges\.txt'
  ) as caught:
    formats.load(path)
  assert '\n' not in str(caught.value)


def test_sentencepiece_needs_a_class(tmp_path):
  path = write(tmp_path / 'm')
  (path / 'tokenizer.json').rename(path / 'tokenizer.model')
  (path / 'tokenizer_config.json').unlink()
  with pytest.raises(errors.InputError, match=r'no tokenizer_class'):
    formats.load(path)


def test_the_probe_has_what_gets_lost():
  probe = tokenizer_lib.PROBE
  for part in ('  ', '\n\n', '\t', '\u00e9', '123', '(', '"'):
    assert part in probe


def test_missing_vocabulary(tmp_path):
  path = write(tmp_path / 'm')
  (path / 'tokenizer.json').unlink()
  (path / 'vocab.json').write_text('{}')
  with pytest.raises(
    errors.InputError, match=r'no tokenizer\.json, no vocab\.json with merges'
  ):
    formats.load(path)
