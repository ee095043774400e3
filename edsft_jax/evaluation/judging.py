"""Win rates of cells on alpaca_eval, by a judge -> eval.json of each cell.

Runs at the end of the evaluate stage, once the cells' outputs are written. The
judge's answers are kept in judge/answers.jsonl as they come.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import ml_collections

from edsft_jax import console, errors, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.evaluation import matches, results, win_rate
from edsft_jax.evaluation import pairs as pairs_lib
from edsft_jax.evaluation import verdicts as verdicts_lib
from edsft_jax.evaluation.endpoint import Endpoint
from edsft_jax.evaluation.judge_prompt import JudgePrompt
from edsft_jax.evaluation.judges import EndpointJudge, Judge, ModelJudge
from edsft_jax.evaluation.matches import Match
from edsft_jax.evaluation.tasks.alpaca_eval import (
  ANNOTATIONS,
  ENDPOINT,
  RANDOM,
  AlpacaEval,
)
from edsft_jax.evaluation.verdicts import Verdict

_TASK = AlpacaEval.name
_SAY = 'evaluate'
# What eval.json says about the way in which the judge answered, which is only
# known once a server is asked; '' if nobody was.
_FORM = 'preferences'


@dataclasses.dataclass(frozen=True)
class _Judged:
  """What a judge said.

  Attributes:
    verdicts: of each cell, for all of its pairs.
    form: how it answered, see Judge.form; '' if nobody was asked.
    judge: its name.
  """

  verdicts: dict[study.Cell, list[Verdict]] = dataclasses.field(
    default_factory=dict
  )
  form: str = ''
  judge: str = ''


def run(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  cells: Sequence[study.Cell],
) -> dict[str, int]:
  """Judges the cells that have outputs and no win rates yet.

  Args:
    config: see edsft_jax/config.py.
    workdir: the study's folder.
    cells: the cells of the study.

  Returns:
    Counts for the manifest.

  Raises:
    InputError: a cell was judged by other means, or the judge fails on
      everything.
  """
  c = config.evaluation.alpaca_eval
  if not c.judge:
    console.say(
      _SAY,
      f'outputs.json of each cell is in {workdir.runs}/*/evaluations/{_TASK}; '
      'set evaluation.alpaca_eval.judge for win rates',
    )
    return {}
  todo = matches.pending(config, workdir, cells)
  if not todo:
    return {}
  if c.judge == ANNOTATIONS:
    judged = _read(workdir, todo)
  else:
    judged = _ask(config, workdir, todo)
  _refuse_mixed(workdir, cells, judged.form)
  left_out = _failed(todo, judged) if c.leave_out_failed else frozenset()
  num_judged = 0
  for cell, verdicts in judged.verdicts.items():
    kept = [
      i
      for i, pair in enumerate(todo[cell].pairs)
      if pair.instruction not in left_out
    ]
    if kept and all(verdicts[i].preference is not None for i in kept):
      files = workdir.run(cell.name)
      _write(config, files, cell, todo[cell], judged, kept)
      num_judged += 1
  _report(c, judged, num_judged, len(left_out))
  return {f'{_TASK}_judged_models': num_judged}


def _read(workdir: store.Workdir, todo: Mapping[study.Cell, Match]) -> _Judged:
  """Reads the annotations.json of each cell that has one."""
  judged = _Judged(form=ANNOTATIONS)
  names: dict[str, None] = {}
  lacking = []
  for cell, match in todo.items():
    path = workdir.run(cell.name).annotations(_TASK)
    preferences: Sequence[float | None] = [None] * len(match.pairs)
    if path.exists():
      option = 'evaluation.alpaca_eval.judge'
      preferences, name = pairs_lib.read_annotations(path, match.pairs, option)
      names[name] = None
    elif not all(pair.is_tie for pair in match.pairs):
      lacking.append(path)
      continue
    judged.verdicts[cell] = [
      Verdict(1.5 if pair.is_tie else preference, reason='not annotated')
      for pair, preference in zip(match.pairs, preferences, strict=True)
    ]
  if lacking:
    console.say(
      _SAY,
      f'{console.count(len(lacking), "cell")} without annotations.json (the '
      f'first is {lacking[0]}): make it with alpaca_eval, with outputs.json '
      'next to it as --model_outputs',
    )
  return dataclasses.replace(judged, judge=' and '.join(names))


def _ask(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  todo: Mapping[study.Cell, Match],
) -> _Judged:
  """Asks the judge.

  Raises:
    InputError: it failed on everything that it was asked.
  """
  c = config.evaluation.alpaca_eval
  pairs = [pair for match in todo.values() for pair in match.pairs]
  num_questions = sum(not pair.is_tie for pair in pairs) * (1 + c.both_orders)
  if not num_questions:  # Random, compared with itself.
    ties = {cell: [Verdict(1.5)] * len(m.pairs) for cell, m in todo.items()}
    return _Judged(ties)
  prompt = JudgePrompt.read(c.prompt_path)
  judge = _load(config, prompt)
  console.say(
    _SAY,
    f'{console.count(num_questions, "question")} about '
    f'{console.count(len(todo), "model")} for the judge {judge.name}: '
    f'preferences are {judge.note}',
  )
  with console.bar('judge', num_questions, 'answers') as bar:
    verdicts = verdicts_lib.judge_pairs(
      judge,
      prompt,
      pairs,
      verdicts_lib.Answers(workdir.judge_answers),
      both_orders=c.both_orders,
      progress=bar.update,
    )
  asked = [v for v, p in zip(verdicts, pairs, strict=True) if not p.is_tie]
  if all(verdict.preference is None for verdict in asked):
    raise errors.InputError(
      f'the judge {judge.name} failed on all of '
      f'{console.count(len(asked), "pair")}: {verdicts_lib.failures(asked)}'
    )
  remaining = iter(verdicts)
  found = {
    cell: [next(remaining) for _ in match.pairs] for cell, match in todo.items()
  }
  return _Judged(found, judge.form, judge.name)


def _refuse_mixed(
  workdir: store.Workdir, cells: Sequence[study.Cell], form: str
) -> None:
  """Rejects probabilities for some cells and words for others.

  Raises:
    InputError: naming a cell that was judged in another way.
  """
  for cell in cells:
    path = workdir.run(cell.name).evaluation(_TASK)
    known = store.read_evaluation(path).get(_FORM) if path.exists() else ''
    if known and form and known != form:
      raise errors.InputError(
        f'the judge now answers by {form}, and {path} was made by {known}: use '
        'the same server, or remove it and those of other cells'
      )


def _load(config: ml_collections.ConfigDict, prompt: JudgePrompt) -> Judge:
  c = config.evaluation.alpaca_eval
  if c.judge == ENDPOINT:
    endpoint = Endpoint(c.base_url, c.model, timeout=c.timeout)
    return EndpointJudge(endpoint, prompt, c.num_parallel)
  mesh = mesh_lib.model_mesh(**config.mesh)
  if mesh.is_multi_process:
    # Other processes wait, so their devices cannot take part.
    mesh = mesh_lib.make_mesh(1, -1, 1, devices=jax.local_devices())
  return ModelJudge(
    c.judge, config.model.dtype, mesh, config.evaluation.batch_tokens
  )


def _failed(
  todo: Mapping[study.Cell, Match], judged: _Judged
) -> frozenset[str]:
  """Instructions on which the judge failed for some cell."""
  return frozenset(
    pair.instruction
    for cell, verdicts in judged.verdicts.items()
    for pair, verdict in zip(todo[cell].pairs, verdicts, strict=True)
    if verdict.preference is None
  )


def _write(
  config: ml_collections.ConfigDict,
  run: store.Run,
  cell: study.Cell,
  match: Match,
  judged: _Judged,
  kept: Sequence[int],
) -> None:
  """Writes annotations.json, items.jsonl and eval.json of a cell.

  Args:
    config: see edsft_jax/config.py.
    run: the cell's files.
    cell: the cell.
    match: its outputs.
    judged: what the judge said.
    kept: the pairs that count.
  """
  c = config.evaluation.alpaca_eval
  verdicts = judged.verdicts[cell]
  if c.judge != ANNOTATIONS:
    annotations = pairs_lib.annotations(
      match.pairs,
      [verdict.preference for verdict in verdicts],
      generators=(match.reference, cell.name),
      annotator=judged.judge,
    )
    store.write_json(run.annotations(_TASK), annotations)
  generated = results.read_generation(run.generation(_TASK))
  about = {
    'version': generated['version'],
    **generated['about'],
    'judge': judged.judge,
    'reference': match.reference,
    _FORM: judged.form,
    'counts': {**generated['counts'], **_counts(verdicts)},
    'fingerprint': match.fingerprint,
  }
  relative = c.reference == RANDOM
  reference = RANDOM if relative else match.reference
  metrics = {
    name: dataclasses.replace(
      metric,
      label=f'{metric.label} against {reference}',
      against_random=relative,
    )
    for name, metric in AlpacaEval.metrics.items()
  }
  gamed = win_rate.read_gamed(c.gamed_path) if c.gamed_path else None
  rows = _rows(match, verdicts, kept, gamed)
  results.check_rows(rows, metrics, _TASK, cell)
  results.write_evaluation(run, cell, _TASK, rows, metrics, about)


def _rows(
  match: Match,
  verdicts: Sequence[Verdict],
  kept: Sequence[int],
  gamed: win_rate.Gamed | None,
) -> list[dict[str, Any]]:
  """The rows of items.jsonl."""
  pairs = [match.pairs[i] for i in kept]
  preferences = [
    preference
    for i in kept
    if (preference := verdicts[i].preference) is not None
  ]
  controlled = win_rate.length_controlled(
    preferences,
    [len(pair.output) for pair in pairs],
    [len(pair.reference) for pair in pairs],
    gamed,
    kept,
  ).tolist()
  rows = []
  for i, pair, preference, value in zip(
    kept, pairs, preferences, controlled, strict=True
  ):
    own = match.outputs[i]
    row = {
      'id': own['id'],
      'task': None,
      'reference': pair.reference,
      'prediction': pair.output,
      'win_rate': 100 * (preference - 1),
      'length_controlled_win_rate': value,
      'consistent': verdicts[i].consistent,
      **{name: own[name] for name in results.GENERATION_COLUMNS},
    }
    if own['dataset']:
      row['category'] = own['dataset']
    rows.append(row)
  return rows


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
  both = [v.consistent for v in verdicts if v.consistent is not None]
  return {
    'failed_pairs': sum(v.preference is None for v in verdicts),
    'pairs_in_both_orders': len(both),
    'consistent_pairs': sum(both),
    'judge_tokens': sum(v.num_tokens for v in verdicts),
  }


def _report(
  c: ml_collections.ConfigDict,
  judged: _Judged,
  num_judged: int,
  num_left_out: int,
) -> None:
  """Says what was judged, what it cost and what failed."""
  verdicts = [verdict for some in judged.verdicts.values() for verdict in some]
  counts = _counts(verdicts)
  cost = counts['judge_tokens'] / 1e6 * c.price_per_million_tokens
  parts = [f'win rates of {console.count(num_judged, "model")}']
  if counts['judge_tokens']:
    price = f', which cost {cost:,.2f}' if cost else ''
    parts.append(f'{counts["judge_tokens"]:,} tokens{price}')
  if both := counts['pairs_in_both_orders']:
    parts.append(verdicts_lib.agreement(counts['consistent_pairs'], both))
  console.say(_SAY, '; '.join(parts))
  if failed := counts['failed_pairs']:
    remedy = f'{console.count(num_left_out, "instruction")} left out for all'
    if not num_left_out:
      without = console.count(len(judged.verdicts) - num_judged, 'model')
      remedy = (
        f'{without} without a win rate: run the same command again, or set '
        'evaluation.alpaca_eval.leave_out_failed'
      )
    console.say(
      _SAY,
      f'the judge failed on {console.count(failed, "pair")} '
      f'({verdicts_lib.failures(verdicts)}); {remedy}',
    )
