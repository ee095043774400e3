"""The built-in pool: generated prompts of small tasks of varying difficulty.

Like real pools, it is skewed (the largest task has thirteen times as many
prompts as the smallest), asks the same thing in several wordings, and has a few
exact duplicates. Sizes were set without looking at what a model can do: there
are easy and hard tasks among the large ones and among the small ones.
"""

from collections.abc import Callable, Sequence
import functools
import random
from typing import Any

_SEED = 20240126
_NUM_DUPLICATES = 12


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


WORDS = _words(
  'apple arrow baby basket bell bird boat book bottle box bread bridge brush '
  'bucket button cake candle car cat chair cheese city cloud coat coin corn '
  'cow cup desk dog door dress drum duck egg farm field finger fire fish flag '
  'floor flower fork fox frog game garden gate glass glove goat grass hammer '
  'hand hat heart hill honey horse house island jar key king kite knife lake '
  'lamp leaf letter lion map milk mirror moon mouse music nail needle nest '
  'night ocean onion orange paint paper park pen pencil phone picture pig '
  'pillow pipe plane plant plate pocket potato queen rabbit rain ring river '
  'road robot rock roof rope salt sand school sea seed sheep ship shirt shoe '
  'snow soap sock song spoon star stone street sugar summer sun table tail '
  'tent tiger tooth towel town toy train tree truck uncle valley village '
  'violin wall watch water wheel window winter wolf wood yard zebra'
)

COLOURS = {
  'white': 'snow milk salt paper cotton chalk rice ivory',
  'black': 'coal tar soot ink night liquorice',
  'red': 'blood strawberry tomato ruby cherry brick rose',
  'green': 'grass spinach frog emerald cucumber moss lettuce',
  'yellow': 'banana lemon canary butter corn mustard',
  'blue': 'sky sapphire ocean jeans denim',
  'brown': 'chocolate bark coffee mud chestnut bear',
  'orange': 'carrot pumpkin tangerine apricot',
  'pink': 'flamingo salmon piglet',
  'grey': 'elephant ash mouse dolphin',
}

IRREGULAR_PLURALS = {
  'child': 'children',
  'fish': 'fish',
  'foot': 'feet',
  'goose': 'geese',
  'man': 'men',
  'mouse': 'mice',
  'ox': 'oxen',
  'sheep': 'sheep',
  'tooth': 'teeth',
  'woman': 'women',
}

OPPOSITES = (
  ('hot', 'cold'),
  ('big', 'small'),
  ('fast', 'slow'),
  ('up', 'down'),
  ('open', 'closed'),
  ('early', 'late'),
  ('happy', 'sad'),
  ('light', 'dark'),
  ('rich', 'poor'),
  ('full', 'empty'),
  ('young', 'old'),
  ('loud', 'quiet'),
  ('wet', 'dry'),
  ('strong', 'weak'),
  ('thick', 'thin'),
  ('near', 'far'),
  ('soft', 'hard'),
  ('left', 'right'),
)

CAPITALS = {
  'Austria': 'Vienna',
  'Belgium': 'Brussels',
  'Canada': 'Ottawa',
  'Chile': 'Santiago',
  'China': 'Beijing',
  'Cuba': 'Havana',
  'Denmark': 'Copenhagen',
  'Egypt': 'Cairo',
  'England': 'London',
  'Finland': 'Helsinki',
  'France': 'Paris',
  'Germany': 'Berlin',
  'Greece': 'Athens',
  'India': 'Delhi',
  'Ireland': 'Dublin',
  'Italy': 'Rome',
  'Japan': 'Tokyo',
  'Kenya': 'Nairobi',
  'Norway': 'Oslo',
  'Peru': 'Lima',
  'Poland': 'Warsaw',
  'Portugal': 'Lisbon',
  'Russia': 'Moscow',
  'Spain': 'Madrid',
  'Sweden': 'Stockholm',
  'Turkey': 'Ankara',
}


