"""What a row says, with all parts of its prompt; and rows that are unusable."""

import json

import pytest

from edsft_jax.pool import columns, items, markers, values
from edsft_jax.tables import spreadsheet

USER = {'role': 'user', 'content': 'Hi?'}
BOT = {'role': 'assistant', 'content': 'Ho.'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}


def item(row, form=None, **named):
  found = columns.find('FILE', list(row), columns.Named(**named))
  return items.Reader(found, form).item(row)


def test_instruction_and_input_are_one_prompt():
  row = {'instruction': 'Add.', 'input': '1 2', 'output': '3'}
  assert item(row).prompt == 'Add.\n\n1 2'
  assert item(row | {'input': ' '}).prompt == 'Add.'
  assert item(row | {'input': None}).prompt == 'Add.'
  assert item(row, prompt='instruction').prompt == 'Add.\n\n1 2'
  assert item(row, context='none').prompt == 'Add.'
  assert item(row).response == '3'


@pytest.mark.parametrize(
  ('row', 'prompt'),
  [
    ({'question': 'Q?', 'context': 'C.'}, 'Q?\n\nC.'),
    ({'question': 'Q?', 'passage': 'P.', 'context': 'C.'}, 'Q?\n\nC.\n\nP.'),
    ({'prompt': 'P.', 'inputs': 'I.'}, 'P.\n\nI.'),
    ({'prompt': 'Read:  C c.\nQ?', 'context': 'C\nc.'}, 'Read:  C c.\nQ?'),
    ({'instruction': 'Do.', 'question': 'Q?'}, 'Do.\n\nQ?'),
    ({'prompt': 'Do. Q?', 'question': 'Q?'}, 'Do. Q?'),
    ({'question': 'Q?', 'choices': ['x', 'y']}, 'Q?\nA. x\nB. y'),
    ({'question': 'Q?', 'choices': {'a': 'x', 'b': 'y'}}, 'Q?\na. x\nb. y'),
    (
      {'question': 'Q?', 'choices': {'label': [1, 2], 'text': ['x', 'y']}},
      'Q?\n1. x\n2. y',
    ),
    (
      {'question': 'Q?', 'options': '[{"label": "A", "text": "x"}]'},
      'Q?\nA. x',
    ),
    ({'question': 'x or y? (a) x (b) y', 'choices': ['x', 'y']}, None),
    ({'question': '1 + 0?', 'choices': ['0', '1']}, '1 + 0?\nA. 0\nB. 1'),
  ],
)
def test_no_part_of_a_prompt_is_lost(row, prompt):
  assert item(row).prompt == (prompt or row['question'])


@pytest.mark.parametrize('name', ['system', 'system_prompt'])
def test_system_text_becomes_a_turn(name):
  assert item({name: 'Be brief.', 'prompt': 'Hi?'}).prompt == [SYSTEM, USER]
  assert item({name: '', 'prompt': 'Hi?'}).prompt == 'Hi?'
  assert item({name: 'Be brief.', 'messages': [USER, BOT]}).prompt == [
    SYSTEM,
    USER,
  ]
  same = {name: 'Be brief.', 'messages': [SYSTEM, USER, BOT]}
  assert item(same).prompt == [SYSTEM, USER]
  with pytest.raises(values.UnusableRow, match='system_column'):
    item(same | {name: 'Be long.'})


@pytest.mark.parametrize(
  'history', [[['Hi?', 'Ho.']], [USER, BOT], '[["Hi?", "Ho."]]']
)
def test_history_stands_before_the_prompt(history):
  row = {'system': 'Be brief.', 'history': history, 'instruction': 'And?'}
  assert item(row).prompt == [
    SYSTEM,
    USER,
    BOT,
    {'role': 'user', 'content': 'And?'},
  ]
  assert item(row | {'history': []}).prompt[0] == SYSTEM


@pytest.mark.parametrize('text_of', [None, json.dumps, repr])
@pytest.mark.parametrize('column', ['messages', 'conversation', 'prompt'])
def test_conversations(column, text_of):
  def read(*turns):
    value = list(turns) if text_of is None else text_of(list(turns))
    result = item({column: value})
    return result.prompt, result.response

  assert read(USER, BOT) == ([USER], 'Ho.')
  assert read(SYSTEM, USER) == ([SYSTEM, USER], '')
  assert read(USER, BOT, USER, BOT) == ([USER, BOT, USER], 'Ho.')
  named = USER | {'name': 'Ann'}
  assert read(named, BOT) == ([named], 'Ho.')


