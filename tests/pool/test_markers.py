"""Prompts written out with the marks of roles become conversations."""

import pytest

from edsft_jax.pool import conversations, markers

FORMS = {form.name: form for form in markers.FORMS}
USER = {'role': 'user', 'content': 'Name a fish.'}
SYSTEM = {'role': 'system', 'content': 'Below is a task.'}

WRITTEN = {
  'Alpaca': (
    'Below is a task.\n\n### Instruction:\nName a fish.\n\n### Response:\nCod'
  ),
  'Guanaco': 'Below is a task.### Human: Name a fish.### Assistant: Cod',
  'ChatML': (
    '<|im_start|>system\nBelow is a task.<|im_end|>\n'
    '<|im_start|>user\nName a fish.<|im_end|>\n'
    '<|im_start|>assistant\nCod<|im_end|>\n'
  ),
  'Llama 3': (
    '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n'
    'Below is a task.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n'
    'Name a fish.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
    'Cod<|eot_id|>'
  ),
  'Zephyr': (
    '<|system|>\nBelow is a task.</s>\n<|user|>\nName a fish.</s>\n'
    '<|assistant|>\nCod</s>'
  ),
  'Llama 2': (
    '<s>[INST] <<SYS>>\nBelow is a task.\n<</SYS>>\n\nName a fish. [/INST] '
    'Cod </s>'
  ),
  'dialogue': 'Below is a task.\n\nHuman: Name a fish.\n\nAssistant: Cod',
}


@pytest.mark.parametrize('name', WRITTEN)
def test_forms(name):
  text, form = WRITTEN[name], FORMS[name]
  assert markers.find_form([text]) == form
  turns = conversations.Turns(markers.parse(text, form))
  assert turns.split() == ([SYSTEM, USER], 'Cod')
  unanswered = text[: text.index('Cod')]
  turns = conversations.Turns(markers.parse(unanswered, form))
  assert turns.split() == ([SYSTEM, USER], '')


def test_an_alpaca_input_belongs_to_its_instruction():
  text = '### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3'
  turns = conversations.Turns(markers.parse(text, FORMS['Alpaca']))
  assert turns.split() == ([{'role': 'user', 'content': 'Add.\n\n1 2'}], '3')


def test_several_turns():
  text = 'Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d'
  messages, answer = conversations.Turns(
    markers.parse(text, FORMS['dialogue'])
  ).split()
  assert [m['content'] for m in messages] == ['a', 'b', 'c']
  assert answer == 'd'


@pytest.mark.parametrize(
  'text',
  [
    'Name a fish.',
    'Write about an Assistant: who is one?',
    '# Title\n\n### Response: what is one?',
    'Human: who is there?',
    'What does <|im_start|>assistant mean?',
  ],
)
def test_marks_of_one_role_make_no_form(text):
  assert markers.find_form([text]) is None


def test_a_form_needs_more_than_half_of_the_prompts():
  texts = [WRITTEN['Guanaco'], 'Name a fish.']
  assert markers.find_form(texts) is None
  assert markers.find_form([*texts, WRITTEN['Guanaco']]) == FORMS['Guanaco']


@pytest.mark.parametrize('name', WRITTEN)
def test_every_form_is_found_among_all(name):
  assert markers.is_in_any(WRITTEN[name])


def test_plain_text_has_no_form():
  assert not markers.is_in_any('Human: no.\n# A heading [1] <b> of Assistant')