class Draw:
  """Random choices that are the same in every Python version.

  Python only guarantees that `random()` gives the same sequence for a seed, not
  `choice` and `shuffle`.
  """

  def __init__(self, seed: int):
    self._random = random.Random(seed).random

  def below(self, n: int) -> int:
    """A whole number from 0 to n - 1."""
    return int(self._random() * n)

  def between(self, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + self.below(high - low + 1)

  def one(self, items: Sequence[Any]) -> Any:
    """One of the items."""
    return items[self.below(len(items))]

  def some(self, items: Sequence[Any], n: int) -> list[Any]:
    """n distinct items."""
    return self.shuffled(items)[:n]

  def shuffled(self, items: Sequence[Any]) -> list[Any]:
    """The items in random order."""
    keys = [(self._random(), i) for i in range(len(items))]
    return [items[i] for _, i in sorted(keys)]


# Values for {0}, {1} ... of a task's wordings, and the response.
_Made = tuple[tuple[str, ...], str]


def _copy(draw: Draw) -> _Made:
  word = draw.one(WORDS)
  return (word,), word


def _repeat(draw: Draw) -> _Made:
  word = draw.one(WORDS)
  return (word,), f'{word} {word} {word}'


def _reverse(draw: Draw) -> _Made:
  word = draw.one([w for w in WORDS if len(w) <= 4])
  return (word,), word[::-1]


def _count_letters(draw: Draw) -> _Made:
  word = draw.one(WORDS)
  return (word,), str(len(word))


def _last_word(draw: Draw) -> _Made:
  words = draw.some(WORDS, draw.between(3, 4))
  return (' '.join(words),), words[-1]


def _add_small(draw: Draw) -> _Made:
  a, b = draw.between(1, 12), draw.between(1, 12)
  return (str(a), str(b)), str(a + b)


def _add_large(draw: Draw) -> _Made:
  a, b = draw.between(13, 99), draw.between(13, 99)
  return (str(a), str(b)), str(a + b)


def _next_number(draw: Draw) -> _Made:
  n = draw.between(1, 98)
  return (str(n),), str(n + 1)


def _compare(draw: Draw) -> _Made:
  a, b = draw.some(range(1, 100), 2)
  return (str(a), str(b)), str(max(a, b))


def _parity(draw: Draw) -> _Made:
  n = draw.between(1, 99)
  return (str(n),), 'yes' if n % 2 == 0 else 'no'


def _sort_numbers(draw: Draw) -> _Made:
  numbers = draw.some(range(1, 30), 3)
  ordered = ' '.join(str(n) for n in sorted(numbers))
  return (' '.join(str(n) for n in numbers),), ordered


def _pattern(draw: Draw) -> _Made:
  start, step = draw.between(1, 20), draw.between(2, 5)
  numbers = [str(start + i * step) for i in range(5)]
  return (' '.join(numbers[:4]),), numbers[4]


def _colour(draw: Draw) -> _Made:
  pairs = [
    (thing, c) for c, things in COLOURS.items() for thing in things.split()
  ]
  thing, colour = draw.one(pairs)
  return (thing,), colour


def _opposite(draw: Draw) -> _Made:
  pair = draw.one(OPPOSITES)
  word, opposite = pair if draw.below(2) else pair[::-1]
  return (word,), opposite


def _capital(draw: Draw) -> _Made:
  country, city = draw.one(tuple(CAPITALS.items()))
  return (country,), city


def plural(word: str) -> str:
  """The plural of one of WORDS or IRREGULAR_PLURALS."""
  if word in IRREGULAR_PLURALS:
    return IRREGULAR_PLURALS[word]
  if word.endswith(('s', 'x', 'ch', 'sh')):
    return f'{word}es'
  if word.endswith('y') and word[-2] not in 'aeiou':
    return f'{word[:-1]}ies'
  if word.endswith(('leaf', 'wolf')):
    return f'{word[:-1]}ves'
  if word.endswith('knife'):
    return f'{word[:-2]}ves'
  if word == 'potato':
    return 'potatoes'
  return f'{word}s'


_UNCOUNTABLE = _words(
  'bread cheese corn grass honey milk music rain salt sand snow soap sugar '
  'water wood'
)


def _plural(draw: Draw) -> _Made:
  countable = [w for w in WORDS if w not in _UNCOUNTABLE]
  word = draw.one((*countable, *IRREGULAR_PLURALS))
  return (word,), plural(word)


# Task -> (number of prompts, generator, wordings).
TASKS: dict[str, tuple[int, Callable[[Draw], _Made], tuple[str, ...]]] = {
  'add_small': (
    400,
    _add_small,
    (
      'What is {0} plus {1}?',
      'Add {0} and {1}.',
      '{0} + {1} = ?',
      'How much is {0} and {1} together?',
    ),
  ),
  'copy': (
    340,
    _copy,
    (
      'Repeat the word {0}.',
      'Write the word {0}.',
      'Copy this word: {0}',
      'Please write {0} and nothing else.',
    ),
  ),
  'compare': (
    280,
    _compare,
    (
      'Which is larger, {0} or {1}?',
      'Which number is bigger: {0} or {1}?',
      'Name the larger number of {0} and {1}.',
    ),
  ),
  'last_word': (
    230,
    _last_word,
    (
      'What is the last word of: {0}',
      'Give me the final word of this list: {0}',
      'Which word comes last? {0}',
    ),
  ),
  'reverse': (
    200,
    _reverse,
    (
      'Write {0} backwards.',
      'Reverse the word {0}.',
      'Spell {0} from its end to its start.',
      'What is {0} in reverse?',
    ),
  ),
  'colour': (
    160,
    _colour,
    (
      'What colour is {0}?',
      'Name the colour of {0}.',
      'Which colour does {0} have?',
      'Tell me the usual colour of {0}.',
    ),
  ),
  'next_number': (
    150,
    _next_number,
    (
      'What number comes after {0}?',
      'Which number follows {0}?',
      'Count one further than {0}.',
    ),
  ),
  'plural': (
    130,
    _plural,
    (
      'What is the plural of {0}?',
      'One {0}, two what?',
      'Give the plural form of the word {0}.',
    ),
  ),
  'add_large': (
    110,
    _add_large,
    ('What is {0} plus {1}?', 'Add {0} and {1}.', '{0} + {1} = ?'),
  ),
  'count_letters': (
    90,
    _count_letters,
    (
      'How many letters does {0} have?',
      'Count the letters of the word {0}.',
      'Of how many letters is {0} made?',
    ),
  ),
  'opposite': (
    80,
    _opposite,
    (
      'What is the opposite of {0}?',
      'Which word means the contrary of {0}?',
      'If it is not {0}, what is it?',
    ),
  ),
  'repeat': (
    70,
    _repeat,
    (
      'Write the word {0} three times.',
      'Say {0} three times.',
      'Repeat {0} until there are three.',
    ),
  ),
  'sort_numbers': (
    55,
    _sort_numbers,
    (
      'Sort these numbers: {0}',
      'Put in order, the smallest first: {0}',
    ),
  ),
  'capital': (
    45,
    _capital,
    (
      'What is the capital of {0}?',
      'Which city is the capital of {0}?',
      'Name the capital city of {0}.',
    ),
  ),
  'parity': (
    40,
    _parity,
    (
      'Is {0} an even number? Yes or no.',
      'Can {0} be divided by two? Yes or no.',
    ),
  ),
  'pattern': (
    30,
    _pattern,
    ('Continue the pattern: {0}', 'What comes next? {0}'),
  ),
}


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
  """The pool's rows: id, task, prompt, response; the same on every machine."""
  items = []
  for task_index, (task, (size, make, wordings)) in enumerate(TASKS.items()):
    draw = Draw(_SEED + task_index)
    answers: dict[str, str] = {}
    while len(answers) < size:
      filling, response = make(draw)
      answers.setdefault(draw.one(wordings).format(*filling), response)
    items += [(task, prompt, answer) for prompt, answer in answers.items()]
  draw = Draw(_SEED - 1)
  items += draw.some(items, _NUM_DUPLICATES)
  return tuple(
    {
      'id': f'demo-{number:04d}',
      'task': task,
      'prompt': prompt,
      'response': response,
    }
    for number, (task, prompt, response) in enumerate(draw.shuffled(items), 1)
  )
