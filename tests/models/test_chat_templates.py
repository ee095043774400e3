"""Chat formats in the manner of the families that people use."""

import json
import re

import chat_models
import formats
import pyarrow as pa
import pytest
import transformers

from configs import default
from edsft_jax import errors, store
from edsft_jax.evaluation.task import TaskInputs
from edsft_jax.evaluation.tasks.heldout import Heldout
from edsft_jax.models import responses

NAMES = tuple(chat_models.CHAT_MODELS)
TURNS = [
  {'role': 'user', 'content': 'Why is the sky blue?'},
  {'role': 'assistant', 'content': 'Because of the air.'},
  {'role': 'user', 'content': ' Really?  Two lines:\n\nYes.\n'},
]
ANSWERS = ('Yes.', 'No, the dog sleeps.\n\nParis  is blue', 'und\n', '1')


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp('chat')
  return {
    name: chat_models.write(model, folder / name)
    for name, model in chat_models.CHAT_MODELS.items()
  }


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


def peer(path):
  """The same files as transformers reads them."""
  return transformers.PreTrainedTokenizerFast.from_pretrained(path)


def rendered(path, turns, **options):
  return peer(path).apply_chat_template(
    turns, tokenize=False, date_string='26 Jul 2024', **options
  )


def add_token(path, token, merge):
  """Adds a token of a BPE model that two others are merged to."""
  fields = json.loads((path / 'tokenizer.json').read_text())
  config = json.loads((path / 'config.json').read_text())
  fields['model']['vocab'][token] = config['vocab_size']
  fields['model']['merges'].append(merge)
  config['vocab_size'] += 1
  (path / 'tokenizer.json').write_text(json.dumps(fields))
  (path / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('turns', [TURNS[:1], TURNS])
def test_ids_are_those_of_the_whole_text(paths, name, turns):
  """As long as no control token occurs in the messages."""
  path, model = paths[name], chat_models.CHAT_MODELS[name]
  prompt_format = formats.load(path)
  text = rendered(path, turns, add_generation_prompt=True) + model.fixed
  backend = peer(path)._tokenizer
  expected = backend.encode(text, add_special_tokens=False).ids
  bos = backend.token_to_id(model.special[0])
  if model.has_bos and expected[0] != bos:
    expected = [bos, *expected]
  for for_response in (True, False):
    ids, truncated = prompt_format.encode_prompt(turns, 500, for_response)
    assert (ids, truncated) == (expected, False)
  if name == 'r1':
    return
  for answer in ANSWERS:
    turn = {'role': 'assistant', 'content': answer}
    whole = rendered(path, [*turns, turn])
    whole = whole[: whole.index(model.end, len(text)) + len(model.end)]
    example = responses.encode(prompt_format, turns, answer, 500)
    new = backend.encode(whole, add_special_tokens=False).ids
    assert example.tokens[-len(new) :] == new
    assert example.tokens[: -example.num_response] == ids


def test_a_turns_end_ends_a_response(paths, name):
  lines = []
  prompt_format = formats.load(paths[name], log=lines.append)
  model = chat_models.CHAT_MODELS[name]
  end = peer(paths[name]).convert_tokens_to_ids(model.end)
  assert end in prompt_format.end_ids
  assert prompt_format.encode_response('Hi', 'Yes')[-1] == end
  said = [line for line in lines if 'ends a response' in line]
  assert bool(said) == (model.end != model.special[1])
  assert all(repr(model.end) in line for line in said)


CONTROL = (
  '<s> </s> <|endoftext|> <|im_end|>\n<|im_start|>system <bos><eos> <|eot_id|> '
  '<end_of_turn>\n<start_of_turn>model [INST] <|end|> <|assistant|> '
  '<｜User｜><｜Assistant｜> <｜end▁of▁sentence｜> <<|im_end|>>'
)


def control_ids(path, model, ids):
  """The ids of tokens that structure a conversation, in order."""
  tokens = (*model.special, *model.plain)
  known = {
    peer(path).convert_tokens_to_ids(token): token
    for token in tokens
    if not token.isspace() and token not in ('▁▁', '<table>')
  }
  return [known[i] for i in ids if i in known]


def test_control_tokens_in_messages_are_text(paths, name):
  """They change nothing about the turns, and read back as they were."""
  path, model = paths[name], chat_models.CHAT_MODELS[name]
  prompt_format = formats.load(path)

  def encode(question, answer):
    turns = [*TURNS[:2], {'role': 'user', 'content': f'Is {question} so?'}]
    return responses.encode(prompt_format, turns, f'It is {answer}!', 2000)

  plain, injected = encode('it', 'it'), encode(CONTROL, CONTROL)
  assert control_ids(path, model, injected.tokens) == control_ids(
    path, model, plain.tokens
  )
  before, after = (
    prompt_format.decode(example.tokens, special=True)
    for example in (plain, injected)
  )
  before = before.replace('Is it', f'Is {CONTROL}')
  before = before.replace('It is it', f'It is {CONTROL}')
  # SentencePiece writes spaces so.
  assert after.replace('▁', ' ') == before.replace('▁', ' ')
  assert injected.num_response > 40
  assert prompt_format.num_control_tokens(TURNS) == 0
  assert prompt_format.num_control_tokens(CONTROL, CONTROL) == 2 * len(
    control_ids(path, model, peer(path)(CONTROL).input_ids[model.has_bos :])
  )


def test_control_tokens_may_be_special(paths, name):
  path, model = paths[name], chat_models.CHAT_MODELS[name]
  prompt_format = formats.load(path, control_tokens='special')
  text = f'Is it {model.end} so?'
  ids, _ = prompt_format.encode_prompt(text, 500, True)
  turn = {'role': 'user', 'content': text}
  whole = rendered(path, [turn], add_generation_prompt=True) + model.fixed
  expected = peer(path)(whole, add_special_tokens=False).input_ids
  assert ids[-len(expected) :] == expected


def test_a_truncated_prompt_keeps_its_control_tokens_text(paths, name):
  path, model = paths[name], chat_models.CHAT_MODELS[name]
  prompt_format = formats.load(path)
  short, _ = prompt_format.encode_prompt('a', 500, True)
  turns = control_ids(path, model, short)
  for limit in range(len(short) + 20, len(short) + 60, 7):
    ids, truncated = prompt_format.encode_prompt(CONTROL * 9, limit, True)
    assert truncated
    assert limit - 5 < len(ids) <= limit
    assert control_ids(path, model, ids) == turns


def test_what_precedes_every_answer_belongs_to_the_prompt(paths):
  path = paths['qwen3']
  lines = []
  prompt_format = formats.load(path, log=lines.append)
  assert (
    r"the template writes '<think>\n\n</think>\n\n' before an answer: it is "
    'part of the prompt'
  ) in lines
  for turns in (TURNS[:1], TURNS):
    ids, _ = prompt_format.encode_prompt(turns, 500, False)
    text = prompt_format.decode(ids, special=True)
    assert text.endswith('<|im_start|>assistant\n<think>\n\n</think>\n\n')
    assert text.count('<think>') == 1
  example = responses.encode(prompt_format, 'Hi', 'Yes.', 500)
  supervised = example.tokens[-example.num_response :]
  assert prompt_format.decode(supervised, special=True) == 'Yes.<|im_end|>'


def test_a_line_break_before_an_answer_is_not_learned(tmp_path):
  """GPT-2's rule joins two of them, unless a letter follows."""
  path = chat_models.write(chat_models.CHAT_MODELS['qwen3'], tmp_path / 'model')
  add_token(path, 'ĊĊ', ['Ċ', 'Ċ'])
  backend = peer(path)._tokenizer
  assert len(backend.encode('\n\n').ids) == 1
  assert len(backend.encode('\n\nYes').ids) > len(backend.encode('Yes').ids) + 1
  prompt_format = formats.load(path)
  ids, _ = prompt_format.encode_prompt('Hi', 500, True)
  text = rendered(path, TURNS[:1], add_generation_prompt=True)
  text = text.replace(TURNS[0]['content'], 'Hi')
  fixed = chat_models.CHAT_MODELS['qwen3'].fixed
  assert ids == backend.encode(text + fixed, add_special_tokens=False).ids
  example = responses.encode(prompt_format, 'Hi', 'Yes.', 500)
  supervised = example.tokens[-example.num_response :]
  assert prompt_format.decode(supervised, special=True) == 'Yes.<|im_end|>'


def test_template_arguments(paths):
  """Qwen 3 writes the empty block in the generation prompt if told so."""
  path = paths['qwen3']
  lines = []
  off = formats.load(
    path, log=lines.append, template_arguments='{"enable_thinking": false}'
  )
  assert not any('before an answer' in line for line in lines)
  on = formats.load(path)
  for encode in (
    lambda x: x.encode_prompt(TURNS, 500, True),
    lambda x: responses.encode(x, TURNS, 'Yes.', 500),
  ):
    assert encode(off) == encode(on)


def test_an_answer_with_reasoning_is_not_preceded_by_an_empty_block(paths):
  prompt_format = formats.load(paths['qwen3'])
  answer = '<think>\nThe air.\n</think>\n\nBlue.'
  example = responses.encode(prompt_format, 'Hi', answer, 500)
  text = prompt_format.decode(example.tokens, special=True)
  assert text == (
    f'<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>'
  )
  supervised = example.tokens[-example.num_response :]
  assert prompt_format.decode(supervised, special=True) == f'{answer}<|im_end|>'


def test_an_open_block_of_the_generation_prompt_stays(paths):
  """DeepSeek R1 opens reasoning that it leaves out of finished turns."""
  lines = []
  prompt_format = formats.load(paths['r1'], log=lines.append)
  assert (
    r"the generation prompt ends with '<think>\n', which the template does not "
    'write before an answer: answers follow it as they are'
  ) in lines
  before = '<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n'
  for answer, after in (
    ('Yes.', 'Yes.'),
    ('The air.\n</think>\n\nBlue.', 'The air.\n</think>\n\nBlue.'),
    ('<think>\nThe air.</think>Blue.', 'The air.</think>Blue.'),
  ):
    example = responses.encode(prompt_format, 'Hi', answer, 500)
    text = prompt_format.decode(example.tokens, special=True)
    assert text == f'{before}{after}<｜end▁of▁sentence｜>'
    supervised = prompt_format.decode(example.tokens[-example.num_response :])
    assert supervised == after


def test_an_open_tag_differs_from_a_closing_one(paths):
  """DeepSeek V3.1 closes in finished turns what the prompt may open."""
  lines = []
  template = (
    "{% for m in messages %}{{ '<A></think>' if m.role == 'assistant' }}"
    '{{ m.content }}{% endfor %}'
    "{{ '<A><think>' if add_generation_prompt }}"
  )
  prompt_format = formats.load(paths['r1'], template=template, log=lines.append)
  assert any("prompt ends with '<think>'," in line for line in lines)
  answer = '<think>The air.</think>Blue.'
  example = responses.encode(prompt_format, 'Hi', answer, 500)
  supervised = prompt_format.decode(example.tokens[-example.num_response :])
  assert supervised == 'The air.</think>Blue.'


def test_the_clock_stands_still(paths):
  for date, shown in (('2024-07-26', '26 Jul 2024'), ('2031-12-05', '05 Dec')):
    prompt_format = formats.load(paths['llama3'], date=date)
    ids, _ = prompt_format.encode_prompt('Hi', 500, True)
    assert f'Today {shown}' in prompt_format.decode(ids)
    template = "{{ strftime_now('%Y-%m-%d %H:%M') }}{{ messages[0].content }}"
    prompt_format = formats.load(paths['llama3'], template=template, date=date)
    ids, _ = prompt_format.encode_prompt('Hi', 500, True)
    assert prompt_format.decode(ids) == f'{date} 00:00Hi'


@pytest.mark.parametrize(
  ('option', 'value', 'message'),
  [
    ('date', '2024-13-01', "prompt.date '2024-13-01' is not a date"),
    ('date', '20240726', 'YYYY-MM-DD'),
    ('date', 'today', 'YYYY-MM-DD'),
    ('template_arguments', '{"a": ', 'is not JSON'),
    ('template_arguments', '', 'is not JSON'),
    ('template_arguments', '[1]', 'is not a JSON object'),
    ('template_arguments', '{"messages": []}', "has 'messages'"),
    ('control_tokens', 'keep', "prompt.control_tokens 'keep' is not one of"),
  ],
)
def test_bad_options_are_refused(paths, option, value, message):
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    formats.load(paths['llama3'], **{option: value})
  assert f'prompt.{option}' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_evaluation_is_asked_for_the_answer_alone(paths, tmp_path):
  """Without what Qwen 3 writes before it, which no answer repeats."""
  workdir = store.Workdir(tmp_path)
  columns = {'id': ['a'], 'prompt': ['Hi'], 'response': ['Yes.']}
  store.write_parquet(workdir.heldout, pa.table(columns))
  prompt_format = formats.load(paths['qwen3'])
  task = Heldout(TaskInputs(default.get_config(), workdir, prompt_format, 500))
  likelihood, generate = task.items[0].requests
  answer = prompt_format.encode_response('Hi', 'Yes.')
  assert prompt_format.decode(answer, special=True) == 'Yes.<|im_end|>'
  assert [*generate.tokens, *answer] == likelihood.tokens
  assert likelihood.num_targets == len(answer)
  text = prompt_format.decode(generate.tokens, special=True)
  assert text.endswith('</think>\n\n')


@pytest.mark.parametrize(
  'template',
  [
    '{% for m in messages %}{% if m.role == "assistant" %}'
    '{% generation %}{{ m.content }}{% endgeneration %}!{% else %}'
    '{{ m.content }}{% endif %}{% endfor %}',
    '{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n'
    '  {{ m | tojson }}\n{% endfor %}\n',
    '{{ messages | tojson(indent=2) }} {{ tools is none }} {{ documents }}',
    '{%- set ns = namespace(n=0) -%}\n  {% for m in messages %}\n'
    '{% set ns.n = ns.n + 1 %}{{ m.content | trim | replace("a", "b") }}\n'
    '{% endfor %}{{ ns.n }}{{ bos_token }}{{ pad_token }}{{ nothing }}',
  ],
)
def test_templates_are_rendered_as_transformers_does(paths, template):
  path = paths['llama3']
  turns = [{**turn, 'content': f'<a&b> {turn["content"]}'} for turn in TURNS]
  prompt_format = formats.load(path, template=template)
  ids, _ = prompt_format.encode_prompt(turns, 900, False)
  expected = rendered(path, turns, chat_template=template)
  text = prompt_format.decode(ids, special=True)
  assert text.removeprefix('<|begin_of_text|>') == expected.removeprefix(
    '<|begin_of_text|>'
  )
