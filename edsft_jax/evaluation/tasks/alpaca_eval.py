"""AlpacaEval: free answers to instructions, which a judge compares in pairs.

This file has the instructions and the options; evaluation/judging.py has the
judge's part, once the cells have answered.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, ClassVar

import ml_collections

from edsft_jax import errors, models, store, study
from edsft_jax.evaluation import benchmarks, pairs, win_rate
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Metric,
  Response,
  TaskInputs,
  generation_columns,
)
from edsft_jax.strategies import registry

# Values of evaluation.alpaca_eval.judge that are not a model's path.
ENDPOINT, ANNOTATIONS = 'endpoint', 'annotations'
# The value of evaluation.alpaca_eval.reference that is not a file.
RANDOM = registry.RANDOM
_PATH = 'evaluation.alpaca_eval.path'
_FIELDS: benchmarks.Fields = {'instruction': ('instruction', 'prompt')}
_OPTIONAL: benchmarks.Fields = {'dataset': ('dataset',), 'input': ('input',)}


class AlpacaEval:
  """Greedy answers, with the same prompt format as in finetuning."""

  name: ClassVar[str] = 'alpaca_eval'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'win_rate': Metric(
      'Win rate',
      True,
      "percent of the reference's outputs that the judge likes less, ties half",
    ),
    'length_controlled_win_rate': Metric(
      'Length-controlled win rate',
      True,
      'win rate in percent, as if both outputs had the same length',
    ),
  }

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the instructions.

    Raises:
      InputError: naming an instruction that cannot be encoded.
    """
    c = inputs.config.evaluation.alpaca_eval
    self.stop: tuple[str, ...] = ()
    self.max_new_tokens: int = c.max_new_tokens
    self.about: Mapping[str, Any] = {
      'protocol': 'alpaca_eval',
      'shots': 0,
      'template': inputs.config.prompt.template,
      'extractor': None,
    }
    items = []
    for record in read(c.path, c.limit):
      with errors.about_prompt(record['id']):
        tokens, truncated = inputs.prompt_format.encode_prompt(
          record['instruction'],
          inputs.context - c.max_new_tokens,
          for_response=True,
        )
      items.append(
        Item(
          record['id'],
          None,
          '',
          (Generate(tokens, truncated),),
          category=record['dataset'],
          text=record['instruction'],
        )
      )
    self.items: Sequence[Item] = items
    self.counts: Mapping[str, int] = {
      'prompts_truncated': sum(item.requests[0].truncated for item in items)
    }

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing files; see Task.check."""
    c = config.evaluation.alpaca_eval
    if not c.path:
      raise errors.InputError(
        f'{_PATH} is empty: name a file of instructions, such as '
        'alpaca_eval.json'
      )
    errors.refuse_below('evaluation.alpaca_eval.limit', c.limit, 0)
    benchmarks.check_max_new_tokens(config, AlpacaEval.name, 0)
    instructions = [record['instruction'] for record in read(c.path, c.limit)]
    _check_judge(config)
    _check_reference(config, instructions)
    if c.gamed_path:
      count = len(win_rate.read_gamed(c.gamed_path).difficulty)
      whole = len(read(c.path, 0))
      if whole != count:
        raise errors.InputError(
          f'evaluation.alpaca_eval.gamed_path has {count:,} instructions, and '
          f'{c.path} has {whole:,}: leave the option empty, unless these are '
          "AlpacaEval's own, in their order"
        )

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """What the outputs depend on; judging adds the judge."""
    c = config.evaluation.alpaca_eval
    return {
      _PATH: benchmarks.hash_source(c.path),
      'evaluation.alpaca_eval.limit': c.limit,
      'evaluation.alpaca_eval.max_new_tokens': c.max_new_tokens,
    }

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """The answer; it has no metrics before it is judged."""
    (response,) = responses
    (request,) = item.requests
    assert isinstance(response, Generated)
    return {
      'prediction': response.text,
      **generation_columns(request, response),
    }


def read(path: str, limit: int) -> list[dict[str, Any]]:
  """Instructions with id and dataset (None if unknown), at most `limit`.

  Raises:
    InputError: naming an instruction that is not text or occurs twice.
  """
  records = benchmarks.read(path, _PATH, _FIELDS, _OPTIONAL)
  seen = set()
  for number, record in enumerate(records):
    record.setdefault('id', str(number))
    instruction = record['instruction']
    place = f'{_PATH}: {path}, {record["id"]!r}'
    given = str(record.pop('input') or '').strip()
    if given:  # Outputs are matched by instruction alone.
      raise errors.InputError(
        f'{place} has an input ({given[:40]!r}): write it into the instruction'
      )
    if instruction in seen:
      raise errors.InputError(
        f'{place} has the instruction of another row: outputs are matched by '
        'instruction, so remove one of them'
      )
    seen.add(instruction)
    if record['dataset'] is not None:
      record['dataset'] = str(record['dataset'])
  benchmarks.refuse_duplicates(records, f'{_PATH}: {path}')
  return records[: limit or len(records)]


def _check_judge(config: ml_collections.ConfigDict) -> None:
  c = config.evaluation.alpaca_eval
  JudgePrompt.read(c.prompt_path)
  for name in ('num_parallel', 'timeout'):
    if c[name] <= 0:
      raise errors.InputError(
        f'evaluation.alpaca_eval.{name} is {c[name]}: give more than 0'
      )
  if c.judge == ENDPOINT:
    for name, example in (
      ('base_url', 'http://localhost:8000/v1'),
      ('model', "the judge's name on the server"),
    ):
      if not c[name]:
        raise errors.InputError(
          f'evaluation.alpaca_eval.judge is {ENDPOINT!r}, but '
          f'evaluation.alpaca_eval.{name} is empty: give it, as {example}'
        )
    if not c.base_url.startswith(('http://', 'https://')):
      raise errors.InputError(
        f'evaluation.alpaca_eval.base_url={c.base_url} is not an address: give '
        'one such as http://localhost:8000/v1'
      )
  elif c.judge not in ('', ANNOTATIONS):
    try:
      models.check(models.resolve(c.judge))
    except errors.InputError as error:
      raise errors.InputError(
        f'evaluation.alpaca_eval.judge: {error}; other values are '
        f'{ENDPOINT!r}, {ANNOTATIONS!r} and an empty one'
      ) from None


def _check_reference(
  config: ml_collections.ConfigDict, instructions: Sequence[str]
) -> None:
  c = config.evaluation.alpaca_eval
  option = 'evaluation.alpaca_eval.reference'
  if c.reference != RANDOM:
    known = pairs.read_outputs(pathlib.Path(c.reference), option)
    pairs.join(
      dict.fromkeys(instructions, ''), known, (_PATH, f'{option}={c.reference}')
    )
    return
  if RANDOM not in config.selection.strategies:
    raise errors.InputError(
      f'{option} is {RANDOM!r}, which is not in selection.strategies: add it, '
      'or name a file of outputs'
    )
  known_seeds = study.seeds(config, RANDOM)
  if lacking := sorted(set(config.study.seeds) - set(known_seeds)):
    raise errors.InputError(
      f'{option} is {RANDOM!r}, but study.random_seeds has no {lacking[0]}: '
      'each strategy is compared with random for the same seed'
    )
