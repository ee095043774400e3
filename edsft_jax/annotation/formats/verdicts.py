"""Words and marks by which people and tools accept, reject or skip a prompt."""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from edsft_jax import errors
from edsft_jax.annotation.formats.format import Verdict

_WORDS = {
  Verdict.ANSWERED: (
    'accept accepted answered approve approved complete completed done '
    'finished keep ok submitted valid'
  ),
  Verdict.REJECTED: (
    'decline declined discard discarded exclude excluded invalid refuse '
    'refused reject rejected replace unanswerable unusable'
  ),
  Verdict.SKIPPED: (
    'assigned cancel canceled cancelled draft ignore ignored in_progress open '
    'pending postponed skip skipped todo unanswered'
  ),
}
_OF_WORD = {
  word: verdict for verdict, words in _WORDS.items() for word in words.split()
}
# Columns that hold one of these words.
COLUMNS = ('status', 'verdict', 'decision')
# Columns that hold a yes or a no, and what yes and no mean. A prompt that is
# not rejected need not be answered yet.
FLAGS: Mapping[str, tuple[Verdict, Verdict | None]] = {
  'accepted': (Verdict.ANSWERED, Verdict.REJECTED),
  'rejected': (Verdict.REJECTED, None),
  'discarded': (Verdict.REJECTED, None),
  'skipped': (Verdict.SKIPPED, None),
  'ignored': (Verdict.SKIPPED, None),
  'cancelled': (Verdict.SKIPPED, None),
  'canceled': (Verdict.SKIPPED, None),
  'was_cancelled': (Verdict.SKIPPED, None),
}
# Names of other columns that may hold verdicts, and those among them that hold
# dates or people.
_SUGGESTIVE = re.compile(
  'status|verdict|(?<!e)state(?!ment)|approve|reject|accept|review',
  re.IGNORECASE,
)
_ASIDE = re.compile(
  '((?i:time|date|rate|score|count|seconds|reviewers?)|[_ ]at|At|[_ ]by|By|'
  '[_ ]id|Id|ID)$'
)
_YES = frozenset(('1', 't', 'true', 'x', 'y', 'yes'))
_NO = frozenset(('0', 'f', 'false', 'n', 'no'))
# A rejection outweighs a skip, which outweighs an answer.
_WEIGHT = (Verdict.ANSWERED, Verdict.SKIPPED, Verdict.REJECTED)


class UnknownVerdict(Exception):
  """A value in a column of verdicts that means nothing known."""


def of_word(column: str, value: Any) -> Verdict | None:
  """The verdict that a word stands for; None for an empty cell.

  Raises:
    UnknownVerdict: naming the column and the word.
  """
  word = _plain(value)
  if not word:
    return None
  if word not in _OF_WORD:
    raise UnknownVerdict(f'{column}={value}')
  return _OF_WORD[word]


def of_flag(column: str, value: Any) -> Verdict | None:
  """The verdict that a yes or a no in a column of FLAGS stands for, if any.

  Raises:
    UnknownVerdict: it is neither; naming the column and the value.
  """
  word = _plain(value)
  if_yes, if_no = FLAGS[column.strip().casefold()]
  if word in _YES:
    return if_yes
  if word in _NO:
    return if_no
  if word:
    raise UnknownVerdict(f'{column}={value}')
  return None


def is_column(name: str, values: Iterable[Any]) -> bool:
  """Whether a column with a name of its own holds verdicts.

  It does if all its values are words of verdicts, and some are not acceptances.

  Raises:
    UnknownVerdict: by its name it does, but a value means nothing known.
  """
  words = [value for value in values if _plain(value)]
  if all(_plain(word) in _OF_WORD for word in words):
    found = {_OF_WORD[_plain(word)] for word in words}
    return not found <= {Verdict.ANSWERED}
  if not _SUGGESTIVE.search(name) or _ASIDE.search(name.strip()):
    return False
  for word in words:
    of_cell(name, word)
  return True


def columns_among(values: Mapping[str, Iterable[Any]]) -> frozenset[str]:
  """Names of the columns that hold verdicts, always with 'verdict'.

  Args:
    values: the values of each column.

  Raises:
    InputError: by its name one does, but a value means nothing known.
  """
  try:
    found = {
      name
      for name, some in values.items()
      if name != 'verdict' and is_column(name, some)
    }
  except UnknownVerdict as e:
    raise errors.InputError(
      f'has {e}, which is not a verdict: use accepted, rejected or skipped'
    ) from None
  return frozenset(('verdict', *found))


def of_cell(column: str, value: Any) -> Verdict | None:
  """The verdict in a column that `is_column`: a word, or a yes or a no.

  Raises:
    UnknownVerdict: it is neither; naming the column and the value.
  """
  word, name = _plain(value), column.casefold()
  if word in _YES | _NO:
    for part, flag in (('reject', 'rejected'), ('approve', 'accepted')):
      if part in name:
        return of_flag(flag, value)
    if 'accept' in name:
      return of_flag('accepted', value)
  return of_word(column, value)


def heaviest(found: Iterable[Verdict | None]) -> Verdict | None:
  """The one that counts if several columns say something; None if none do."""
  said = (verdict for verdict in found if verdict)
  return max(said, key=_WEIGHT.index, default=None)


def _plain(value: Any) -> str:
  """The value in lower case; '' for nothing, '1' for 1.0."""
  if value is None or value != value or value in ([], {}):
    return ''
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return '_'.join(str(value).casefold().split())
