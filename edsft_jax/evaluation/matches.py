"""Which outputs a judge compares: each cell's, and those of its reference."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import ml_collections

from edsft_jax import console, models, store, study
from edsft_jax.evaluation import benchmarks, results
from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.pairs import Pair
from edsft_jax.evaluation.tasks.alpaca_eval import (
  ANNOTATIONS,
  ENDPOINT,
  RANDOM,
  AlpacaEval,
)

_TASK = AlpacaEval.name
_OPTION = 'evaluation.alpaca_eval'


@dataclasses.dataclass(frozen=True)
class Match:
  """The outputs of a cell against those of its reference.

  Attributes:
    outputs: the rows of the cell's outputs.json.
    pairs: the same outputs, with those of the reference.
    reference: name of the reference's generator.
    fingerprint: what the cell's eval.json depends on.
  """

  outputs: Sequence[Mapping[str, Any]]
  pairs: Sequence[Pair]
  reference: str
  fingerprint: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Reference:
  """Outputs to compare with, and the name of their generator."""

  outputs: Mapping[str, str]
  name: str


def pending(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  cells: Sequence[study.Cell],
) -> dict[study.Cell, Match]:
  """The cells that have outputs and a reference, but no win rates to keep.

  Raises:
    InputError: one was judged by other means.
  """
  c = config.evaluation.alpaca_eval
  options = _options(config)
  find = functools.cache(functools.partial(_reference, c.reference, workdir))
  found, waiting = {}, []
  for cell in cells:
    run = workdir.run(cell.name)
    if not run.generation(_TASK).exists() or not _is_compared(cell, c):
      continue
    place = (cell.budget, cell.seed) if c.reference == RANDOM else ()
    reference = find(*place)
    if reference is None:
      waiting.append(cell.name)
      continue
    fingerprint = _fingerprint(run, options, reference)
    num_judged = _num_judged(run, cell.name, fingerprint)
    path = run.outputs(_TASK)
    rows = pairs_lib.read_list(path, _OPTION)
    # What other cells leave out may have changed; the answers are known.
    if num_judged == len(rows) and not c.leave_out_failed:
      continue
    own = pairs_lib.by_instruction(rows, str(path))
    pairs = pairs_lib.join(own, reference.outputs, (str(path), reference.name))
    found[cell] = Match(rows, pairs, reference.name, fingerprint)
  if waiting:
    console.say(
      'evaluate',
      f'{console.count(len(waiting), "cell")} cannot be judged before random '
      f'has outputs at the same budget and seed (the first is {waiting[0]})',
    )
  return found


def _is_compared(cell: study.Cell, c: ml_collections.ConfigDict) -> bool:
  """Whether there is a reference: random only has the study's budgets."""
  references = (study.FULL_POOL, study.NO_FINETUNING)
  return c.reference != RANDOM or cell.strategy not in references


def _reference(
  option: str, workdir: store.Workdir, *place: int
) -> _Reference | None:
  """The outputs in a file, or those of random at a budget and seed.

  None if random has none yet.
  """
  if option == RANDOM:
    name = study.Cell(RANDOM, *place).name
    run = workdir.run(name)
    if not run.generation(_TASK).exists():
      return None
    path = run.outputs(_TASK)
  else:
    path = pathlib.Path(option)
  rows = pairs_lib.read_list(path, f'{_OPTION}.reference')
  outputs = pairs_lib.by_instruction(rows, str(path))
  return _Reference(outputs, str(rows[0].get('generator') or path.stem))


def _fingerprint(
  run: store.Run, options: Mapping[str, Any], reference: _Reference
) -> dict[str, Any]:
  made_from = results.read_generation(run.generation(_TASK))['fingerprint']
  # The reference counts as the cell's: random has other outputs for each budget
  # and seed.
  cell = store.hash_json([made_from['cell'], sorted(reference.outputs.items())])
  return store.plain({**made_from, **options, 'cell': cell})


def _num_judged(
  run: store.Run, name: str, fingerprint: Mapping[str, Any]
) -> int:
  """Number of pairs that a cell's win rate is made from.

  Raises:
    InputError: they were made by other means.
  """
  path = run.evaluation(_TASK)
  if not path.exists():
    return 0
  contents = store.read_evaluation(path)
  store.refuse_change(
    f'the win rate of {name}',
    contents['fingerprint'],
    fingerprint,
    f'set it back, remove {path} (and those of other cells) to judge again, or '
    'use another --workdir',
  )
  return contents['metrics']['win_rate']['n']


def _options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What win rates depend on besides outputs and reference."""
  c = config.evaluation.alpaca_eval
  judge = c.judge
  if judge == ENDPOINT:
    judge = f'{ENDPOINT} {c.model}'
  elif judge != ANNOTATIONS:
    judge = models.hash_model(models.resolve(judge))
  reference = c.reference
  if reference != RANDOM:
    reference = benchmarks.hash_source(reference)
  gamed = benchmarks.hash_source(c.gamed_path) if c.gamed_path else ''
  found = {
    'judge': judge,
    'reference': reference,
    'prompt_path': store.hash_json(JudgePrompt.read(c.prompt_path).text),
    'both_orders': c.both_orders,
    'gamed_path': gamed,
  }
  return {f'{_OPTION}.{k}': value for k, value in found.items()}
