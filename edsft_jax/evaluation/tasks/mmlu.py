"""MMLU: questions with four options on 57 subjects (Hendrycks et al. 2021).

Protocols, which differ in the text before the questions and in what is scored:

  original       hendrycks/test, evaluate.py: the next token after the prompt
  open_instruct  allenai/open-instruct, eval/mmlu/run_eval.py (before 8d4acff)
  lm_eval        lm-evaluation-harness, tasks/mmlu/default
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import pathlib
import re
from typing import Any, ClassVar

import ml_collections
import numpy as np

from edsft_jax import errors, store
from edsft_jax.evaluation import benchmarks, fewshot
from edsft_jax.evaluation.task import (
  Item,
  Likelihood,
  Metric,
  Response,
  Scored,
  TaskInputs,
)
from edsft_jax.evaluation.tasks.mmlu_subjects import category
from edsft_jax.tables import hub_dataset, readers

LETTERS = ('A', 'B', 'C', 'D')
PROTOCOLS = ('original', 'open_instruct', 'lm_eval')
_FIELDS: benchmarks.Fields = {
  'subject': ('subject', 'task'),
  'question': ('question', 'input'),
  'choices': ('choices', 'options'),
  'answer': ('answer', 'target'),
}
# Of the protocol open_instruct.
_MAX_PROMPT_TOKENS = 2048
_BEGIN_ANSWER = 'The answer is:'

Question = Mapping[str, Any]


class Mmlu:
  """Each question's letters, scored by their likelihood."""

  name: ClassVar[str] = 'mmlu'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'accuracy': Metric(
      'Accuracy', True, 'share of questions answered correctly'
    ),
    'macro_accuracy': Metric(
      'Accuracy over subjects',
      True,
      'mean over subjects of the share of questions answered correctly',
      column='accuracy',
      over_tasks=True,
    ),
  }

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the questions.

    Raises:
      InputError: naming a question that is not complete.
    """
    c = inputs.config.evaluation.mmlu
    self.max_new_tokens = 1
    self.stop: tuple[str, ...] = ()
    self.about: Mapping[str, Any] = benchmarks.about(
      inputs.config, Mmlu.name, 'likeliest letter'
    )
    self._format = inputs.prompt_format
    self._protocol: str = c.protocol
    self._chat: bool = c.chat
    self._context = inputs.context
    questions = benchmarks.first_of_each(
      read(c.path, 'evaluation.mmlu.path'), 'subject', c.limit
    )
    shots = _shots(c.shots, c.shots_path, questions)
    encoded = [
      self._encode(prompt(self._protocol, q, shots.get(q['subject'], ())))
      for q in questions
    ]
    prompts = [e for e, _ in encoded]
    self._num_shots = fewshot.num_used(questions, prompts, c.shots)
    self.items: Sequence[Item] = [
      Item(
        q['id'],
        q['subject'],
        q['answer'],
        requests,
        category(q['subject']),
        q['question'] + options(q),
      )
      for q, (_, requests) in zip(questions, encoded, strict=True)
    ]
    self.counts: Mapping[str, int] = fewshot.counts(prompts)

  def _encode(
    self, parts: fewshot.FewShot
  ) -> tuple[fewshot.Encoded, tuple[Likelihood, ...]]:
    """A prompt, and a request for each letter."""
    limit = self._context
    begin = ''
    if self._protocol == 'open_instruct':
      limit = min(limit, _MAX_PROMPT_TOKENS)
      begin = _BEGIN_ANSWER if self._chat else ''
    encoded = fewshot.encode(
      self._format, parts, limit, chat=self._chat, begin_answer=begin
    )
    requests = []
    for letter in LETTERS:
      if self._protocol == 'open_instruct':
        ids = [self._format.encode_text(f' {letter}')[-1]]
        before = encoded.tokens
      else:
        before, ids = self._format.encode_pair(encoded.text, f' {letter}')
      # The last token of the continuation is only predicted, never read.
      tokens = [*before, *ids][-(self._context + 1) :]
      requests.append(Likelihood(tokens, len(ids), encoded.truncated))
    return encoded, tuple(requests)

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing files; see Task.check."""
    benchmarks.check(config, Mmlu.name, PROTOCOLS)
    c = config.evaluation.mmlu
    if c.shots and benchmarks.hash_source(c.path) == benchmarks.hash_source(
      c.shots_path
    ):
      raise errors.InputError(
        'evaluation.mmlu.shots_path has the questions that are asked, with '
        'their answers: name the dev split, or set evaluation.mmlu.shots to 0'
      )

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """Options and files of evaluation.mmlu."""
    return benchmarks.fingerprint(config, Mmlu.name)

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """The likeliest letter, the first one in a tie, and all likelihoods."""
    nll = []
    for response in responses:
      assert isinstance(response, Scored)
      nll.append(response.nll)
    best = int(np.argmin(nll))
    first, second = sorted(nll)[:2]
    request = item.requests[best]
    assert isinstance(request, Likelihood)
    return {
      'prediction': LETTERS[best],
      'accuracy': float(LETTERS[best] == item.reference),
      'log_likelihoods': [-x for x in nll],
      'margin': second - first,
      'num_shots': self._num_shots[item.id],
      'num_prompt_tokens': len(request.tokens) - request.num_targets,
      'num_generated_tokens': 0,
      'truncated': request.truncated,
      'finish': 'stop',
    }


