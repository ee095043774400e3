"""GSM8K: word problems whose answers are numbers (Cobbe et al. 2021).

The protocol is lm-evaluation-harness's `gsm8k` (version 3).
"""

from collections.abc import Mapping, Sequence
import random
import re
from typing import Any, ClassVar

import ml_collections

from edsft_jax import errors, store
from edsft_jax.evaluation import benchmarks, extraction, fewshot
from edsft_jax.evaluation.task import (
  Generated,
  Item,
  Metric,
  Response,
  TaskInputs,
)

PROTOCOLS = ('lm_eval',)
_FIELDS: benchmarks.Fields = {
  'question': ('question', 'prompt'),
  'answer': ('answer', 'response'),
}
# The harness draws other examples for each question, with this seed.
_SHOTS_SEED = 1234
_STOP = ('Question:', '</s>', '<|im_end|>')
# The harness's own default for the number of tokens.
_MAX_NEW_TOKENS = 256
_STRICT = r'#### (\-?[0-9\.\,]+)'
_REFERENCE = r'#### -?[.,]*[0-9][0-9.,]*\Z'
_FLEXIBLE = r'(-?[$0-9.,]{2,})|(-?[0-9]+)'
_IGNORED = (',', r'\$', '(?s).*#### ', r'\.$')


class Gsm8k:
  """Greedy solutions, of which the last number is compared."""

  name: ClassVar[str] = 'gsm8k'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'strict_match': Metric(
      'Strict match',
      True,
      'share of solutions with the right number after ####',
    ),
    'flexible_match': Metric(
      'Flexible match', True, 'share of solutions whose last number is right'
    ),
  }

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the questions.

    Raises:
      InputError: naming a question without a final number.
    """
    c = inputs.config.evaluation.gsm8k
    self.stop: tuple[str, ...] = _STOP
    self.max_new_tokens: int = c.max_new_tokens or _MAX_NEW_TOKENS
    self.about: Mapping[str, Any] = benchmarks.about(
      inputs.config,
      Gsm8k.name,
      'strict: after ####; flexible: the last number',
    )
    questions = read(c.path, 'evaluation.gsm8k.path')
    questions = questions[: c.limit or len(questions)]
    drawn = draw(c.shots, c.shots_path, questions)
    encoded = [
      fewshot.encode(
        inputs.prompt_format,
        prompt(question, shots),
        inputs.context - self.max_new_tokens,
        chat=c.chat,
      )
      for question, shots in zip(questions, drawn, strict=True)
    ]
    self._num_shots = fewshot.num_used(questions, encoded, c.shots)
    self.items: Sequence[Item] = fewshot.items_to_generate(
      questions, encoded, reference='answer', text='question'
    )
    self.counts: Mapping[str, int] = fewshot.counts(encoded)

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing files; see Task.check."""
    benchmarks.check(config, Gsm8k.name, PROTOCOLS)
    benchmarks.check_max_new_tokens(config, Gsm8k.name, _MAX_NEW_TOKENS)

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """Options and files of evaluation.gsm8k."""
    return benchmarks.fingerprint(config, Gsm8k.name, ('max_new_tokens',))

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """Both extracted numbers against the reference's."""
    (response,) = responses
    assert isinstance(response, Generated)
    strict = extraction.last_or_first(_STRICT, response.text, 0)
    flexible = extraction.last_or_first(_FLEXIBLE, response.text, -1)
    return {
      'prediction': flexible,
      'strict_prediction': strict,
      'strict_match': float(is_correct(strict, item.reference)),
      'flexible_match': float(is_correct(flexible, item.reference)),
      **fewshot.answer_columns(item, response, self._num_shots[item.id]),
    }


def is_correct(answer: str, reference: str) -> bool:
  """Whether a number is that of the reference solution."""
  return extraction.equal(answer, reference, ignore=_IGNORED, ignore_case=True)


def prompt(
  question: Mapping[str, Any], shots: Sequence[Mapping[str, Any]]
) -> fewshot.FewShot:
  """The prompt of a question after worked examples."""
  return fewshot.FewShot(
    '',
    [f'Question: {q["question"]}\nAnswer: {q["answer"]}\n\n' for q in shots],
    f'Question: {question["question"]}\nAnswer:',
  )


def read(path: str, option: str) -> list[dict[str, Any]]:
  """Questions with id and a solution that ends with '#### NUMBER'.

  Raises:
    InputError: naming a question without such a solution.
  """
  records = benchmarks.read(path, option, _FIELDS)
  for number, record in enumerate(records):
    record.setdefault('id', str(number))
    place = f'{option}: {path}, {record["id"]!r}'
    record['answer'] = record['answer'].rstrip()
    if not re.search(_REFERENCE, record['answer']):
      raise errors.InputError(
        f'{place} has no "#### NUMBER" at the end of its answer: add it or '
        'remove the question'
      )
  benchmarks.refuse_duplicates(records, f'{option}: {path}')
  return records


def draw(
  num_shots: int, path: str, questions: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
  """The worked examples of each question, as the harness draws them.

  If the question is one of them, others take their places.
  """
  if not num_shots:
    return [[] for _ in questions]
  option = 'evaluation.gsm8k.shots_path'
  records = read(path, option)
  if len(records) < num_shots:
    raise errors.InputError(
      f'{option}: {path} has {len(records)} examples, evaluation.gsm8k.shots '
      f'is {num_shots}: lower it or add some'
    )
  generator = random.Random(_SHOTS_SEED)
  drawn = [generator.sample(records, num_shots) for _ in questions]
  for number, question in enumerate(questions):
    asked = question['question'].strip()
    if any(record['question'].strip() == asked for record in drawn[number]):
      others = [r for r in records if r['question'].strip() != asked]
      if len(others) < num_shots:
        raise errors.InputError(
          f'{option}: {path} has {len(others)} examples besides the question '
          f'{question["id"]!r} itself: lower evaluation.gsm8k.shots or add some'
        )
      again = random.Random(f'{_SHOTS_SEED} {number}')
      drawn[number] = again.sample(others, num_shots)
  return drawn
