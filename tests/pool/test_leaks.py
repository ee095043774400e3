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
    ('no', 'yes', False),
  ],
)
def test_holds(text, response, expected):
  text, response = leaks.normalize(text), leaks.normalize(response)
  assert leaks.holds(text, response) == expected


def gather(rows):
  columns = schema.Columns(prompt='prompt', response='response')
  kept = leaks.KeptColumns(columns)
  for row in rows:
    kept.look(row, row['response'])
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
