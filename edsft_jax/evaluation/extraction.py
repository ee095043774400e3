"""Finds the answer in a model's text, by the rules of the benchmarks."""

from collections.abc import Sequence
import re
import string

INVALID = '[invalid]'

_PUNCTUATION = str.maketrans('', '', string.punctuation)


def last_or_first(pattern: str, text: str, index: int) -> str:
  """The match at `index` (0 the first, -1 the last), stripped, or INVALID.

  Of several groups, the first that is not empty counts. These are the rules of
  lm-evaluation-harness's `regex` filter.
  """
  found = re.findall(pattern, text)
  if not found:
    return INVALID
  match = found[index]
  if isinstance(match, tuple):
    match = next(filter(None, match), INVALID)
  return match.strip()


def equal(
  prediction: str,
  reference: str,
  *,
  ignore: Sequence[str] = (),
  ignore_case: bool = False,
  ignore_punctuation: bool = False,
) -> bool:
  """Whether two answers are equal, apart from what is ignored.

  Args:
    prediction: the model's answer.
    reference: the correct one.
    ignore: regular expressions whose matches are removed first.
    ignore_case: whether to compare in lower case.
    ignore_punctuation: whether to remove ASCII punctuation.
  """

  def plain(text: str) -> str:
    for pattern in ignore:
      text = re.sub(pattern, '', text)
    if ignore_case:
      text = text.lower()
    return text.translate(_PUNCTUATION) if ignore_punctuation else text

  return plain(prediction) == plain(reference)