def prompt(
  protocol: str, question: Question, shots: Sequence[Question]
) -> fewshot.FewShot:
  """The prompt of a question by a protocol.

  Args:
    protocol: one of PROTOCOLS.
    question: the question.
    shots: questions of the same subject with their answers.
  """
  # The original puts a space before each word of the subject.
  space = '' if protocol == 'lm_eval' else ' '
  subject = space + question['subject'].replace('_', ' ')
  header = (
    'The following are multiple choice questions (with answers) about '
    f'{subject}.\n\n'
  )

  def text(q: Question) -> str:
    asked = q['question'].strip() if protocol == 'lm_eval' else q['question']
    return f'{asked}{options(q)}\nAnswer:'

  worked = [f'{text(q)} {q["answer"]}\n\n' for q in shots]
  return fewshot.FewShot(header, worked, text(question))


def options(question: Question) -> str:
  """A line for each option, as all protocols write them."""
  return ''.join(
    f'\n{letter}. {choice}'
    for letter, choice in zip(LETTERS, question['choices'], strict=True)
  )


def read(path: str, option: str) -> list[dict[str, Any]]:
  """Questions with id, subject, question, four choices and a letter.

  Args:
    path: see config.evaluation.mmlu.path.
    option: the option, for messages.

  Raises:
    InputError: naming a question that is not complete.
  """
  if path.startswith(hub_dataset.PREFIX) or not pathlib.Path(path).is_dir():
    records = benchmarks.read(
      path, option, _FIELDS, not_text=('choices', 'answer')
    )
  else:
    records = list(_read_folder(pathlib.Path(path), option))
  numbers: dict[str, int] = {}
  for record in records:
    subject = record['subject']
    numbers[subject] = numbers.get(subject, 0) + 1
    record.setdefault('id', f'{subject}/{numbers[subject] - 1}')
    place = f'{option}: {path}, {record["id"]!r}'
    if not isinstance(record['choices'], (list, tuple)):
      raise errors.InputError(
        f'{place} has choices {record["choices"]!r}: give a list of four'
      )
    if len(record['choices']) != len(LETTERS):
      raise errors.InputError(
        f'{place} has {len(record["choices"])} options: MMLU has four; remove '
        'the question'
      )
    for letter, choice in zip(LETTERS, record['choices'], strict=True):
      if choice is None or choice != choice:  # pandas reads "None" as NaN.
        raise errors.InputError(f'{place} has no option {letter}: write it')
    record['choices'] = [str(choice) for choice in record['choices']]
    record['answer'] = _letter(record['answer'], place)
  benchmarks.refuse_duplicates(records, f'{option}: {path}')
  return records


def _letter(answer: Any, place: str) -> str:
  """The letter of an answer that is a letter or an index from 0."""
  if type(answer) is int and answer in range(len(LETTERS)):
    return LETTERS[answer]
  text = str(answer).strip()
  if text in LETTERS:
    return text
  if text in ('0', '1', '2', '3'):
    return LETTERS[int(text)]
  raise errors.InputError(
    f'{place} has the answer {answer!r}: give A, B, C or D, or 0 to 3'
  )


def _read_folder(folder: pathlib.Path, option: str) -> Iterator[dict[str, Any]]:
  """Reads the original CSV files: no header, SUBJECT_SPLIT.csv."""
  files = sorted(f for f in folder.glob('*.csv') if not f.name.startswith('.'))
  if not files:
    raise errors.InputError(f'{option}: {folder} has no CSV files')
  names = {file: _SUBJECT_SPLIT.fullmatch(file.stem) for file in files}
  splits = sorted({name[2] for name in names.values() if name})
  if len(splits) > 1:
    raise errors.InputError(
      f'{option}: {folder} has the splits {" and ".join(splits)}: name a '
      'folder with one of them'
    )
  for file, name in names.items():
    if name is None:
      raise errors.InputError(
        f'{option}: {file} is not named after a subject and a split, such as '
        'anatomy_test.csv: rename it'
      )
    lines = readers.physical_lines(file)
    for number, cells in enumerate(csv.reader(lines)):
      if len(cells) != len(LETTERS) + 2:
        raise errors.InputError(
          f'{option}: {file}, record {number + 1} has {len(cells)} cells: '
          'it must have question, four options and answer'
        )
      question, *choices, answer = cells
      yield {
        'subject': name[1],
        'question': question,
        'choices': choices,
        'answer': answer,
      }


_SUBJECT_SPLIT = re.compile('(.+)_(test|dev|val|train)')


def _shots(
  num_shots: int, path: str, questions: Sequence[Question]
) -> dict[str, list[dict[str, Any]]]:
  """The worked examples of each subject."""
  if not num_shots:
    return {}
  option = 'evaluation.mmlu.shots_path'
  shots: dict[str, list[dict[str, Any]]] = {}
  kept = benchmarks.first_of_each(read(path, option), 'subject', num_shots)
  for record in kept:
    shots.setdefault(record['subject'], []).append(record)
  for subject in dict.fromkeys(q['subject'] for q in questions):
    if len(shots.get(subject, ())) < num_shots:
      raise errors.InputError(
        f'{option}: {path} has {len(shots.get(subject, ()))} examples of '
        f'{subject}, evaluation.mmlu.shots is {num_shots}: lower it or add some'
      )
  return shots
