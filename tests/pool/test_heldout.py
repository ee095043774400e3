"""What is held out, and what the pool gives away."""

import pytest

from edsft_jax import store
from edsft_jax.pool import duplicates, heldout, items


def item(number, prompt, response='a'):
  near = duplicates.near_key(prompt)
  return items.Item(str(number), prompt, '', response, str(prompt), near)


def prompts(*found):
  return store.Prompts(
    [str(i) for i in range(len(found))], [*found], None, ['a'] * len(found)
  )


def turns(*contents):
  roles = ('user', 'assistant') * len(contents)
  return [
    {'role': role, 'content': content}
    for role, content in zip(roles, contents, strict=False)
  ]


@pytest.mark.parametrize(
  ('count', 'fraction', 'expected'),
  [(10, 0.5, 5), (10, 0.0, 0), (10, 0.04, 0), (1000, 0.1, 100), (7, 0.3, 2)],
)
def test_the_share_is_exact(count, fraction, expected):
  rows = [item(i, f'prompt {i}') for i in range(count)]
  assert sum(heldout.split(rows, fraction)) == expected


def test_it_depends_on_the_ids_alone():
  rows = [item(i, f'prompt {i}') for i in range(50)]
  chosen = heldout.split(rows, 0.3)
  backwards = heldout.split(rows[::-1], 0.3)
  assert chosen == backwards[::-1]
  assert chosen != [i < 15 for i in range(50)]


def test_unanswered_prompts_stay_in_the_pool():
  rows = [item(i, f'prompt {i}', 'a' if i % 2 else '') for i in range(20)]
  chosen = heldout.split(rows, 0.5)
  assert sum(chosen) == 5
  assert not any(chosen[::2])


def together(rows):
  """Whether every split keeps the first two rows together."""
  others = [item(f'other {i}', f'other prompt {i}') for i in range(20)]
  splits = [heldout.split([*rows, *others], i / 20) for i in range(20)]
  assert any(split[0] for split in splits) or not rows[0].response
  return all(split[0] == split[1] for split in splits)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('Name a moon.', 'name a moon'),
    ('Name a moon.', turns('Name a moon!', 'Io', 'Another?')),
    (turns('Hi', 'Ho', 'And?'), turns('Hi', 'Ha', 'So?')),
    # It stands with its answer in the middle of the other conversation.
    ('Name a moon.', turns('Hi', 'Ho', 'Name a moon.', 'a', 'Another?')),
  ],
)
def test_what_begins_alike_stays_together(one, other):
  assert together([item('one', one), item('other', other)])
  assert not together([item('one', one), item('other', 'Name a star')])


def test_an_unanswered_twin_keeps_a_prompt_in_the_pool():
  rows = [item(1, 'Name a moon.'), item(2, 'name a moon', '')]
  assert heldout.split(rows, 0.9) == [False, False]


def test_separate():
  pool = prompts(
    'Name a fish',
    'Name a nut',
    turns('Hi', 'Ho', 'Name a moon.', 'Titan is a moon.', 'Another?'),
    turns('Name a tree', 'Oak', 'Another?'),
    [{'role': 'system', 'content': 'Be brief.'}, *turns('Name a cat')],
    'Name a dog',
  )
  rows = [
    item('in', 'Name a fish'),
    item('near', 'name a NUT.'),
    item('said', 'name a moon', 'titan is a moon'),
    item('other answer', 'Name a moon.', 'Io'),
    item('kept', 'Name a star'),
    item('begins so', 'Name a tree', 'Elm'),
    item('behind a system turn', 'Name a cat'),
    item('asked again', turns('Name a dog', 'Rex', 'And a hen?')),
    item('says it', turns('Hi!', 'Ho!', 'Name a dog', 'a', 'And a hen?')),
  ]
  result = heldout.separate(rows, pool)
  assert [i.id for i in result.kept] == ['other answer', 'kept']
  assert result.in_pool == 1
  assert result.near_pool == 4
  assert result.in_conversation == 2