SHAREGPT = [
  ('human', 'user'),
  ('gpt', 'assistant'),
  ('model', 'assistant'),
  ('tool', 'tool'),
  ('environment', 'tool'),
  ('function', 'tool'),
  ('developer', 'developer'),
]


@pytest.mark.parametrize(('given', 'role'), SHAREGPT)
def test_sharegpt_roles(given, role):
  turns = [
    {'from': 'human', 'value': 'Hi?'},
    {'from': given, 'value': 'x'},
    {'from': 'human', 'value': 'And?'},
    {'from': 'gpt', 'value': 'Ho.'},
  ]
  result = item({'conversations': turns})
  assert [m['role'] for m in result.prompt] == ['user', role, 'user']
  assert result.prompt[1]['content'] == 'x'
  assert result.response == 'Ho.'


def test_text_parts_are_one_text():
  parts = [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]
  assert item({'messages': [USER | {'content': parts}]}).prompt == [
    {'role': 'user', 'content': 'a\nb'}
  ]


@pytest.mark.parametrize(
  'mark', [{'weight': 0}, {'weight': 0.0}, {'train': False}, {'loss': False}]
)
def test_an_answer_that_is_not_to_be_learnt_is_none(mark):
  assert item({'messages': [USER, BOT | mark]}).response == ''
  learnt = {name: 1 for name in mark}
  assert item({'messages': [USER, BOT | learnt]}).response == 'Ho.'


def test_fields_that_no_template_reads_are_named():
  turns = [USER | {'timestamp': '2020'}, BOT | {'id': 3, 'empty': None}]
  assert item({'messages': turns}).left_out == {'timestamp', 'id'}


def test_prompt_and_completion_as_turns():
  row = {'prompt': [SYSTEM, USER], 'completion': [BOT]}
  assert item(row).prompt == [SYSTEM, USER]
  assert item(row).response == 'Ho.'
  with pytest.raises(values.UnusableRow, match='3 turns'):
    item(row | {'completion': [BOT, USER, BOT]})


def test_prompt_next_to_messages():
  row = {'prompt': 'Hi?', 'messages': [SYSTEM, USER, BOT]}
  assert item(row).prompt == [SYSTEM, USER]
  assert item(row).response == 'Ho.'
  with pytest.raises(values.UnusableRow, match='prompt'):
    item(row | {'prompt': 'Another?'})
  with pytest.raises(values.UnusableRow, match='response'):
    item(row | {'response': 'Another.'})
  assert item(row | {'response': 'ho'}).response == 'ho'


def test_answers_of_several_schemas():
  row = {'prompt': 'p', 'response': None, 'completion': '', 'output': 'x'}
  assert item(row).response == 'x'
  assert item(row | {'response': 'y'}).response == 'y'


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (4, '4'),
    (0.5, '0.5'),
    (True, 'true'),
    (['a', 'b'], 'a'),
    ([], ''),
    ({'text': ['a', 'b'], 'answer_start': [1]}, 'a'),
    ({'content': 'a'}, 'a'),
    ([{'text': 'a'}], 'a'),
    (BOT, 'Ho.'),
    ('[{"role": "assistant", "content": "Ho."}]', 'Ho.'),
    ('[1, 2] is a list', '[1, 2] is a list'),
  ],
)
def test_responses_that_are_not_text(value, text):
  assert item({'prompt': 'p', 'response': value}).response == text


def test_the_same_prompt_has_the_same_key_and_hash():
  text = item({'prompt': 'Hi?'})
  turns = item({'messages': [USER]})
  assert text.key == turns.key
  assert text.id == turns.id
  assert text.key != item({'messages': [SYSTEM, USER]}).key
  assert text.key != item({'messages': [USER | {'name': 'Ann'}]}).key
  assert text.key != item({'prompt': 'Hi'}).key


@pytest.mark.parametrize(
  ('given', 'read'),
  [('x7', 'x7'), (7, '7'), (7.0, '7'), (' 7 ', '7'), ('007', '007')],
)
def test_ids(given, read):
  assert item({'prompt': 'p', 'id': given}).id == read


@pytest.mark.parametrize('missing', [None, '', float('nan')])
def test_missing_values(missing):
  row = {'prompt': 'p', 'id': missing, 'response': missing, 'task': missing}
  result = item(row)
  assert result.response == result.task == ''
  assert len(result.id) == 24


