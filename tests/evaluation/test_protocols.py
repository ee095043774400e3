"""Prompts and extracted answers, byte for byte, against text written here."""

import json
import random

import pytest

from edsft_jax import errors
from edsft_jax.evaluation import extraction
from edsft_jax.evaluation.tasks import bbh, bbh_zero_shot, gsm8k, mmlu

QUESTION = {
  'id': 'q',
  'subject': 'high_school_biology',
  'question': ' What do cells\ncontain? ',
  'choices': ['DNA', 'sand', '3', 'none of "these"'],
  'answer': 'A',
}
SHOT = {
  'id': 's',
  'subject': 'high_school_biology',
  'question': 'Which is alive?\t',
  'choices': ['a stone', 'a cat', 'a car', 'ice'],
  'answer': 'B',
}


@pytest.mark.parametrize('protocol', ['original', 'open_instruct'])
def test_mmlu_of_the_paper_keeps_two_spaces_and_does_not_strip(protocol):
  parts = mmlu.prompt(protocol, QUESTION, [SHOT])
  assert parts.text(1) == (
    'The following are multiple choice questions (with answers) about  high '
    'school biology.\n\n'
    'Which is alive?\t\nA. a stone\nB. a cat\nC. a car\nD. ice\nAnswer: B\n\n'
    ' What do cells\ncontain? \nA. DNA\nB. sand\nC. 3\nD. none of "these"\n'
    'Answer:'
  )


def test_mmlu_of_the_harness_has_one_space_and_strips():
  assert mmlu.prompt('lm_eval', QUESTION, [SHOT]).text(1) == (
    'The following are multiple choice questions (with answers) about high '
    'school biology.\n\n'
    'Which is alive?\nA. a stone\nB. a cat\nC. a car\nD. ice\nAnswer: B\n\n'
    'What do cells\ncontain?\nA. DNA\nB. sand\nC. 3\nD. none of "these"\n'
    'Answer:'
  )


def test_without_shots_only_the_header_precedes_the_question():
  assert mmlu.prompt('lm_eval', QUESTION, []).text(0) == (
    'The following are multiple choice questions (with answers) about high '
    'school biology.\n\n'
    'What do cells\ncontain?\nA. DNA\nB. sand\nC. 3\nD. none of "these"\n'
    'Answer:'
  )


FILE = """A canary that may not reach a model.
-----
Say what is true.

Q: Is ice cold?
Options:
- Yes
- No
A: Let's think step by step.
Ice is frozen.

Frozen is cold. So the answer is Yes.

Q: not True is
A: Let's think step by step.
That is False. So the answer is False.

Q: Which one?
A: Let's think step by step.
The first one. So the answer is (A)."""


def test_bbh_of_open_instruct_is_the_file_and_the_question():
  worked = bbh.parse(FILE, 'here')
  parts = bbh.prompt('open_instruct', True, 'Is fire hot?', worked, 3)
  body = '\n'.join(FILE.split('\n')[2:]).strip()
  assert parts.text(3) == f'{body}\n\nQ: Is fire hot?\nA:'
  in_chat = bbh.prompt('open_instruct', True, 'Is fire hot?', worked, 3, True)
  assert in_chat.text(3) == f'{body}\n\nQ: Is fire hot?'


def test_bbh_of_open_instruct_without_reasoning_keeps_the_answers():
  worked = bbh.parse(FILE, 'here')
  parts = bbh.prompt('open_instruct', False, 'Is fire hot?', worked, 3)
  assert parts.text(3) == (
    'Say what is true.\n\n'
    'Q: Is ice cold?\nOptions:\n- Yes\n- No\nA: Yes.\n\n'
    'Q: not True is\nA: False.\n\n'
    'Q: Which one?\nA: (A).\n\n'
    'Q: Is fire hot?\nA:'
  )


def test_bbh_of_the_harness():
  worked = bbh.parse(FILE, 'here')
  assert bbh.prompt('lm_eval', True, 'Hot?', worked, 2).text(2) == (
    'Say what is true.\n\n'
    "Q: Is ice cold?\nOptions:\n- Yes\n- No\nA: Let's think step by step.\n"
    'Ice is frozen.\n\nFrozen is cold. So the answer is Yes.\n\n'
    "Q: not True is\nA: Let's think step by step.\n"
    'That is False. So the answer is False.\n\n'
    "Q: Hot?\nA: Let's think step by step.\n"
  )
  assert bbh.prompt('lm_eval', False, 'Hot?', worked, 1).text(1) == (
    'Say what is true.\n\n'
    'Q: Is ice cold?\nOptions:\n- Yes\n- No\nA: Yes\n\n'
    'Q: Hot?\nA:'
  )
  zero_shot = bbh.prompt('lm_eval', False, 'Hot?', worked, 0)
  assert zero_shot.text(0) == 'Say what is true.\n\nQ: Hot?\nA:'


