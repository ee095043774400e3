"""Which column is what, and which rows cannot be used."""

import json

import pytest

from edsft_jax import errors
from edsft_jax.pool import schema

USER = {'role': 'user', 'content': 'Hi?'}
BOT = {'role': 'assistant', 'content': 'Ho.'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}


def find(*names, **named):
  return schema.find_columns('FILE', names, schema.Named(**named))


def item(values, **named):
  columns = find(*values, **named)
  return schema.read_item(values, columns)


@pytest.mark.parametrize(
  ('names', 'prompt', 'context', 'response', 'task'),
  [
    (('prompt', 'response'), 'prompt', '', 'response', ''),
    (('Prompt', 'Completion'), 'Prompt', '', 'Completion', ''),
    (
      ('input', 'output', 'instruction', 'category'),
      'instruction',
      'input',
      'output',
      'category',
    ),
    (
      ('instruction', 'context', 'response'),
      'instruction',
      'context',
      'response',
      '',
    ),
    (
      ('category', 'question', 'answer', 'task'),
      'question',
      '',
      'answer',
      'task',
    ),
    (('messages', 'prompt'), 'messages', '', '', ''),
    (('messages', 'prompt', 'response'), 'prompt', '', 'response', ''),
    (('answer', 'response', 'prompt'), 'prompt', '', 'response', ''),
  ],
)
def test_usual_columns(names, prompt, context, response, task):
  columns = find(*names)
  assert columns.prompt == prompt
  assert columns.context == context
  assert columns.response == response
  assert columns.task == task
  assert columns.messages == (prompt == 'messages')
  assert not columns.task_named


def test_named_columns_win():
  columns = find(
    'prompt', 'p', 'r', 't', 'key', 'task', 'id', 'response',
    prompt='p', response='r', task='t', id='key',
  )  # fmt: skip
  assert columns == schema.Columns(
    prompt='p', response='r', task='t', task_named=True, id='key'
  )


@pytest.mark.parametrize('field', ['prompt', 'response', 'task', 'id'])
def test_a_named_column_that_is_not_there(field):
  with pytest.raises(errors.InputError, match='columns prompt, response') as e:
    find('prompt', 'response', **{field: 'nope'})
  assert f"pool.{field}_column='nope'" in str(e.value)


def test_columns_that_make_no_sense():
  with pytest.raises(
    errors.InputError, match=r'pool\.prompt_column to .* columns: a, b'
  ):
    find('a', 'b')
  with pytest.raises(errors.InputError, match='is also the column of'):
    find('prompt', 'x', response='x', task='x')
  assert find('text', 'x', prompt='text').response == ''
  for field in ('prompt', 'task'):
    with pytest.raises(
      errors.InputError, match='has the name of an answer column'
    ):
      find('prompt', 'Output', **{field: 'Output'})


def test_heldout_file_may_lack_named_columns():
  named = schema.Named(prompt='p', task='t')
  columns = schema.find_columns(
    'FILE', ['question', 'answer', 't'], named, optional=True
  )
  assert (columns.prompt, columns.task) == ('question', 't')


def test_instruction_and_input_are_one_prompt():
  values = {'instruction': 'Add.', 'input': '1 2', 'output': '3'}
  assert item(values).prompt == 'Add.\n\n1 2'
  assert item(values | {'input': ' '}).prompt == 'Add.'
  assert item(values | {'input': None}).prompt == 'Add.'
  assert item(values).response == '3'


@pytest.mark.parametrize('as_text', [False, True])
def test_messages(as_text):
  def read(*turns):
    value = json.dumps(turns) if as_text else list(turns)
    result = item({'messages': value})
    return result.prompt, result.response

  assert read(USER, BOT) == ([USER], 'Ho.')
  assert read(SYSTEM, USER) == ([SYSTEM, USER], '')
  assert read(USER, BOT, USER, BOT) == ([USER, BOT, USER], 'Ho.')
  assert read(USER | {'name': 'x'}, BOT) == ([USER], 'Ho.')


def test_conversations_in_the_prompt_column():
  result = item({'prompt': [SYSTEM, USER], 'completion': [BOT]})
  assert result.prompt == [SYSTEM, USER]
  assert result.response == 'Ho.'


def test_the_same_prompt_has_the_same_key_and_hash():
  text = item({'prompt': 'Hi?'})
  turns = item({'messages': [USER]})
  assert text.key == turns.key
  assert text.id == turns.id
  assert text.key != item({'messages': [SYSTEM, USER]}).key
  assert text.key != item({'prompt': 'Hi'}).key


@pytest.mark.parametrize(
  ('given', 'read'),
  [('x7', 'x7'), (7, '7'), (7.0, '7'), (' 7 ', '7'), ('007', '007')],
)
def test_ids(given, read):
  assert item({'prompt': 'p', 'id': given}).id == read


@pytest.mark.parametrize('missing', [None, '', float('nan')])
def test_missing_values(missing):
  values = {'prompt': 'p', 'id': missing, 'response': missing, 'task': missing}
  result = item(values)
  assert result.response == result.task == ''
  assert len(result.id) == 24


@pytest.mark.parametrize(
  ('value', 'text'),
  [(4, '4'), (0.5, '0.5'), (True, 'true'), (['a', 'b'], 'a'), ([], '')],
)
def test_responses_that_are_not_text(value, text):
  assert item({'prompt': 'p', 'response': value}).response == text


UNUSABLE = {
  'missing': {'prompt': None},
  'empty': {'prompt': ' \n'},
  'number': {'prompt': 3},
  'object': {'prompt': {'a': 'b'}},
  'NUL': {'prompt': 'a\0b'},
  'surrogate': {'prompt': 'a\ud800b'},
  'NUL in response': {'prompt': 'p', 'response': 'SECRET\0'},
  'surrogate in task': {'prompt': 'p', 'task': '\udfff'},
  'nested response': {'prompt': 'p', 'response': {'SECRET': 1}},
  'nested context': {'instruction': 'p', 'input': ['x']},
  'nested task': {'prompt': 'p', 'task': ['x']},
  'id': {'prompt': 'p', 'id': [1]},
  'id with NUL': {'prompt': 'p', 'id': 'a\0'},
  'true id': {'prompt': 'p', 'id': True},
  'no turns': {'messages': []},
  'broken messages': {'messages': '[{"role": "SECRET'},
  'messages object': {'messages': '{}'},
  'messages number': {'messages': 3},
  'turn is text': {'messages': ['hello']},
  'role': {'messages': [USER | {'role': 'poet'}]},
  'nested role': {'messages': [USER | {'role': ['user']}]},
  'no content': {'messages': [{'role': 'user'}]},
  'parts': {'messages': [USER | {'content': [{'text': 'SECRET'}]}]},
  'empty turn': {'messages': [USER | {'content': ' '}, BOT]},
  'no user': {'messages': [SYSTEM, BOT]},
  'two answers': {'messages': [USER, BOT, BOT]},
  'NUL in a turn': {'messages': [USER, BOT | {'content': 'SECRET\0'}]},
}


@pytest.mark.parametrize('name', UNUSABLE)
def test_unusable_rows(name):
  with pytest.raises(schema.UnusableRow) as e:
    item(UNUSABLE[name])
  assert str(e.value)
  assert 'SECRET' not in str(e.value)
