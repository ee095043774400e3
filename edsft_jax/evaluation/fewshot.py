"""Prompts with worked examples, shortened to fit without losing a question."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from edsft_jax import models
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  generation_columns,
)


@dataclasses.dataclass(frozen=True)
class FewShot:
  """The parts of a prompt, joined as they are.

  Attributes:
    header: text before the examples.
    shots: worked examples, each with what separates it from the next.
    question: the question, up to where the answer begins.
  """

  header: str
  shots: Sequence[str]
  question: str

  def text(self, num_shots: int) -> str:
    """The prompt with the first examples."""
    return ''.join([self.header, *self.shots[:num_shots], self.question])


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A prompt as tokens.

  Attributes:
    text: the text that was encoded, for `PromptFormat.encode_pair`.
    tokens: its ids.
    num_dropped: worked examples that were left out.
    truncated: whether tokens were cut on the left, even without examples.
  """

  text: str
  tokens: list[int]
  num_dropped: int
  truncated: bool


def encode(
  prompt_format: models.PromptFormat,
  prompt: FewShot,
  limit: int,
  *,
  chat: bool = False,
  begin_answer: str = '',
) -> Encoded:
  """Encodes a prompt, without its last examples where it is too long.

  Args:
    prompt_format: encodes.
    prompt: the parts of the prompt.
    limit: tokens at most. A prompt that is longer even without examples is cut
      on the left, so that it keeps the end of its question.
    chat: whether the prompt is a user's turn in the chat template.
    begin_answer: text with which the answer begins, after the template.
  """
  ids: list[int] = []
  text = ''
  for num_shots in range(len(prompt.shots), -1, -1):
    text = prompt_format.text(prompt.text(num_shots), chat=chat)
    if begin_answer:
      text += begin_answer if text[-1:] in ('\n', ' ') else f' {begin_answer}'
    ids = prompt_format.encode_text(text)
    if len(ids) <= limit:
      return Encoded(text, ids, len(prompt.shots) - num_shots, False)
  return Encoded(text, ids[-limit:], len(prompt.shots), True)


def items_to_generate(
  questions: Sequence[Mapping[str, Any]],
  encoded: Sequence[Encoded],
  *,
  reference: str,
  text: str,
  task: str | None = None,
) -> list[Item]:
  """An item for each question, answered greedily.

  Args:
    questions: each has an 'id'.
    encoded: their prompts.
    reference: name of the field with the right answer.
    text: name of the field with the question itself.
    task: name of the field with the task, if there is one.
  """
  return [
    Item(
      q['id'],
      q[task] if task else None,
      q[reference],
      (Generate(e.tokens, e.truncated),),
      text=q[text],
    )
    for q, e in zip(questions, encoded, strict=True)
  ]


def num_used(
  questions: Sequence[Mapping[str, Any]],
  encoded: Sequence[Encoded],
  num_shots: int,
) -> dict[str, int]:
  """Id -> worked examples in the question's prompt, of `num_shots`."""
  return {
    q['id']: num_shots - e.num_dropped
    for q, e in zip(questions, encoded, strict=True)
  }


def answer_columns(
  item: Item, response: Generated, num_shots: int
) -> dict[str, Any]:
  """Columns of items.jsonl that do not depend on how an answer is judged.

  Args:
    item: one of `items_to_generate`.
    response: the answer.
    num_shots: worked examples in the prompt.
  """
  (request,) = item.requests
  return {
    'text': response.text,
    'num_shots': num_shots,
    **generation_columns(request, response),
  }


def counts(encoded: Sequence[Encoded]) -> dict[str, int]:
  """Counts of prompts that lost examples, of these examples, and of cuts."""
  return {
    'prompts_without_some_shots': sum(e.num_dropped > 0 for e in encoded),
    'shots_dropped': sum(e.num_dropped for e in encoded),
    'prompts_truncated': sum(e.truncated for e in encoded),
  }
