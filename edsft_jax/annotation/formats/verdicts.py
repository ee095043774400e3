"""Words and marks by which people and tools accept, reject or skip a prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

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
_YES = frozenset(('1', 't', 'true', 'x', 'y', 'yes'))
_NO = frozenset(('0', 'f', 'false', 'n', 'no'))
# A rejection outweighs a skip, which outweighs an answer.
_WEIGHT = (Verdict.ANSWERED, Verdict.SKIPPED, Verdict.REJECTED)


# What the name of such a column contains in other tools.
_NAMES = ('status', 'verdict', 'state', 'approv', 'reject', 'accept', 'review')


def holds_verdicts(column: str, values: Iterable[Any]) -> bool:
  """Whether a column with another name holds words of this kind.

  It has to reject or skip something, and every word has to be known unless the
  column's name says what it is.
  """
  words = {_plain(value) for value in values} - {''}
  known = {_OF_WORD[word] for word in words if word in _OF_WORD}
  if not known - {Verdict.ANSWERED}:
    return False
  name = column.casefold()
  return words <= _OF_WORD.keys() or any(part in name for part in _NAMES)


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


def heaviest(found: Iterable[Verdict | None]) -> Verdict | None:
  """The one that counts if several columns say something; None if none do."""
  said = (verdict for verdict in found if verdict)
  return max(said, key=_WEIGHT.index, default=None)


def _plain(value: Any) -> str:
  """The value in lower case; '' for nothing, '1' for 1.0."""
  if value is None or value != value:
    return ''
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return '_'.join(str(value).casefold().split())