def test_the_canary_never_reaches_a_model():
  worked = bbh.parse(FILE, 'here')
  for protocol in bbh.PROTOCOLS:
    text = bbh.prompt(protocol, True, 'Hot?', worked, 3).text(3)
    assert 'canary' not in text
    assert '--' not in text


@pytest.mark.parametrize('protocol', bbh.PROTOCOLS)
def test_every_worked_example_of_bbh_is_extracted(shared, protocol):
  """81 of 81; the text of the files is cut here, by its own marks."""
  texts = json.loads((shared / 'data' / 'bbh_cot_prompts.json').read_text())
  extractor = bbh.variant(protocol, True, 3, False).extractor
  found = total = 0
  for text in texts.values():
    for example in text.split('\n\nQ: ')[1:]:
      reasoning = example.split("\nA: Let's think step by step.")[1]
      target = reasoning.strip().split('So the answer is ')[-1][:-1]
      answer = bbh.extract(extractor, reasoning.strip())
      total += 1
      found += bbh.is_correct(protocol, False, answer, target)
  assert (found, total) == (81, 81)


def test_the_whole_prompt_file_is_kept(shared):
  texts = json.loads((shared / 'data' / 'bbh_cot_prompts.json').read_text())
  assert len(texts) == 27
  for task, text in texts.items():
    worked = bbh.parse(text, task)
    assert len(worked.shots) == 3
    parts = bbh.prompt('open_instruct', True, 'X', worked, 3)
    body = '\n'.join(text.split('\n')[2:]).strip()
    assert parts.text(3) == f'{body}\n\nQ: X\nA:', task


@pytest.mark.parametrize(
  ('extractor', 'text', 'answer'),
  [
    ('open_instruct', 'So the answer is (B). The answer is (C).', '(B)'),
    ('open_instruct', 'The answer is 3.5.', '3'),
    ('open_instruct', ' no such words ', 'no such words'),
    # The line loses its last character, whatever it is.
    ('lm_eval', 'the answer is (B)', '(B'),
    ('lm_eval', 'So the answer is (B). Or so.\nthe answer is C.', '(B). Or so'),
    ('lm_eval', 'The answer is (B).', '[invalid]'),
    ('none', ' (B)', ' (B)'),
  ],
)
def test_bbh_answers(extractor, text, answer):
  assert bbh.extract(extractor, text) == answer


def test_bbh_compares_by_the_rules_of_the_protocol():
  assert bbh.is_correct('open_instruct', False, 'valid.', 'Valid')
  assert not bbh.is_correct('lm_eval', False, 'valid', 'Valid')
  assert bbh.is_correct('lm_eval', True, 'valid.', 'Valid')
  assert not bbh.is_correct('lm_eval', True, 'valid!', 'Valid')


def test_gsm8k_prompt():
  parts = gsm8k.prompt(
    {'question': 'How many?'}, [{'question': '1+1?', 'answer': 'So\n#### 2'}]
  )
  assert parts.text(1) == (
    'Question: 1+1?\nAnswer: So\n#### 2\n\nQuestion: How many?\nAnswer:'
  )


