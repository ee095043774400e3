"""Prompts and responses as tokens, with small tokenizers made here."""

import json
import pathlib
import socket

import formats
import pytest
import tokenizers

from edsft_jax import errors, models
from edsft_jax.models import responses
from edsft_jax.models import tokenizer as tokenizer_lib

SPECIAL = ('<unk>', '<s>', '</s>', '<|start|>', '<|end|>')
# The end token of the template is none of the model's: the tokenizer names it.
CHAT = (
  '{% for message in messages %}<|start|>{{ message.role }}\n'
  '{{ message.content }}<|end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|start|>assistant\n{% endif %}'
)
NO_PAD = 'the tokenizer has no pad token: not needed, since padding is masked'
TEXT = 'The quick brown fox jumps over the lazy dog.'


def byte_tokenizer(adds: str = 'bos') -> tokenizers.Tokenizer:
  """A token for each byte; lengths are easy to reason about."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: n for n, token in enumerate([*SPECIAL, *alphabet])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL))
  single = {'': '$A', 'bos': '<s> $A', 'bos eos': '<s> $A </s>'}[adds]
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=single, special_tokens=[('<s>', 1), ('</s>', 2)]
  )
  return tokenizer


def write(
  path: pathlib.Path, adds: str = 'bos', vocab_size: int = 261, **settings
) -> pathlib.Path:
  """A model directory with all but weights."""
  path.mkdir(exist_ok=True)
  byte_tokenizer(adds).save(str(path / 'tokenizer.json'))
  config = {
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': vocab_size,
    'hidden_size': 8,
    'intermediate_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'max_position_embeddings': 64,
    'rms_norm_eps': 1e-5,
    'bos_token_id': 1,
    'eos_token_id': 2,
  }
  (path / 'config.json').write_text(json.dumps(config))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'clean_up_tokenization_spaces': False,
    **settings,
  }
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return path


def ids_of(text: str) -> list[int]:
  return byte_tokenizer('').encode(text).ids


def text_ids(text: str) -> list[int]:
  """Of a text whose control tokens are text, too."""
  tokenizer = byte_tokenizer('')
  return [tokenizer.token_to_id(character) for character in text]


def load(path, template='auto', **options):
  return formats.load(path, template=template, **options)


@pytest.fixture
def plain(tmp_path) -> pathlib.Path:
  return write(tmp_path / 'plain')


@pytest.fixture
def chat(tmp_path) -> pathlib.Path:
  return write(tmp_path / 'chat', chat_template=CHAT, eos_token='<|end|>')


def test_raw(plain):
  lines = []
  prompt_format = load(plain, log=lines.append)
  assert lines == [
    'the checkpoint has no chat template: using raw prompts',
    NO_PAD,
  ]
  ids, truncated = prompt_format.encode_prompt(TEXT, 100, False)
  assert (ids, truncated) == ([1, *ids_of(TEXT)], False)
  ids, _ = prompt_format.encode_prompt(TEXT, 100, True)
  assert ids == [1, *ids_of(TEXT + '\n')]
  assert prompt_format.decode(ids) == TEXT + '\n'
  response = prompt_format.encode_response(TEXT, 'Yes.')
  assert response == [*ids_of('Yes.'), 2]
  assert prompt_format.end_ids == (2,)


def test_raw_conversations_are_joined(plain):
  turns = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Why?'},
  ]
  ids, _ = load(plain).encode_prompt(turns, 100, True)
  assert ids == [1, *ids_of('Be brief.\nWhy?\n')]


def test_raw_wins_over_the_checkpoints_template(chat):
  lines = []
  prompt_format = load(chat, 'raw', log=lines.append)
  assert lines == [NO_PAD]
  assert prompt_format.encode_prompt('Hi', 9, False)[0] == [1, *ids_of('Hi')]


@pytest.mark.parametrize(
  ('adds', 'text', 'expected'),
  [
    ('bos', '<s>Hi', [1, *ids_of('Hi')]),
    ('bos', '<s><s>Hi', [1, *ids_of('Hi')]),
    ('bos', '', [1]),
    ('', 'Hi', ids_of('Hi')),
    # What ends the text would end the prompt before its answer.
    ('bos eos', 'Hi', [1, *ids_of('Hi')]),
  ],
)
def test_bos_occurs_once_if_the_tokenizer_adds_it(
  tmp_path, adds, text, expected
):
  path = write(tmp_path / 'model', adds)
  prompt_format = load(path, control_tokens='special')
  assert prompt_format.encode_prompt(text, 50, False)[0] == expected


def test_chat(chat):
  lines = []
  prompt_format = load(chat, log=lines.append)
  assert lines == [
    "using the checkpoint's chat template for prompts",
    NO_PAD,
  ]
  head, tail = '<|start|>user\n', '<|end|>\n<|start|>assistant\n'
  expected = [1, *ids_of(head + TEXT + tail)]
  for for_response in (False, True):
    result = prompt_format.encode_prompt(TEXT, 100, for_response)
    assert result == (expected, False)
  # The line break after the end token is not supervised.
  response = prompt_format.encode_response(TEXT, 'Yes.')
  assert response == ids_of('Yes.<|end|>')
  assert prompt_format.decode(response) == 'Yes.'
  assert prompt_format.end_ids == (2, 4)


def test_chat_conversations(chat):
  turns = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Why?'},
    {'role': 'assistant', 'content': 'Because.'},
    {'role': 'user', 'content': 'Really?'},
  ]
  whole = (
    '<|start|>system\nBe brief.<|end|>\n<|start|>user\nWhy?<|end|>\n'
    '<|start|>assistant\nBecause.<|end|>\n<|start|>user\nReally?<|end|>\n'
    '<|start|>assistant\n'
  )
  prompt_format = load(chat)
  assert prompt_format.encode_prompt(turns, 200, False)[0] == [
    1,
    *ids_of(whole),
  ]
  assert prompt_format.encode_response(turns, 'Yes') == ids_of('Yes<|end|>')


def test_bos_of_the_template_is_not_doubled(tmp_path):
  path = write(tmp_path / 'model', chat_template='{{ bos_token }}' + CHAT)
  ids, _ = load(path).encode_prompt('Hi', 100, False)
  assert ids[0] == 1
  assert ids.count(1) == 1
  # A tokenizer without BOS does not lose that of the template either.
  path = write(tmp_path / 'other', '', chat_template='{{ bos_token }}' + CHAT)
  assert load(path).encode_prompt('Hi', 100, False)[0] == ids


def test_given_jinja(plain):
  template = '{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}'
  prompt_format = load(plain, template)
  ids, _ = prompt_format.encode_prompt('Hi', 100, False)
  # It prints the answer as one more question, and no end token.
  assert ids == [1, *ids_of('Q: Hi\nA:Q: ')]
  response = prompt_format.encode_response('Hi', 'Yes')
  assert response == [*ids_of('Yes\nA:'), 2]


def test_template_whose_whole_does_not_begin_with_the_prompt(plain):
  template = (
    '{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}'
    '{% if add_generation_prompt %}A:{% endif %}'
  )
  prompt_format = load(plain, template)
  ids, _ = prompt_format.encode_prompt('Hi', 9, True)
  assert ids == [1, *ids_of('1HiA:')]
  response = prompt_format.encode_response('Hi', 'Yes')
  assert response == [*ids_of('Yes'), 2]


@pytest.mark.parametrize(
  'template',
  [
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    # Nothing but the end token.
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}"
    '{% else %}</s>{% endif %}{% endfor %}',
  ],
)
def test_template_that_prints_no_answer_is_refused(plain, template):
  prompt_format = load(plain, template)
  assert prompt_format.encode_prompt('Hi', 9, True)[0] == [1, *ids_of('Hi')]
  with pytest.raises(errors.InputError, match=r'prompt\.template .* nothing'):
    prompt_format.encode_response('Hi', 'Yes')
  # An empty answer is not the template's fault.
  assert prompt_format.encode_response('Hi', '') == [2]
  printing = load(plain, '{% for m in messages %}{{ m.content }}{% endfor %}')
  assert printing.encode_response('Hi', '</s>') == [*text_ids('</s>'), 2]


def test_special_tokens_are_shown_when_asked_for(plain):
  prompt_format = load(plain)
  assert prompt_format.decode([1, *ids_of('a'), 2]) == 'a'
  assert prompt_format.decode([1, *ids_of('a'), 2], special=True) == '<s>a</s>'


def test_dates_do_not_move(plain):
  template = (
    "{{ date_string if date_string is defined else strftime_now('%d') }}"
    '{{ messages[0].content }}'
  )
  ids, _ = load(plain, template).encode_prompt('Hi', 100, False)
  assert ids == [1, *ids_of('26 Jul 2024Hi')]


def test_an_end_within_a_response_does_not_cut_it(plain):
  prompt_format = load(plain)
  response = prompt_format.encode_response('Hi', 'a</s>b')
  assert response == [*text_ids('a</s>b'), 2]
  assert prompt_format.encode_response('Hi', '') == [2]
  prompt_format = load(plain, control_tokens='special')
  response = prompt_format.encode_response('Hi', 'a</s>b')
  assert response == [*ids_of('a</s>b'), 2]
  assert prompt_format.encode_response('Hi', 'a</s>') == [*ids_of('a'), 2]


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('chatml', "'chatml' is neither"),
    ('', 'neither'),
    ('{% for m in messages %}', 'does not render'),
    ('{{ messages[0].content | nofilter }}', 'does not render'),
    ('{{ messages[3].content.x }}', 'does not render'),
    ('{{ 1 + "a" }}', 'does not render'),
    ('Hello {{ messages[0].role }}', 'renders no prompt'),
    ("{{ raise_exception('no users here') }}", 'no users here'),
  ],
)
def test_bad_templates(plain, template, message):
  with pytest.raises(errors.InputError, match=message) as caught:
    load(plain, template)
  assert '\n' not in str(caught.value)
  assert 'prompt.template' in str(caught.value)


def test_template_that_refuses_a_role(plain):
  template = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{{ m.content }}"
    '{% endfor %}'
  )
  prompt_format = load(plain, template)
  turns = [{'role': 'system', 'content': 'x'}, {'role': 'user', 'content': 'y'}]
  with pytest.raises(errors.InputError, match='no system role'):
    prompt_format.encode_prompt(turns, 50, False)


@pytest.mark.parametrize(
  ('truncate', 'kept'),
  [
    ('end', TEXT[:10]),
    ('start', TEXT[-10:]),
    ('middle', TEXT[:5] + TEXT[-5:]),
  ],
)
def test_truncation_keeps_what_surrounds_the_text(plain, chat, truncate, kept):
  raw = load(plain, truncate=truncate)
  assert raw.encode_prompt(TEXT, 11, False) == ([1, *ids_of(kept)], True)
  ids, truncated = raw.encode_prompt(TEXT, 12, True)
  assert (ids, truncated) == ([1, *ids_of(kept + '\n')], True)

  head, tail = '<|start|>user\n', '<|end|>\n<|start|>assistant\n'
  limit = 1 + len(ids_of(head + tail)) + 10
  result = load(chat, truncate=truncate).encode_prompt(TEXT, limit, False)
  assert result == ([1, *ids_of(head + kept + tail)], True)
  # One token more than fits, and exactly what fits.
  whole = 1 + len(ids_of(head + TEXT + tail))
  prompt_format = load(chat, truncate=truncate)
  assert prompt_format.encode_prompt(TEXT, whole, False)[1] is False
  ids, truncated = prompt_format.encode_prompt(TEXT, whole - 1, False)
  assert truncated
  assert len(ids) == whole - 1


def test_truncation_never_splits_a_character(plain):
  for truncate in ('end', 'start', 'middle'):
    prompt_format = load(plain, truncate=truncate)
    for limit in range(9, 20):
      ids, _ = prompt_format.encode_prompt('äß€😀' * 3, limit, False)
      assert len(ids) <= limit
      assert len(ids) > limit - 8
      assert '\ufffd' not in prompt_format.decode(ids)


def test_truncation_of_a_conversation_spares_earlier_turns(chat):
  turns = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': TEXT},
  ]
  prompt_format = load(chat)
  ids, truncated = prompt_format.encode_prompt(turns, 60, False)
  assert truncated
  assert len(ids) == 60
  text = prompt_format.decode(ids)
  assert text.startswith('system\nBe brief.\nuser\nThe ')
  assert text.endswith('\nassistant\n')
  assert turns[1]['content'] == TEXT
  # No text of the last turn is left to give up: the tokens are cut.
  turns[0]['content'] = TEXT
  for truncate in ('end', 'start', 'middle'):
    ids, truncated = load(chat, truncate=truncate).encode_prompt(
      turns, 20, False
    )
    assert truncated
    assert len(ids) == 20
    assert ids[0] == 1


@pytest.mark.parametrize('limit', [1, 2])
def test_the_smallest_limits(chat, limit):
  ids, truncated = load(chat).encode_prompt(TEXT, limit, True)
  assert (len(ids), truncated) == (limit, True)


def test_no_room_is_an_error(plain):
  with pytest.raises(errors.InputError, match='no room'):
    load(plain).encode_prompt(TEXT, 0, False)


def test_odd_texts(plain):
  prompt_format = load(plain)
  ids, _ = prompt_format.encode_prompt('a\ud800b', 50, False)
  assert prompt_format.decode(ids) == 'a?b'
  ids, _ = prompt_format.encode_prompt('a\0b', 50, False)
  assert prompt_format.decode(ids) == 'a\0b'
  assert prompt_format.encode_response('a', '\udfff') == [*ids_of('?'), 2]


@pytest.mark.parametrize('truncate', ['end', 'start', 'middle'])
def test_megabytes_are_cut_like_short_text(plain, truncate):
  prompt_format = load(plain, truncate=truncate)
  text = ' '.join(map(str, range(100, 1_000)))
  huge = text + ' ' + 'filler ' * 1_000_000 + text
  ids, truncated = prompt_format.encode_prompt(huge, 51, False)
  assert truncated
  kept = {
    'end': text[:50],
    'start': text[-50:],
    'middle': text[:25] + text[-25:],
  }
  assert ids == [1, *ids_of(kept[truncate])]


@pytest.fixture
def tokenised(monkeypatch) -> list[int]:
  """Lengths of all texts that a tokenizer is given from here on."""
  lengths = []
  encoding = tokenizer_lib.Tokenizer.encoding

  def spy(self, text):
    lengths.append(len(text))
    return encoding(self, text)

  monkeypatch.setattr(tokenizer_lib.Tokenizer, 'encoding', spy)
  return lengths


@pytest.mark.parametrize('truncate', ['end', 'start', 'middle'])
def test_megabytes_in_an_earlier_turn_are_cut_like_short_text(
  chat, truncate, tokenised
):
  """They fill the limit alone: the tokens are cut, and the same ones stay."""
  prompt_format = load(chat, truncate=truncate)
  text = ' '.join(map(str, range(20_000)))
  turns = [('user', text), ('assistant', text), ('user', TEXT)]
  prompt = [{'role': role, 'content': content} for role, content in turns]
  ids, truncated = prompt_format.encode_prompt(prompt, 51, False)
  assert truncated
  assert max(tokenised) < 5_000
  rendered = [f'<|start|>{r}\n{c}<|end|>\n' for r, c in turns]
  whole = ids_of(''.join([*rendered, '<|start|>assistant\n']))
  kept = {
    'end': whole[:50],
    'start': whole[-50:],
    'middle': whole[:25] + whole[-25:],
  }
  assert ids == [1, *kept[truncate]]


def test_megabytes_of_response_are_cut_like_short_text(plain, tokenised):
  prompt_format = load(plain)
  text = ' '.join(map(str, range(20_000)))
  example = responses.encode(prompt_format, TEXT, text, 51)
  assert max(tokenised) < 5_000
  assert example.tokens == [1, *ids_of(text[:50])]
  assert example.num_response == 50
  assert example.response_cut


@pytest.mark.parametrize('truncate', ['end', 'start', 'middle'])
@pytest.mark.parametrize(
  'text',
  [TEXT * 200, 'a' * 9_001, 'ab ' * 3_000, '\n' * 9_001, '日本🙂' * 2_000],
)
def test_what_is_cut_unread_changes_no_token(truncate, text):
  """With a tokenizer that merges, whose tokens look beyond their own text."""
  path = models.resolve('demo')
  turns = [{'role': 'user', 'content': text}] * 2

  prompt_format = load(path, 'raw', truncate=truncate)

  def encode_all():
    return [
      *(prompt_format.encode_prompt(p, 9, True) for p in (text, turns)),
      responses.encode(prompt_format, 'Hi', text, 9),
    ]

  cut = encode_all()
  prompt_format.longest_token = 10**9
  assert cut == encode_all()


def test_boundary_is_that_of_the_whole_text(chat):
  """Prompt and response ids together are the ids of the conversation."""
  prompt_format = load(chat)
  prompt, _ = prompt_format.encode_prompt('Hi', 100, True)
  whole = '<|start|>user\nHi<|end|>\n<|start|>assistant\nYes.<|end|>'
  assert prompt + prompt_format.encode_response('Hi', 'Yes.') == [
    1,
    *ids_of(whole),
  ]


def test_tokenizer_json_alone(plain, monkeypatch):
  """BOS and EOS come from config.json then; nothing is looked for online."""

  def refuse(*args):
    raise AssertionError('network')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  (plain / 'tokenizer_config.json').unlink()
  prompt_format = load(plain, control_tokens='special')
  ids, _ = prompt_format.encode_prompt('<s>Hi', 50, False)
  assert ids == [1, *ids_of('Hi')]
  assert prompt_format.encode_response('Hi', 'Yes') == [*ids_of('Yes'), 2]
  assert prompt_format.decode([1, *ids_of('Hi'), 2]) == 'Hi'


def test_generation_config_names_more_ends(plain):
  (plain / 'generation_config.json').write_text('{"eos_token_id": [7, 4]}')
  assert load(plain).end_ids == (7, 4, 2)


def test_missing_tokenizer(plain):
  (plain / 'tokenizer.json').unlink()
  with pytest.raises(errors.InputError, match=r'no tokenizer\.json'):
    load(plain)


@pytest.mark.parametrize('text', ['', '{"version": "1.0"', '{}'])
def test_broken_tokenizer(plain, text):
  (plain / 'tokenizer.json').write_text(text)
  with pytest.raises(
    errors.InputError, match='tokenizer cannot be read'
  ) as caught:
    load(plain)
  assert '\n' not in str(caught.value)


def test_vocabulary_beyond_the_embedding(tmp_path):
  write(tmp_path / 'model', vocab_size=260)
  with pytest.raises(errors.InputError, match='id 260, the embedding only 260'):
    load(tmp_path / 'model')


def test_unknown_truncation(plain):
  with pytest.raises(errors.InputError, match=r"prompt\.truncate 'head'"):
    load(plain, truncate='head')


def test_a_tokenizer_without_a_named_class_is_read_as_it_is(goldens):
  """transformers alone would build an empty one for a Qwen model."""
  for case in ('qwen2_v4', 'qwen3_v5', 'mistral_v4', 'olmo2_v5'):
    prompt_format = load(goldens[case].path)
    assert prompt_format.encode_prompt('w7 w9 w3', 9, False)[0] == [7, 9, 3]
    assert prompt_format.encode_response('', 'w5') == [5, 2]


def test_of_several_chat_templates_the_default_is_taken(tmp_path, chat):
  named = [
    {'name': 'tool_use', 'template': 'tools'},
    {'name': 'default', 'template': CHAT},
  ]
  several = write(
    tmp_path / 'several', chat_template=named, eos_token='<|end|>'
  )
  assert load(several).encode_prompt(TEXT, 64, True) == load(
    chat
  ).encode_prompt(TEXT, 64, True)


def test_without_a_default_template_one_is_asked_for(tmp_path):
  named = [{'name': 'tool_use', 'template': CHAT}]
  path = write(tmp_path / 'several', chat_template=named)
  with pytest.raises(errors.InputError, match=r'tool_use.*prompt\.template'):
    load(path)
  load(path, 'raw')


@pytest.mark.parametrize(
  'template',
  [
    '{{ messages[0].content }}{{ 1 / 0 }}',
    '{{ messages[0].content }}{{ range(10 ** 9) }}',
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  ],
)
def test_a_template_that_fails_while_it_renders_is_refused(plain, template):
  with pytest.raises(
    errors.InputError, match=r'prompt\.template does not render'
  ):
    load(plain, template)
