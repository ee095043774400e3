"""Numbers that stand for something else in a pool's columns."""

import pytest

from edsft_jax.pool import build, built
from edsft_jax.tables import readers

CITIES = ['Rome', 'Paris', 'Oslo']


def read(*rows):
  found = [readers.Row(i, dict(row)) for i, row in enumerate(rows, 1)]
  return build.build('FILE', found, built.Rules())


def responses(*rows):
  return [item.response for item in read(*rows).pool]


def test_whole_numbers_of_a_column_with_gaps_are_integers():
  rows = [
    {'question': q, 'answer': n} for q, n in (('a?', 3.0), ('b?', 1969.0))
  ]
  gap = {'question': 'And?', 'answer': None}
  assert responses(*rows, gap) == ['3', '1969', '']
  assert responses(*rows, {**gap, 'answer': float('nan')})[:2] == ['3', '1969']
  assert read(*rows, gap).notes == [
    '2 whole numbers in answer are read as integers, without .0'
  ]
  # Without a gap, somebody wrote them as they are.
  assert responses(*rows) == ['3.0', '1969.0']
  half = {'question': 'Half?', 'answer': 0.5}
  assert responses(*rows, half, gap) == ['3.0', '1969.0', '0.5', '']


def test_choices_with_gaps_are_integers():
  rows = [
    {'question': '1 + 2?', 'A': 3, 'B': 4.0, 'answer': 'A'},
    {'question': '1 + 1?', 'A': 2, 'B': None, 'answer': 'A'},
  ]
  assert read(*rows).pool[0].prompt == '1 + 2?\nA. 3\nB. 4'


def test_indices_of_choices_are_letters():
  rows = [
    {'question': f'{i}?', 'choices': CITIES, 'answer': i % 3} for i in range(5)
  ]
  unanswered = {'question': 'And?', 'choices': CITIES, 'answer': None}
  assert responses(*rows, unanswered) == ['A', 'B', 'C', 'A', 'B', '']
  assert read(*rows).notes == [
    '5 answers that are indices of their choices are read as letters'
  ]


@pytest.mark.parametrize(
  'change',
  [
    {'answer': 3},  # Numbered from 1.
    {'answer': 'Rome'},
    {'choices': 'Rome or Oslo'},
    {'question': 'Which? 0) Rome 1) Paris 2) Oslo'},
  ],
)
def test_other_numbers_stay(change):
  rows = [
    {'question': 'a?', 'choices': CITIES, 'answer': 0},
    {'question': 'b?', 'choices': CITIES, 'answer': 1, **change},
  ]
  assert responses(*rows)[0] == '0'


def test_answers_that_are_choices_stay():
  rows = [
    {'question': f'{i}?', 'choices': [0, 1, 2], 'answer': i} for i in range(3)
  ]
  assert responses(*rows) == ['0', '1', '2']