ALPACA = markers.FORMS[0]
UNUSABLE = {
  'invisible prompt': {'prompt': '\u200b \ufeff'},
  'missing': {'prompt': None},
  'empty': {'prompt': ' \n'},
  'number': {'prompt': 3},
  'object': {'prompt': {'a': 'b'}},
  'NUL': {'prompt': 'a\0b'},
  'surrogate': {'prompt': 'a\ud800b'},
  'NUL in response': {'prompt': 'p', 'response': 'SECRET\0'},
  'surrogate in task': {'prompt': 'p', 'task': '\udfff'},
  'object as response': {'prompt': 'p', 'response': {'SECRET': 1}},
  'another role answers': {'prompt': 'p', 'response': USER},
  'nested context': {'instruction': 'p', 'input': ['x']},
  'choices': {'question': 'p', 'choices': [['SECRET']]},
  'choices as text': {'question': 'p', 'choices': 'one or two'},
  'history': {'prompt': 'p', 'history': 'SECRET'},
  'context of a conversation': {'messages': [USER], 'context': 'more'},
  'tools': {'messages': [USER], 'tools': [{'name': 'f'}]},
  'nested task': {'prompt': 'p', 'task': ['x']},
  'id': {'prompt': 'p', 'id': [1]},
  'id with NUL': {'prompt': 'p', 'id': 'a\0'},
  'true id': {'prompt': 'p', 'id': True},
  'no turns': {'messages': []},
  'broken messages': {'messages': '[{"role": "SECRET'},
  'broken conversation in prompt': {'prompt': '[{"role": "user", SECRET'},
  'messages object': {'messages': '{"a": 1}'},
  'messages text': {'messages': 'SECRET'},
  'messages number': {'messages': 3},
  'turn is text': {'messages': ['hello']},
  'role': {'messages': [USER | {'role': 'poet'}]},
  'nested role': {'messages': [USER | {'role': ['user']}]},
  'no content': {'messages': [{'role': 'user'}]},
  'null content': {'messages': [USER | {'content': None}, BOT]},
  'picture': {'messages': [USER | {'content': [{'type': 'image_url'}]}]},
  'empty turn': {'messages': [USER | {'content': ' '}, BOT]},
  'no user': {'messages': [SYSTEM, BOT]},
  'two answers': {'messages': [USER, BOT, BOT]},
  'prefill': {'messages': [USER, BOT | {'prefix': True}]},
  'NUL in a turn': {'messages': [USER, BOT | {'content': 'SECRET\0'}]},
  'two texts': {'prompt': 'one', 'question': 'two'},
  'two conversations': {'messages': [USER], 'conversations': [USER]},
  'call': {'messages': [USER, BOT | {'tool_calls': [{'id': 'x'}]}]},
  'call alone': {
    'messages': [USER, BOT | {'content': None, 'function_call': {'name': 'f'}}]
  },
  'call role': {'conversations': [{'from': 'function_call', 'value': '{}'}]},
}


@pytest.mark.parametrize('name', UNUSABLE)
def test_unusable_rows(name):
  with pytest.raises(values.UnusableRow) as e:
    item(UNUSABLE[name])
  assert str(e.value)
  assert 'SECRET' not in str(e.value)


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('role', "'poet'"),
    ('call', 'tool_calls'),
    ('call alone', 'function_call'),
    ('call role', "'function_call'"),
    ('prefill', 'prefix'),
    ('picture', "'image_url'"),
    ('tools', 'tools'),
    ('nested task', 'task_column=none'),
  ],
)
def test_the_reason_names_the_field(name, said):
  with pytest.raises(values.UnusableRow, match=said):
    item(UNUSABLE[name])


@pytest.mark.parametrize(
  ('instruction', 'text'),
  [
    ('Add 10 to the number', '1'),
    ('Translate the word concatenate', 'cat'),
    ('Is it an animal?', 'an'),
    ('Reverse the words in the text', 'the text'),
  ],
)
def test_a_short_input_is_joined_even_if_its_letters_occur(instruction, text):
  row = {'instruction': instruction, 'input': text}
  assert item(row).prompt == f'{instruction}\n\n{text}'


@pytest.mark.parametrize(
  'prompt', ['Read: C c.\nQ?', 'C c.\nQ?', 'Read this.\n\nC c.\n\nQ?']
)
def test_an_input_that_is_a_line_of_the_prompt_is_there(prompt):
  assert item({'prompt': prompt, 'context': 'C c.'}).prompt == prompt


