"""BIG-Bench Hard without worked examples.

Answers then have any form, so a rule of their task also looks for the target in
them. The rules are those of lm-evaluation-harness's bbh_zeroshot (version 3),
filter flexible-extract. Only numbers in words are read differently: the harness
takes words such as "for" for the start of one.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any, ClassVar
import unicodedata

from edsft_jax.evaluation import extraction
from edsft_jax.evaluation.task import Generated, Item, Metric, Response
from edsft_jax.evaluation.tasks.bbh import Bbh, is_correct

_YES_OR_NO = r'\b(Yes|No|yes|no)\b'
# Task -> what its answers look like.
_PATTERNS = {
  'boolean_expressions': r'\b(True|False)\b',
  'causal_judgement': _YES_OR_NO,
  'dyck_languages': r'(?<= )([" \[\(<{}>\)\]]+)|([" \[\(<{}>\)\]]+)',
  'formal_fallacies': r'\b(valid|invalid)\b',
  'navigate': _YES_OR_NO,
}
# Task -> (what lower-case answers look like, the target that they mean).
_MEANINGS = {
  'sports_understanding': (
    (r'\b(no|not plausible)\b', 'no'),
    (r'\b(yes|plausible)\b', 'yes'),
  ),
  'web_of_lies': (
    (r'\b(no|does not tell the truth|is not telling the truth)\b', 'no'),
    (r'\b(yes|tells the truth|is telling the truth)\b', 'yes'),
  ),
}
_NUMERIC = ('multistep_arithmetic_two', 'object_counting')

_ONES = (
  'zero one two three four five six seven eight nine ten eleven twelve '
  'thirteen fourteen fifteen sixteen seventeen eighteen nineteen'
)
_TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'
_NUMBERS = {word: number for number, word in enumerate(_ONES.split())} | {
  word: 10 * number for number, word in enumerate(_TENS.split(), 2)
}
_POWERS = {'thousand': 1000, 'million': 10**6}


class BbhZeroShot(Bbh):
  """Greedy answers, compared as they are, and by the rule of their task."""

  version: ClassVar[int] = 2
  metrics: ClassVar[Mapping[str, Metric]] = {
    **Bbh.metrics,
    'flexible_match': Metric(
      'Flexible match',
      True,
      'share of answers in which the rule of their task finds the target',
    ),
    'macro_flexible_match': Metric(
      'Flexible match over tasks',
      True,
      'mean over tasks of the share of answers in which the rule of the task '
      'finds the target',
      column='flexible_match',
      over_tasks=True,
    ),
  }

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """Both answers against the target."""
    (response,) = responses
    assert isinstance(response, Generated)
    answer = find_answer(item.task or '', item.text, response.text)
    is_right = is_correct('lm_eval', True, answer, item.reference)
    return {
      **super().score(item, responses),
      'flexible_prediction': answer,
      'flexible_match': float(is_right),
    }


def find_answer(task: str, question: str, text: str) -> str:
  """The answer that a task's rule finds in a text, or extraction.INVALID.

  Args:
    task: the name of the task; an unknown one is multiple choice, as most are.
    question: the question, with its options or its list of words.
    text: what the model wrote.
  """
  if task in _PATTERNS:
    return extraction.last_or_first(_PATTERNS[task], text, 0)
  if task in _MEANINGS:
    meanings = _MEANINGS[task]
    pattern = '|'.join(pattern for pattern, _ in meanings)
    found = extraction.last_or_first(pattern, text.lower(), 0)
    matches = (value for p, value in meanings if re.search(p, found))
    return next(matches, extraction.INVALID)
  if task in _NUMERIC:
    found = extraction.last_or_first(r'([-0-9]+)', text, 0)
    return _number(text) if found == extraction.INVALID else found
  if task == 'word_sorting':
    return _sorted_words(question, text)
  return _option(question, text)


def _option(question: str, text: str) -> str:
  """The first option that is named by its letter or, if none is, its text."""
  if letter := re.search(r'\([A-Z]\)', text):
    return letter[0]
  listed = re.findall(r'\([A-Z]\)([^\n^(]*)', question)
  letters = [chr(ord('A') + number) for number in range(len(listed))]
  options = {
    _plain(option.strip()): f'({letter})'
    for option, letter in zip(listed, letters, strict=True)
  }
  # The longest first, since one option may be the start of another.
  longest_first = sorted(map(re.escape, options), key=len, reverse=True)
  found = re.findall('|'.join(longest_first), _plain(text))
  if found and (option := found[0].strip()):
    return options.get(option, option)
  after_colon = re.search(rf':\s*({"|".join(letters)})', text)
  if after_colon and after_colon[1]:
    return f'({after_colon[1]})'
  return extraction.INVALID


def _plain(text: str) -> str:
  """A text in lower case, without punctuation."""
  is_punctuation = lambda c: unicodedata.category(c).startswith('P')
  return ''.join(c for c in text.lower() if not is_punctuation(c))


def _sorted_words(question: str, text: str) -> str:
  """The words to be sorted, in the order of their last places in a text."""
  _, *lists = question.split('List:')
  words = lists[0].split() if lists else []
  if not words:
    return extraction.INVALID
  pattern = '|'.join(rf'\b{re.escape(word)}\b' for word in words)
  backwards = dict.fromkeys(reversed(re.findall(pattern, text)))
  return ' '.join(reversed(backwards))


def _number(text: str) -> str:
  """The first number in English words, in digits, or extraction.INVALID."""
  total, part, is_number = 0, 0, False
  for word in re.findall(r'[a-z]+', text.lower()):
    if word in _NUMBERS:
      part += _NUMBERS[word]
    elif word == 'hundred' and is_number:
      part *= 100
    elif word in _POWERS and is_number:
      total, part = total + part * _POWERS[word], 0
    elif is_number and word != 'and':
      break
    else:
      continue
    is_number = True
  return str(total + part) if is_number else extraction.INVALID
