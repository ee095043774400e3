"""BIG-Bench Hard: 27 tasks, with or without reasoning (Suzgun et al. 2022).

Protocols:

  open_instruct  allenai/open-instruct, eval/bbh: the prompt file as it is
  lm_eval        lm-evaluation-harness, bbh_cot_fewshot (version 4), without
                 reasoning bbh_fewshot (2), and with no shots bbh_zeroshot (3)
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
from typing import Any, ClassVar, NamedTuple

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
from edsft_jax.tables import hub_dataset, readers

PROTOCOLS = ('open_instruct', 'lm_eval')
_FIELDS: benchmarks.Fields = {
  'task': ('task',),
  'input': ('input', 'question', 'prompt'),
  'target': ('target', 'answer', 'response'),
}
_NUM_SHOTS = 3
_STEPS = "Let's think step by step."
_SO = 'So the answer is'


class Worked(NamedTuple):
  """The contents of a task's prompt file.

  Attributes:
    description: what the task asks for.
    shots: (question, reasoning that ends with the answer) of each example.
    separator: white space before the reasoning; one file has no line break.
  """

  description: str
  shots: tuple[tuple[str, str], ...]
  separator: str = '\n'


class Variant(NamedTuple):
  """What a protocol does besides its prompts.

  Attributes:
    stop: strings that end an answer.
    max_new_tokens: tokens per answer at most.
    extractor: the rule that finds the answer in the text, for eval.json.
  """

  stop: tuple[str, ...]
  max_new_tokens: int
  extractor: str


class Bbh:
  """Greedy answers, compared with the targets."""

  name: ClassVar[str] = 'bbh'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'exact_match': Metric(
      'Exact match', True, 'share of answers equal to the target'
    ),
    'macro_exact_match': Metric(
      'Exact match over tasks',
      True,
      'mean over tasks of the share of answers equal to the target',
      column='exact_match',
      over_tasks=True,
    ),
  }

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the questions.

    Raises:
      InputError: naming a record or a task without a prompt.
    """
    c = inputs.config.evaluation.bbh
    self._protocol: str = c.protocol
    found = variant(c.protocol, c.cot, c.shots, c.chat)
    self.stop: tuple[str, ...] = found.stop
    self.max_new_tokens: int = c.max_new_tokens or found.max_new_tokens
    self._extractor = found.extractor
    self._zero_shot = not c.shots
    self.about: Mapping[str, Any] = benchmarks.about(
      inputs.config, Bbh.name, found.extractor
    ) | {'cot': c.cot}
    questions = benchmarks.first_of_each(
      read(c.path, 'evaluation.bbh.path'), 'task', c.limit
    )
    worked = _worked_of(c.shots_path, questions)
    encoded = [
      fewshot.encode(
        inputs.prompt_format,
        prompt(
          c.protocol, c.cot, q['input'], worked[q['task']], c.shots, c.chat
        ),
        inputs.context - self.max_new_tokens,
        chat=c.chat,
        begin_answer='A:' if c.chat and c.protocol == 'open_instruct' else '',
      )
      for q in questions
    ]
    self._num_shots = fewshot.num_used(questions, encoded, c.shots)
    self.items: Sequence[Item] = fewshot.items_to_generate(
      questions, encoded, reference='target', text='input', task='task'
    )
    self.counts: Mapping[str, int] = fewshot.counts(encoded)

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing files; see Task.check."""
    c = config.evaluation.bbh
    benchmarks.check(config, Bbh.name, PROTOCOLS)
    if c.shots not in (0, _NUM_SHOTS):
      raise errors.InputError(
        f'evaluation.bbh.shots is {c.shots}: give {_NUM_SHOTS}, as many as the '
        'prompts have, or 0'
      )
    if not c.shots and (c.cot or c.protocol != 'lm_eval'):
      raise errors.InputError(
        'evaluation.bbh.shots is 0, which only the protocol lm_eval without '
        'reasoning has: set evaluation.bbh.cot to False and protocol to lm_eval'
      )
    default = variant(c.protocol, c.cot, c.shots, c.chat).max_new_tokens
    benchmarks.check_max_new_tokens(config, Bbh.name, default)

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """Options and files of evaluation.bbh."""
    return benchmarks.fingerprint(config, Bbh.name, ('cot', 'max_new_tokens'))

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """The extracted answer against the target."""
    (response,) = responses
    assert isinstance(response, Generated)
    answer = extract(self._extractor, response.text)
    return {
      'prediction': answer,
      'exact_match': float(
        is_correct(self._protocol, self._zero_shot, answer, item.reference)
      ),
      **fewshot.answer_columns(item, response, self._num_shots[item.id]),
    }


def variant(protocol: str, cot: bool, shots: int, chat: bool) -> Variant:
  """Stops, length and extractor of a protocol."""
  if protocol == 'open_instruct':
    return Variant(() if chat else ('\n\n',), 512, 'open_instruct')
  if not shots:
    # The harness's own default for the number of tokens.
    return Variant(('</s>', 'Q:', '<|im_end|>'), 256, 'strip')
  stop = ('</s>', 'Q', '\n\n')
  return Variant(stop, 1024, 'lm_eval' if cot else 'none')


def extract(extractor: str, text: str) -> str:
  """The answer in a text.

  Args:
    extractor: 'open_instruct' takes what follows 'the answer is' up to a full
      stop, or else the whole text; 'lm_eval' the line that follows it without
      its last character, or else '[invalid]'; 'strip' and 'none' the text.
    text: what the model wrote.
  """
  if extractor == 'open_instruct':
    found = re.search(r'[t|T]he answer is (.*?)\.', text)
    return found[1].strip() if found else text.strip()
  if extractor == 'lm_eval':
    pattern = '(?<=the answer is )(.*)(?=.)'
    return extraction.last_or_first(pattern, text, 0)
  return text


def is_correct(
  protocol: str, zero_shot: bool, answer: str, target: str
) -> bool:
  """Whether an answer counts as the target."""
  if protocol == 'open_instruct':
    return extraction.equal(
      answer, target, ignore_case=True, ignore_punctuation=True
    )
  if zero_shot:
    ignore = (r'\.$', ',', '\n', r'\\', '"')
    return extraction.equal(answer, target, ignore=ignore, ignore_case=True)
  return answer == target


def prompt(
  protocol: str,
  cot: bool,
  question: str,
  worked: Worked,
  num_shots: int,
  chat: bool = False,
) -> fewshot.FewShot:
  """The prompt of a question by a protocol.

  Args:
    protocol: one of PROTOCOLS.
    cot: whether answers are reasoned.
    question: the question.
    worked: the task's prompt file.
    num_shots: worked examples to use.
    chat: whether the prompt is a user's turn; open_instruct then lets the
      answer begin with 'A:' instead of ending the prompt with it.
  """
  if protocol == 'lm_eval':
    steps = f' {_STEPS}\n' if cot else ''
    shots = [
      f'Q: {q}\nA:{steps}{a if cot else " " + _answer(a)}\n\n'
      for q, a in worked.shots[:num_shots]
    ]
    asked = f'Q: {question}\nA:{steps}'
    return fewshot.FewShot(f'{worked.description}\n\n', shots, asked)
  shots = []
  for q, reasoning in worked.shots[:num_shots]:
    answer = _last_part(reasoning)
    if cot:
      answer = f'{_STEPS}{worked.separator}{reasoning}'
    shots.append(f'Q: {q}\nA: {answer}\n\n')
  asked = f'Q: {question}' if chat else f'Q: {question}\nA:'
  return fewshot.FewShot(f'{worked.description}\n\n', shots, asked)


def _last_part(reasoning: str) -> str:
  """What follows 'So the answer is' in a worked example."""
  return reasoning.split(_SO)[-1].strip()


def _answer(reasoning: str) -> str:
  """The answer of a worked example, without the full stop."""
  return _last_part(reasoning).removesuffix('.')


def parse(text: str, place: str) -> Worked:
  """Reads a prompt file, without its canary line.

  Args:
    text: two lines that never reach a model, then the description, an empty
      line, and the examples.
    place: where it is from, for messages.

  Raises:
    InputError: the text does not have this form.
  """
  lines = text.split('\n')
  if len(lines) < 2 or not lines[1].startswith('---'):
    raise errors.InputError(
      f'{place} has no line of dashes after the canary: copy the prompt file '
      'of BIG-Bench Hard as it is'
    )
  description, *examples = re.split(r'\n\nQ: ', '\n'.join(lines[2:]).strip())
  shots, separator = [], '\n'
  for example in examples:
    question, _, reasoning = example.partition(f'\nA: {_STEPS}')
    if _SO not in reasoning:
      raise errors.InputError(
        f'{place}: an example has no reasoned answer: copy the prompt file of '
        'BIG-Bench Hard as it is'
      )
    separator = reasoning[: len(reasoning) - len(reasoning.lstrip())]
    shots.append((question, reasoning.strip()))
  return Worked(description, tuple(shots), separator)


def read(path: str, option: str) -> list[dict[str, Any]]:
  """Questions with id, task, input and target.

  Raises:
    InputError: naming a record that is not complete.
  """
  source = pathlib.Path(path)
  if path.startswith(hub_dataset.PREFIX) or not source.is_dir():
    records = benchmarks.read(path, option, _FIELDS, not_text=('target',))
  else:
    fields = {name: _FIELDS[name] for name in ('input', 'target')}
    records = [
      {'task': file.stem, **record}
      for file in sorted(source.glob('*.json'))
      for record in benchmarks.read(
        str(file), option, fields, not_text=('target',)
      )
    ]
  numbers: dict[str, int] = {}
  for record in records:
    task = record['task']
    numbers[task] = numbers.get(task, 0) + 1
    record.setdefault('id', f'{task}/{numbers[task] - 1}')
    place = f'{option}: {path}, {record["id"]!r}'
    # JSON files may have whole numbers and truth values as they are.
    if not isinstance(record['target'], (str, int)):
      raise errors.InputError(
        f'{place} has the target {record["target"]!r}: give it as text'
      )
    record['target'] = str(record['target'])
    benchmarks.require_text(record, ('target',), place)
  benchmarks.refuse_duplicates(records, f'{option}: {path}')
  return records


def read_worked(path: str) -> dict[str, Worked]:
  """The prompt file of each task, from a folder or a JSON object.

  Raises:
    InputError: a file is not a prompt file.
  """
  option = 'evaluation.bbh.shots_path'
  source = pathlib.Path(path)
  if source.is_dir():
    texts = {
      file.stem: file.read_text(encoding='utf-8')
      for file in sorted(source.glob('*.txt'))
    }
  else:
    readers.check_readable(source, option)
    try:
      texts = json.loads(''.join(readers.physical_lines(source)))
    except ValueError as error:
      raise errors.InputError(
        f'{option}: {path} is not JSON ({error})'
      ) from None
    if not isinstance(texts, dict):
      raise errors.InputError(
        f'{option}: {path} must be an object with the prompt of each task'
      )
  for task, text in texts.items():
    if not isinstance(text, str):
      raise errors.InputError(
        f'{option}: {path}, {task} must be text: a description and examples'
      )
  return {
    task: parse(text, f'{option}: {path}, {task}')
    for task, text in texts.items()
  }


def _worked_of(
  path: str, questions: Sequence[Mapping[str, Any]]
) -> dict[str, Worked]:
  """The prompt file of every task that has questions."""
  if not path:
    raise errors.InputError(
      'evaluation.bbh.shots_path is empty: name the prompt files, which also '
      'describe the tasks'
    )
  worked = read_worked(path)
  for task in dict.fromkeys(q['task'] for q in questions):
    if task not in worked:
      raise errors.unknown(
        f'evaluation.bbh.shots_path: {path} has no prompt for {task!r}, which',
        task,
        worked,
      )
  return worked
