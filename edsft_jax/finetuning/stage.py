"""The finetune stage: selections and their answers -> runs/CELL/model."""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

import ml_collections

from edsft_jax import console, errors, models, processes, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import options, runner
from edsft_jax.finetuning.options import check_options
from edsft_jax.models import lora


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad hyperparameters, an unusable model and missing inputs.

  Raises:
    InputError: naming the option or the file.
  """
  study.check(config)
  check_options(config)
  mesh_lib.make_mesh(**config.mesh)
  store.require(workdir.pool, 'pool', planned)
  store.require(workdir.responses, 'annotate', planned)
  if config.finetuning.eval_steps and 'pool' not in planned:
    _require_heldout(workdir)
  for cell in study.cells(config):
    selection = workdir.selection(cell.strategy, cell.seed)
    store.require(selection, 'select', planned)


def _require_heldout(workdir: store.Workdir) -> None:
  if not workdir.heldout.exists():
    raise errors.InputError(
      f'finetuning.eval_steps needs {workdir.heldout}, which this study does '
      'not have: set pool.heldout_path, or leave it at 0'
    )


def _hash_heldout(workdir: store.Workdir) -> str:
  """Hash of what keep_best and early_stopping depend on."""
  heldout = store.read_prompts(workdir.heldout)
  answers = store.read_responses(workdir.heldout)
  return store.hash_json(
    [
      (prompt, answers[i])
      for i, prompt in zip(heldout.ids, heldout.prompts, strict=True)
    ]
  )


def run(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  part: study.CellPart | None = None,
) -> None:
  """Finetunes every cell of the study; resumes an interrupted run.

  Several processes train each cell together, on one mesh. The first decides
  what is left to do, and writes.

  Args:
    config: see edsft_jax/config.py.
    workdir: the study's folder.
    part: the part of the cells that is this command's; None: all.

  Raises:
    InputError: a cell was made from other inputs, an answer is missing, a
      checkpoint is damaged, the loss is not finite, or some process does not
      see the workdir as it is.
  """
  check(config, workdir, frozenset())
  path = models.resolve(config.model.path)
  cells = _cells(config, workdir)
  mine = part.of(list(cells)) if part else list(cells)
  inputs = options.fingerprint(config, path)
  if config.finetuning.keep_best or config.finetuning.early_stopping:
    inputs['held-out prompts and answers'] = _hash_heldout(workdir)
  hashes = {cell.name: store.hash_json(cells[cell]) for cell in mine}
  store.refuse_other_inputs({**inputs, **hashes})
  fingerprints = {
    cell: store.plain({**inputs, 'prompts and answers': hashes[cell.name]})
    for cell in mine
  }
  manifest = store.Manifest(workdir)
  names = processes.from_first(
    'cells to finetune',
    lambda: _begin(config, workdir, manifest, inputs, fingerprints, part),
  )
  if names is None:
    cells_done = console.count(len(mine), 'cell')
    console.say('finetune', f'{cells_done}, all already done')
    return
  todo = [cell for cell in mine if cell.name in names]
  first = processes.is_first()
  with manifest.timed('finetune') if first else contextlib.nullcontext():
    work = runner.Runner(config, workdir, cells, path)
    if todo:
      _say_other_base(config, path)
      if first:
        manifest.record_versions('finetune')
      work.run(todo, lambda cell: _is_done(workdir, cell, fingerprints[cell]))
  if part:
    console.say(
      'finetune',
      f'{console.count(len(mine), "cell")} of {len(cells):,} -> '
      f'{workdir.runs}; when every part is done, run the command once without '
      '--cells',
    )
  elif first:
    manifest.finish('finetune', work.counts)
    _say_counts(work.counts, workdir)


def _say_other_base(
  config: ml_collections.ConfigDict, path: pathlib.Path
) -> None:
  """Says if the adapter to start from names another base model.

  It may be the same model in another place, so this is not an error.
  """
  if not (adapter := config.finetuning.adapter_path):
    return
  named = lora.read_adapter_config(adapter, models.read_config(path)).base_name
  if named and named not in (config.model.path, models.portable_name(path)):
    console.say(
      'finetune',
      f'finetuning.adapter_path was trained on {named!r}, and model.path is '
      f'{config.model.path!r}: its weights only fit if both are the same model',
    )


def _begin(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  inputs: Mapping[str, Any],
  fingerprints: Mapping[study.Cell, Mapping[str, Any]],
  part: study.CellPart | None,
) -> list[str] | None:
  """Begins the stage; returns the names of the cells that need work.

  None if all is done; an empty list if only the record of it is missing.

  Raises:
    InputError: the stage or a cell was begun with other inputs.
  """
  _remove_outdated(workdir, fingerprints)
  if not any(workdir.runs.glob('*/cell.json')):
    manifest.forget('finetune')
  manifest.begin(
    'finetune',
    inputs,
    f'set it back, remove {workdir.runs} to finetune every cell again, or use '
    'another --workdir',
  )
  for cell, fingerprint in fingerprints.items():
    _refuse_change(workdir, cell, fingerprint)
  kind = config.finetuning.export
  todo = [
    cell.name
    for cell in fingerprints
    if runner.needs_work(workdir.run(cell.name), kind)
  ]
  is_done = part is not None or manifest.is_done('finetune')
  return None if is_done and not todo else todo


def _say_counts(counts: Mapping[str, int], workdir: store.Workdir) -> None:
  console.say(
    'finetune',
    f'{console.count(counts["cells"], "cell")}, '
    f'{console.count(counts["steps"], "step")}, '
    f'{counts["response_tokens"]:,} response tokens in '
    f'{console.count(counts["examples"], "answer")}, '
    f'{console.count(counts["prompts_truncated"], "prompt")} truncated, '
    f'{console.count(counts["responses_cut"], "answer")} cut -> {workdir.runs}',
  )


# Cells that wait for answers, with how many they lack, and the first prompt of
# these; None if rejected picks have not been replaced.
_Waiting = list[tuple[study.Cell, int, str | None]]


def _cells(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[study.Cell, runner.Triples]:
  """Every cell that has its answers with its examples, in greedy order.

  Raises:
    InputError: no cell has all of its answers.
  """
  pool = store.read_prompts(workdir.pool)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  answers = store.read_responses(workdir.responses)

  def triples(ids: Sequence[str]) -> runner.Triples:
    return [(i, prompts[i], answers[i]) for i in ids]

  result = {}
  waiting: _Waiting = []
  for cell, ids in study.cell_ids(config, workdir).items():
    if missing := study.num_missing(cell, ids, answers):
      first = next((i for i in ids if i not in answers), None)
      waiting.append((cell, missing, first))
    else:
      result[cell] = triples(ids)
  if waiting:
    _say_waiting(waiting, num_complete=len(result))
  full_pool = study.full_pool_cells(config, len(pool))
  unanswered = sum(i not in answers for i in pool.ids)
  if full_pool and unanswered:
    console.say(
      'finetune',
      f'not finetuning on the full pool: {unanswered:,} of {len(pool):,} '
      'prompts have no answer',
    )
    return result
  return result | {cell: triples(pool.ids) for cell in full_pool}


def _say_waiting(waiting: _Waiting, num_complete: int) -> None:
  """Names the cells that cannot be finetuned yet.

  Raises:
    InputError: no other cell can be.
  """
  names = [
    f'{cell.name} (lacks {missing:,} of {cell.budget:,} prompts)'
    for cell, missing, _ in waiting
  ]
  more = len(names) - _NAMES_SHOWN
  listed = ', '.join(names[:_NAMES_SHOWN])
  listed += f' and {more:,} more' if more > 0 else ''
  if not num_complete:
    first = waiting[0][2]
    named = '' if first is None else f'; the first of them is {first!r}'
    raise errors.InputError(
      f'no cell has all of its answers: {listed}{named}: run the annotate stage'
    )
  console.say(
    'finetune',
    f'{console.count(len(waiting), "cell")} of '
    f'{len(waiting) + num_complete:,} wait for answers: {listed}',
  )


_NAMES_SHOWN = 5


def _remove_outdated(
  workdir: store.Workdir, cells: Collection[study.Cell]
) -> None:
  """Removes cells of the study whose answers were corrected since."""
  for cell in study.outdated(workdir):
    if cell not in cells:
      continue
    with store.locked(workdir, cell.name) as is_free:
      if is_free:
        console.say('finetune', f'{cell.name}: corrected answers, starts again')
        shutil.rmtree(workdir.run(cell.name).root)


def _refuse_change(
  workdir: store.Workdir, cell: study.Cell, fingerprint: Mapping[str, Any]
) -> None:
  """Refuses a cell that was begun with other inputs, done or not.

  Raises:
    InputError: naming the cell and what changed.
  """
  run = workdir.run(cell.name)
  if run.cell.exists() or run.model.exists():
    old = store.read_cell(run.cell) if run.cell.exists() else {}
    store.refuse_change(
      f'finetune cell {cell.name}',
      old.get('fingerprint', {}),
      fingerprint,
      f'set it back, delete {run.root} or use another --workdir',
    )


def _is_done(
  workdir: store.Workdir, cell: study.Cell, fingerprint: Mapping[str, Any]
) -> bool:
  """Whether a cell is done; writes cell.json when it begins.

  Raises:
    InputError: another command began it with other inputs.
  """
  run = workdir.run(cell.name)

  def look() -> bool:
    _refuse_change(workdir, cell, fingerprint)
    if not run.cell.exists():
      store.write_json(
        run.cell, {**dataclasses.asdict(cell), 'fingerprint': fingerprint}
      )
    return run.model.exists()

  return processes.from_first(cell.name, look)
