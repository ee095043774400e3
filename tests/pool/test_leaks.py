"""A column that is kept never contains a row's response; prompts neither."""

import pytest

from edsft_jax import errors
from edsft_jax.pool import columns, items, leaks


@pytest.mark.parametrize(
  ('text', 'response', 'expected'),
  [
    ('the answer is Blue.', 'blue', True),
    ('blueberry', 'blue', False),
    ('skyblue, blue!', 'Blue', True),
    ('a  new\nline', 'new line', True),
    ('37', '7', False),
    ('7/37', '7', True),
    ('say "(hi)" loud', '(hi)', True),
    ('x', '', False),
    ('x', '!', False),
    (
      'The result: is SECRET7, as shown',
      'the result is secret7 as shown.',
      True,
    ),
    ('no', 'yes', False),
    ('stra\u00dfe', 'STRASSE', True),
    ('caf\u00e9 noir', 'cafe\u0301', True),
    ('caf\u00e9s', 'caf\u00e9', False),
  ],
)
def test_contains(text, response, expected):
  assert leaks.Text(text).contains(leaks.Text(response)) == expected


def gather(rows):
  read = [
    items.Item(str(i), row['prompt'], '', row['response'], row['prompt'], i)
    for i, row in enumerate(rows)
  ]
  found = leaks.other_columns(rows, read, {'prompt', 'response'})
  return found.kept, found.dropped


def test_columns_that_are_kept():
  rows = [
    {'prompt': 'p', 'response': 'Paris', 'source': 'wiki', 'level': 3},
    {'prompt': 'q', 'response': '', 'source': None, 'hard': True},
    {'prompt': 'r', 'response': 'Rome', 'level': 0.5, '': 'x', 'none': None},
  ]
  kept, dropped = gather(rows)
  assert kept == {
    'source': ['wiki', None, None],
    'level': [3, None, 0.5],
    'hard': [None, True, None],
  }
  assert not dropped


LEAKS = {
  'by_name': ('Label', 'anything'),
  'whole': ('note', 'it is  PARIS, they say'),
  'excerpt': ('preview', 'the capital of france is'),
  'nested': ('meta', {'x': 1}),
  'json text': ('meta', '{"x": 1}'),
  'bytes': ('raw', b'Paris'),
  'taken': ('task', 'geo'),
  'surrogate': ('note', '\ud800'),
}


@pytest.mark.parametrize('case', LEAKS)
@pytest.mark.parametrize('place', [0, 2])
def test_columns_that_are_dropped(case, place):
  name, value = LEAKS[case]
  response = 'Paris' if case == 'whole' else 'Well, the capital of France is P'
  rows = [
    {'prompt': 'p', 'response': response, name: 'harmless', 'ok': 1}
    for _ in range(3)
  ]
  rows[place][name] = value
  kept, dropped = gather(rows)
  assert list(kept) == ['ok']
  assert len(kept['ok']) == 3
  assert list(dropped) == [name]


@pytest.mark.parametrize(
  'name',
  [
    'reply',
    'completion_text',
    'Output Text',
    'assistant',
    'model_answer',
    'modelAnswer',
    'ground_truth',
    'expected_output',
    'answer-2',
    'canonical_solution',
    'resp2',
    'text',
  ],
)
def test_names_that_speak_of_an_answer(name):
  kept, dropped = gather([{'prompt': 'p', 'response': '', name: 'anything'}])
  assert not kept
  assert list(dropped) == [name]


@pytest.mark.parametrize('name', ['source', 'category', 'context_id', 'level'])
def test_names_that_do_not(name):
  kept, _ = gather([{'prompt': 'p', 'response': '', name: 'anything'}])
  assert list(kept) == [name]


def test_the_core_of_an_answer_is_dropped_and_a_chance_word_is_not():
  rows = [
    {
      'prompt': f'count, by hand, to {i}',
      'response': f'The total of web pages is N{i}, as shown.',
      'core': f'N{i}',
      'source': 'web' if i == 0 else 'book',
      'how': 'by hand',
    }
    for i in range(4)
  ]
  kept, dropped = gather(rows)
  assert list(kept) == ['source', 'how']
  assert list(dropped) == ['core']


def check(*pairs):
  rows = [
    items.Item(str(i), prompt, '', response, str(i), i)
    for i, (prompt, response) in enumerate(pairs)
  ]
  leaks.refuse_answered_prompts('FILE', rows, columns.Columns(('prompt',)))


LONG = 'Cod is a fish of the sea.'


@pytest.mark.parametrize(
  ('prompt', 'response'),
  [
    (f'Q: a fish? A: {LONG}', LONG),
    (f'{LONG} What is a cod?', LONG),
    ('Q: a fish? A: Cod', 'cod.'),
    ([{'role': 'user', 'content': f'a fish? {LONG}'}], LONG),
  ],
)
def test_prompts_that_contain_their_responses(prompt, response):
  with pytest.raises(errors.InputError, match=r'1 of 1 .*prompt_column') as e:
    check((prompt, response))
  assert 'the sea' not in str(e.value)


def test_prompts_that_do_not():
  # A question about a text that contains its short answer.
  check(('Cod and eel are fish. Which is long?', 'Eel'))
  check((f'{LONG} What is a cod?', LONG), ('What is eel?', 'fish'))
  check(('Name a fish', ''))
  said = [
    {'role': 'user', 'content': 'a fish?'},
    {'role': 'assistant', 'content': LONG},
    {'role': 'user', 'content': 'Again?'},
  ]
  check((said, LONG))


@pytest.mark.parametrize('value', ['a 1234567 b', 'x-1234567', 1234567])
def test_the_longest_word_of_a_short_value_is_not_enough(value):
  """It decides what is compared, not the result."""
  text = leaks.Text('The code is 1234567 here, ' + 'and so on ' * 20)
  found = text.contains(leaks.Text(str(value)))
  assert found == (value == 1234567)
