"""Verdicts of a judge on pairs, in both orders, with answers kept in a file."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
import pathlib

from edsft_jax import console, store
from edsft_jax.evaluation import win_rate
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import Answer, Judge, Messages
from edsft_jax.evaluation.pairs import Pair


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a judge said about a pair.

  Attributes:
    preference: in [1, 2], 2 if the model's output is better; None if the judge
      failed.
    consistent: whether both orders have the same winner; None if the pair was
      not judged in both.
    num_tokens: tokens of questions and answers.
    reason: why the judge failed.
  """

  preference: float | None
  consistent: bool | None = None
  num_tokens: int = 0
  reason: str = ''


class Answers:
  """A judge's answers by the content of their questions, kept in a file.

  Failures are not kept, so that they are asked again.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the file, if there is one."""
    self._path = path
    self._known: dict[str, Answer] = {}
    for row in store.read_appended(path):
      # What a damaged line answered is asked again.
      with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = Answer(float(row['preference']), int(row['num_tokens']))
        if 1 <= answer.preference <= 2:
          self._known[row['key']] = answer

  def get(self, key: str) -> Answer | None:
    """The answer to a question, if it is known."""
    return self._known.get(key)

  def add(self, key: str, answer: Answer) -> None:
    """Keeps an answer."""
    self._known[key] = answer
    row = {'key': key, **dataclasses.asdict(answer)}
    store.append_jsonl(self._path, [row])


def judge_pairs(
  judge: Judge,
  prompt: JudgePrompt,
  pairs: Sequence[Pair],
  answers: Answers,
  *,
  seed: int = 0,
  both_orders: bool = True,
  progress: Callable[[int], object] = lambda num_answers: None,
) -> list[Verdict]:
  """Judges pairs; equal outputs are a tie that nobody is asked about.

  Args:
    judge: answers the questions that `answers` does not have.
    prompt: the questions' text.
    pairs: the pairs.
    answers: known answers; new ones are added as they come.
    seed: decides which output is shown first, if only one order is asked.
    both_orders: ask about each pair twice, and average.
    progress: called with the number of answers since its last call.

  Raises:
    InputError: the judge cannot answer any question.
  """
  questions: dict[str, Messages] = {}
  keys: list[list[tuple[str, bool]]] = []
  for pair in pairs:
    orders: tuple[bool, ...] = (False, True)
    if not both_orders:
      orders = (win_rate.is_switched(pair.instruction, seed),)
    keys.append([])
    for switched in orders if not pair.is_tie else ():
      shown = (pair.reference, pair.output)
      messages = prompt.messages(
        pair.instruction, *(shown[::-1] if switched else shown)
      )
      key = store.hash_json([judge.identity, messages])
      keys[-1].append((key, switched))
      questions[key] = messages
  progress(sum(answers.get(key) is not None for key in questions))
  missing = [key for key in questions if answers.get(key) is None]
  reasons = {}
  asked = judge.ask([questions[key] for key in missing]) if missing else ()
  for number, found in asked:
    if isinstance(found, Answer):
      answers.add(missing[number], found)
    else:
      reasons[missing[number]] = str(found)
    progress(1)
  return [
    Verdict(1.5) if pair.is_tie else _verdict(some, answers, reasons)
    for pair, some in zip(pairs, keys, strict=True)
  ]


def _verdict(
  orders: Sequence[tuple[str, bool]],
  answers: Answers,
  reasons: Mapping[str, str],
) -> Verdict:
  """The mean preference over orders; None if any order failed."""
  preferences, num_tokens = [], 0
  for key, switched in orders:
    answer = answers.get(key)
    if answer is None:
      return Verdict(None, reason=reasons[key])
    num_tokens += answer.num_tokens
    preference = answer.preference
    preferences.append(3 - preference if switched else preference)
  consistent = None
  if len(preferences) > 1:
    consistent = len({preference > 1.5 for preference in preferences}) == 1
  mean = math.fsum(preferences) / len(preferences)
  return Verdict(mean, consistent, num_tokens)


def failures(verdicts: Sequence[Verdict]) -> str:
  """Why the judge failed, the commonest reason first; '' if it did not."""
  reasons = Counter(v.reason for v in verdicts if v.preference is None)
  return '; '.join(
    f'{reason} ({count:,} times)' if count > 1 else reason
    for reason, count in reasons.most_common(3)
  )


def agreement(num_consistent: int, num_pairs: int) -> str:
  """How often both orders had the same winner, and if that is too seldom."""
  text = (
    f'the same winner in both orders for {num_consistent:,} of '
    f'{console.count(num_pairs, "pair")}'
  )
  # Two coin tosses agree that often.
  if num_consistent <= num_pairs / 2:
    text += ', so its choices depend on the order more than on the outputs'
  return text