def test_gsm8k_draws_other_examples_for_each_question(tmp_path):
  path = tmp_path / 'train.jsonl'
  rows = [{'question': f'{i}?', 'answer': f'#### {i}'} for i in range(20)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  others = [{'id': f'q{i}', 'question': f'{i} more?'} for i in range(3)]
  drawn = gsm8k.draw(5, str(path), others)
  generator = random.Random(1234)
  expected = [generator.sample(range(20), 5) for _ in range(3)]
  got = [[int(shot['id']) for shot in shots] for shots in drawn]
  assert got == expected


def test_no_gsm8k_question_is_its_own_example(tmp_path):
  path = tmp_path / 'test.jsonl'
  rows = [{'question': f'{i}?', 'answer': f'#### {i}'} for i in range(6)]
  path.write_text('\n'.join(map(json.dumps, rows)))
  questions = gsm8k.read(str(path), 'path')
  drawn = gsm8k.draw(5, str(path), questions)
  for question, shots in zip(questions, drawn, strict=True):
    assert len({shot['id'] for shot in shots}) == 5
    assert question['id'] not in {shot['id'] for shot in shots}
  with pytest.raises(
    errors.InputError, match="besides the question '0' itself"
  ):
    gsm8k.draw(6, str(path), questions)


@pytest.mark.parametrize(
  ('text', 'strict', 'flexible'),
  [
    ('It is $1,234.50.\n#### 1,234', '1,234', '1,234'),
    ('So he has 5 and 7.', '[invalid]', '7.'),
    ('#### -3 apples, then 12', '-3', '12'),
    ('none', '[invalid]', '[invalid]'),
  ],
)
def test_gsm8k_answers(text, strict, flexible):
  find = extraction.last_or_first
  assert find(gsm8k._STRICT, text, 0) == strict
  assert find(gsm8k._FLEXIBLE, text, -1) == flexible


def test_gsm8k_ignores_how_a_number_is_written():
  reference = 'He pays 5 * 2 = 10.\n#### 1,000'
  assert gsm8k.is_correct('$1000.', reference)
  assert gsm8k.is_correct('1,000', reference)
  assert not gsm8k.is_correct('1000.5', reference)
  assert not gsm8k.is_correct('10', reference)


def _mmlu_file(tmp_path, **changes):
  row = {**QUESTION, **changes}
  row = {name: value for name, value in row.items() if value != 'absent'}
  path = tmp_path / 'mmlu.jsonl'
  path.write_text(json.dumps(row))
  return str(path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'answer': None}, 'line 1 has no answer: fill it in'),
    ({'answer': 'absent', 'answr': 'A'}, "did you mean 'answr'"),
    (
      {'choices': 'absent', 'a': 'x', 'b': 'y'},
      "no field 'choices'. It has id, subject, question, answer, a, b",
    ),
    ({'answer': 'E'}, "has the answer 'E': give A, B, C or D"),
    ({'answer': 4}, 'has the answer 4: give A, B, C or D, or 0 to 3'),
    ({'answer': ''}, "has the answer '': give A, B, C or D"),
    ({'answer': True}, 'has the answer True: give A, B, C or D'),
    ({'choices': ['a', 'b', 'c', 'd', 'e']}, 'has 5 options: MMLU has four'),
    # Four characters are not four options.
    ({'choices': 'abcd'}, "has choices 'abcd': give a list of four"),
    ({'choices': ['a', None, 'c', 'd']}, 'has no option B: write it'),
    ({'choices': ['a', 'b', float('nan'), 'd']}, 'has no option C: write it'),
    ({'question': 12}, 'has no text as question: fill it in'),
    ({'question': ' '}, 'has no text as question: fill it in'),
  ],
)
def test_a_question_that_is_not_complete_is_named(tmp_path, changes, message):
  with pytest.raises(errors.InputError, match=message):
    mmlu.read(_mmlu_file(tmp_path, **changes), 'evaluation.mmlu.path')


@pytest.mark.parametrize('answer', [1, '1', 'B', ' B '])
def test_answers_are_letters_or_indices(tmp_path, answer):
  (row,) = mmlu.read(_mmlu_file(tmp_path, answer=answer), 'path')
  assert row['answer'] == 'B'


def test_the_original_csv_files_are_read(tmp_path):
  file = tmp_path / 'high_school_biology_test.csv'
  file.write_text('"What, now?",1,2,3,4,D\nAnd then?,a,b,c,"d, e",A\n')
  first, second = mmlu.read(str(tmp_path), 'path')
  assert first == {
    'id': 'high_school_biology/0',
    'subject': 'high_school_biology',
    'question': 'What, now?',
    'choices': ['1', '2', '3', '4'],
    'answer': 'D',
  }
  assert second['choices'][3] == 'd, e'
  (tmp_path / '._high_school_biology_test.csv').write_bytes(b'\xb0')
  file.write_bytes('\ufeffWho?,1,2,3,4,D\r\n'.encode())
  assert [row['question'] for row in mmlu.read(str(tmp_path), 'path')] == [
    'Who?'
  ]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('anatomy_dev.csv', 'has the splits dev and test: name a folder with one'),
    ('high_school_biology.csv', 'not named after a subject and a split'),
  ],
)
def test_other_files_in_the_folder_are_refused(tmp_path, name, message):
  for each in ('anatomy_test.csv', name):
    (tmp_path / each).write_text('What?,1,2,3,4,D\n')
  with pytest.raises(errors.InputError, match=message):
    mmlu.read(str(tmp_path), 'path')


def test_a_file_that_is_not_utf8_is_named(tmp_path):
  (tmp_path / 'anatomy_test.csv').write_bytes('Für?,1,2,3,4,D'.encode('latin1'))
  with pytest.raises(errors.InputError, match='is not text'):
    mmlu.read(str(tmp_path), 'path')


