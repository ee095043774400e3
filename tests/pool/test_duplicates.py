"""Which prompts are the same, and which are nearly so."""

import pytest

from edsft_jax.pool import duplicates

USER = {'role': 'user', 'content': 'Name a nut.'}


@pytest.mark.parametrize(
  'other',
  [
    ' Name a nut.\n',
    'Name a nut.\r\n',
    'Name\u200b a nut.',
    '\ufeffName a nut.',
    'Na\u00adme a nut.',
    [USER],
    [USER | {'content': 'Name a nut. '}],
  ],
)
def test_the_same(other):
  assert duplicates.merge_key(other) == duplicates.merge_key('Name a nut.')


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('caf\u00e9', 'cafe\u0301'),
    ('a\nb', 'a\r\nb'),
    ('a\nb', 'a\rb'),
    ('\u00e9\nb', '\u00e9\r\nb'),
  ],
)
def test_the_same_in_other_bytes(one, other):
  assert duplicates.merge_key(one) == duplicates.merge_key(other)


NEAR = [
  ('Name a nut.', 'name a nut'),
  ('Name a nut.', 'Name  a nut.'),
  ('if x:\n  y', 'if x:\ny'),
  ('10\u00b2', '102'),
  ('stra\u00dfe', 'STRASSE'),
  ('\uff21 b', 'a b'),
]


@pytest.mark.parametrize(('one', 'other'), NEAR)
def test_near_and_not_the_same(one, other):
  assert duplicates.merge_key(one) != duplicates.merge_key(other)
  assert duplicates.near_key(one) == duplicates.near_key(other)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('Name a nut', 'Name a net'),
    ('\U0001f600', '\U0001f622'),
    ('1 + 1', '1 - 2'),
    ('\U0001f469\u200d\U0001f680', '\U0001f469\U0001f680'),
    ([USER], [{'role': 'system', 'content': 'x'}, USER]),
  ],
)
def test_not_even_near(one, other):
  assert duplicates.merge_key(one) != duplicates.merge_key(other)
  if '\u200d' not in str(one):
    assert duplicates.near_key(one) != duplicates.near_key(other)


def test_words_are_the_same_in_ascii_and_beyond():
  text = 'It is_fine: 3.5% (of "x-y")\tA\n'
  assert duplicates.words(text) == ' it is_fine 3 5 of x y a '
  assert duplicates.words(text + '\u00e9') == duplicates.words(text) + '\u00e9 '
