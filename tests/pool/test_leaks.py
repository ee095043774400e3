"""A kept column never holds a row's response."""

import pytest

from edsft_jax.pool import leaks, schema


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
    (
      'The result: is SECRET7, as shown',
      'the result is secret7 as shown.',
      True,
    ),
    ('no', 'yes', False),
  ],
)
def test_holds(text, response, expected):
  text, response = leaks.normalize(text), leaks.normalize(response)
  assert leaks.contains(text, response) == expected


def gather(rows):
  columns = schema.Columns(prompt='prompt', response='response')
  kept = leaks.KeptColumns(columns)
  for row in rows:
    kept.inspect(row, row['prompt'], row['response'])
    kept.keep(row)
  return kept.finish(), kept.dropped


def test_columns_that_are_kept():
  rows = [
    {'prompt': 'p', 'response': 'Paris', 'source': 'wiki', 'level': 3},
    {'prompt': 'q', 'response': '', 'source': None, 'hard': True},
    {'prompt': 'r', 'response': 'Rome', 'level': 0.5},
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