@pytest.mark.parametrize(
  'wrap',
  [
    lambda turns: turns,
    lambda turns: {'messages': turns},
    lambda turns: {'conversation': turns},
    lambda turns: {'id': 1, 'dialog': {'turns': turns}},
  ],
)
@pytest.mark.parametrize('column', ['prompt', 'messages'])
def test_a_conversation_as_json_whatever_holds_it(wrap, column):
  long = USER | {'content': 'Hi? ' * 100}
  turns = [dict(reversed(turn.items())) for turn in (long, BOT)]
  found = item({column: json.dumps(wrap(turns))})
  assert found.prompt == [{'role': 'user', 'content': long['content']}]
  assert found.response == 'Ho.'


def test_a_single_turn_as_json():
  assert item({'prompt': json.dumps(USER)}).prompt == [USER]


def test_data_as_json_is_text():
  text = '{"from": 1, "to": 2} is what? Name the number after it.'
  assert item({'prompt': text}).prompt == text


@pytest.mark.parametrize(
  'flag',
  [{'weight': '0'}, {'train': 'false'}, {'learn': False}, {'mask': True}],
)
def test_flags_of_learning_in_other_words(flag):
  assert item({'messages': [USER, BOT | flag]}).response == ''


@pytest.mark.parametrize('flag', [{'weight': 1}, {'train': 'yes'}, {'mask': 0}])
def test_an_answer_that_is_to_be_learnt(flag):
  assert item({'messages': [USER, BOT | flag]}).response == 'Ho.'


@pytest.mark.parametrize(
  ('names', 'labels'),
  [
    ('ABCD', 'ABCD'),
    (('option_a', 'option_b'), 'AB'),
    (('choice1', 'choice2'), '12'),
  ],
)
def test_choices_in_columns_are_joined(names, labels):
  row = {'question': 'Which?', **{n: f'c{n}' for n in names}, 'answer': 'A'}
  lines = [
    f'{label}. c{name}' for label, name in zip(labels, names, strict=True)
  ]
  assert item(row).prompt == '\n'.join(['Which?', *lines])
  assert item(row, context='none').prompt == 'Which?'
  told = {**row, 'question': 'Which? ' + ', '.join(f'c{n}' for n in names)}
  assert item(told).prompt == told['question']


def test_one_letter_is_no_choice():
  assert item({'question': 'Which?', 'B': 'x', 'C': 'y'}).prompt == 'Which?'
  assert item({'question': 'Which?', 'A': 'x'}).prompt == 'Which?'


def test_an_invisible_response_is_none():
  assert item({'prompt': 'p', 'response': '\u200b'}).response == ''


@pytest.mark.parametrize('name', ['image', 'video'])
def test_a_prompt_with_an_image_is_unusable(name):
  row = {name: 'a.jpg', 'prompt': 'What is it?', 'response': 'A cat.'}
  with pytest.raises(values.UnusableRow, match=f'has {name}, which is not'):
    item(row)


def test_lists_that_numpy_prints():
  row = {'question': 'Q?', 'choices': "['x' 'y'\n 'z']", 'answer': 'B'}
  assert item(row).prompt == 'Q?\nA. x\nB. y\nC. z'


@pytest.mark.parametrize(
  'answers', ["{'text': ['Bo'], 'answer_start': [0]}", "['Bo' 'Al']", 'Bo']
)
def test_answers_that_a_program_printed(answers):
  assert item({'question': 'Q?', 'answers': answers}).response == 'Bo'


def test_printed_answers_that_cannot_be_read_are_unusable():
  row = {'question': 'Q?', 'answers': "{'text': array(['Bo'], dtype=object)}"}
  with pytest.raises(values.UnusableRow, match='a printed object that cannot'):
    item(row)
  # An answer may begin with a bracket.
  assert item({'question': 'Q?', 'answer': '[1, 2]'}).response == '[1, 2]'


@pytest.mark.parametrize('name', ['id', 'response', 'task'])
def test_what_a_spreadsheet_converted_is_unusable(name):
  row = {'id': 'a', 'prompt': 'p', 'response': 'r', 'task': 't'}
  row[name] = spreadsheet.Converted('1', 'a number in the form 000')
  with pytest.raises(values.UnusableRow, match=f'the {name} is a number in'):
    item(row)