def test_the_original_folder_of_bbh_is_read(tmp_path):
  examples = [{'input': 'Where?', 'target': 'Yes'}]
  (tmp_path / 'navigate.json').write_text(
    json.dumps({'canary': 'Do not train.', 'examples': examples})
  )
  assert bbh.read(str(tmp_path), 'path') == [
    {'task': 'navigate', **examples[0], 'id': 'navigate/0'}
  ]


@pytest.mark.parametrize(
  ('answer', 'message'),
  [
    ('12', '\'0\' has no "#### NUMBER"'),
    ('It is twelve.\n#### twelve', '\'0\' has no "#### NUMBER"'),
    ('It is twelve.\n#### 12 apples', '\'0\' has no "#### NUMBER"'),
    (12, 'line 1 has no text as answer'),
  ],
)
def test_a_solution_without_a_number_is_refused(tmp_path, answer, message):
  path = tmp_path / 'gsm8k.jsonl'
  path.write_text(json.dumps({'question': 'x', 'answer': answer}))
  with pytest.raises(errors.InputError, match=message):
    gsm8k.read(str(path), 'path')


def test_space_after_a_solution_does_not_make_answers_wrong(tmp_path):
  path = tmp_path / 'gsm8k.jsonl'
  path.write_text(json.dumps({'question': 'x', 'answer': 'So: #### 12 \n'}))
  (row,) = gsm8k.read(str(path), 'path')
  assert gsm8k.is_correct('12', row['answer'])


def test_worked_examples_that_are_no_text_are_refused(tmp_path):
  path = tmp_path / 'shots.json'
  path.write_text(json.dumps({'navigate': ['a', 'b']}))
  with pytest.raises(errors.InputError, match='navigate must be text'):
    bbh.read_worked(str(path))


OPTIONS = 'Which?\nOptions:\n(A) the red book\n(B) the red\n(C) Nothing, yet'


@pytest.mark.parametrize(
  ('task', 'question', 'text', 'answer'),
  [
    ('boolean_expressions', '', 'Untrue. It is True, not False', 'True'),
    ('navigate', '', 'Well, no; Yes', 'no'),
    ('formal_fallacies', '', 'it is invalid', 'invalid'),
    ('dyck_languages', '', 'Close: ] } >', '] } >'),
    ('dyck_languages', '', 'nothing', '[invalid]'),
    ('sports_understanding', '', 'That is not plausible', 'no'),
    ('sports_understanding', '', 'Plausible.', 'yes'),
    ('web_of_lies', '', 'Fidel tells the truth', 'yes'),
    ('web_of_lies', '', 'He knows', '[invalid]'),
    ('object_counting', '', 'I count 12 of 13', '12'),
    ('object_counting', '', 'I count for you: Twenty one things', '21'),
    ('object_counting', '', 'two hundred and five', '205'),
    ('object_counting', '', 'three thousand, four hundred', '3400'),
    ('object_counting', '', 'many', '[invalid]'),
    ('word_sorting', 'Sort. List: b a c', 'b, a: a b c', 'a b c'),
    ('word_sorting', 'Sort.', 'a b', '[invalid]'),
    ('snarks', OPTIONS, 'the red book or (B)', '(B)'),
    ('snarks', OPTIONS, 'The Red Book!', '(A)'),
    ('snarks', OPTIONS, 'It is nothing yet.', '(C)'),
    ('snarks', OPTIONS, 'Answer: C', '(C)'),
    ('snarks', OPTIONS, 'Answer: D', '[invalid]'),
    ('snarks', 'Which?', 'a: b', '[invalid]'),
  ],
)
def test_rules_of_the_tasks_find_answers(task, question, text, answer):
  assert bbh_zero_shot.find_answer(task, question, text) == answer


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    # An empty answer would be right wherever a model says nothing.
    ({'target': ''}, "'navigate/0' has no text as target"),
    ({'target': ['a', 'b']}, r"the target \['a', 'b'\]: give it as text"),
    ({'target': 3.0}, 'the target 3.0: give it as text'),
    ({'input': ['a']}, 'line 1 has no text as input'),
  ],
)
def test_a_bbh_question_without_text_is_refused(tmp_path, changes, message):
  row = {'task': 'navigate', 'input': 'Where?', 'target': 'Yes', **changes}
  path = tmp_path / 'bbh.jsonl'
  path.write_text(json.dumps(row))
  with pytest.raises(errors.InputError, match=message):
    bbh.read(str(path), 'path')


def test_a_prompt_file_with_another_form_is_refused():
  with pytest.raises(errors.InputError, match='here has no line of dashes'):
    bbh.parse('Say what is true.\n\nQ: x\nA: y', 'here')
  spoilt = FILE.replace('So the answer is False.', 'It is False.')
  with pytest.raises(errors.InputError, match='no reasoned answer'):
    bbh.parse(spoilt, 'here')
