"""The finetune stage: selections and their answers -> runs/CELL/model."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import shutil
from typing import Any

import ml_collections

from edsft_jax import console, errors, models, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import batches, memory, train_loop
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.models import lora, responses


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
  for cell in study.cells(config):
    selection = workdir.selection(cell.strategy, cell.seed)
    store.require(selection, 'select', planned)


def check_options(config: ml_collections.ConfigDict) -> None:
  """Rejects bad hyperparameters, and a model that does not support them.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.finetuning
  context = models.check(models.resolve(config.model.path)).context
  if c.method not in trainer_lib.METHODS:
    raise errors.unknown(
      f'finetuning.method {c.method!r}', c.method, trainer_lib.METHODS
    )
  memory.MemoryOptions.of(c).check()
  unknown = [name for name in c.lora_targets if name not in lora.TARGETS]
  if unknown or not c.lora_targets:
    raise errors.InputError(
      f'finetuning.lora_targets is {tuple(c.lora_targets)}: choose from '
      f'{", ".join(lora.TARGETS)}'
    )
  for name in (
    'lora_rank',
    'epochs',
    'batch_size',
    'checkpoint_steps',
    'log_steps',
  ):
    if c[name] < 1:
      raise errors.InputError(
        f'finetuning.{name} is {c[name]}: must be at least 1'
      )
  for name in ('lora_alpha', 'learning_rate', 'clip_norm'):
    if not 0 < c[name] < math.inf:
      raise errors.InputError(
        f'finetuning.{name} is {c[name]}: must be above 0'
      )
  if not 0 <= c.weight_decay < math.inf:
    raise errors.InputError(
      f'finetuning.weight_decay is {c.weight_decay}: must be at least 0'
    )
  if not 0 <= c.warmup_fraction <= 1:
    raise errors.InputError(
      f'finetuning.warmup_fraction is {c.warmup_fraction}: must be from 0 to 1'
    )
  if c.max_length and not 2 <= c.max_length <= context:
    raise errors.InputError(
      f'finetuning.max_length is {c.max_length}: give 2 to {context}, the '
      "model's context, or 0 for all of it"
    )


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Finetunes every cell of the study; resumes an interrupted run.

  Raises:
    InputError: a cell was made from other inputs, an answer is missing, or
      the loss is not finite.
  """
  check(config, workdir, frozenset())
  c = config.finetuning
  hyperparameters = trainer_lib.Hyperparameters(
    **{
      f.name: c[f.name] for f in dataclasses.fields(trainer_lib.Hyperparameters)
    }
  )
  path = models.resolve(config.model.path)
  options = _options(config, hyperparameters, path)
  cells = _cells(config, workdir)
  _remove_outdated(workdir, cells)
  manifest = store.Manifest(workdir)
  if not any(workdir.runs.glob('*/model')):
    manifest.forget('finetune')
  manifest.begin(
    'finetune',
    options,
    f'set it back, remove {workdir.runs} to finetune every cell again, or use '
    'another --workdir',
  )
  todo = [
    cell for cell, ids in cells.items() if _begin(workdir, cell, ids, options)
  ]
  if not todo:
    console.say('finetune', f'{len(cells)} cells, all already done')
    return
  with manifest.timed('finetune'):
    counts = _finetune(config, workdir, hyperparameters, path, cells, todo)
  manifest.finish('finetune', counts)
  console.say(
    'finetune',
    f'{console.count(counts["cells"], "cell")}, '
    f'{console.count(counts["steps"], "step")}, '
    f'{counts["response_tokens"]:,} response tokens in '
    f'{console.count(counts["examples"], "answer")}, '
    f'{console.count(counts["prompts_truncated"], "prompt")} truncated, '
    f'{console.count(counts["responses_cut"], "answer")} cut -> {workdir.runs}',
  )


# A cell's examples: id, prompt and answer.
_Triples = list[tuple[str, store.Prompt, str]]
# Cells that wait for answers, with how many they lack, and the first prompt of
# these; None if rejected picks have not been replaced.
_Waiting = list[tuple[study.Cell, int, str | None]]


def _cells(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[study.Cell, _Triples]:
  """Every cell that has its answers with its examples, in greedy order.

  Raises:
    InputError: no cell has all of its answers.
  """
  pool = store.read_prompts(workdir.pool)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  answers = store.read_responses(workdir.responses)

  def triples(ids: Sequence[str]) -> _Triples:
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
  workdir: store.Workdir, cells: Mapping[study.Cell, _Triples]
) -> None:
  """Removes cells of the study whose answers were corrected since."""
  for cell in study.outdated(workdir):
    run = workdir.run(cell.name)
    if cell in cells and run.model.exists():
      console.say('finetune', f'{cell.name}: corrected answers, made again')
      shutil.rmtree(run.root)


def _options(
  config: ml_collections.ConfigDict,
  hyperparameters: trainer_lib.Hyperparameters,
  path: pathlib.Path,
) -> dict[str, Any]:
  """The inputs that the weights of every cell depend on, by name."""
  fields = dataclasses.asdict(hyperparameters)
  if hyperparameters.method != 'lora':
    fields = {k: v for k, v in fields.items() if not k.startswith('lora_')}
  return {
    **models.fingerprint(path, config.model.dtype, config.prompt),
    **{f'finetuning.{name}': value for name, value in fields.items()},
  }


def _begin(
  workdir: store.Workdir,
  cell: study.Cell,
  examples: _Triples,
  options: Mapping[str, Any],
) -> bool:
  """Prepares a cell's folder; returns False if the cell is done.

  Raises:
    InputError: the cell is done, but was made from other inputs.
  """
  run = workdir.run(cell.name)
  fingerprint = {
    **options,
    'prompts and answers': store.hash_json(examples),
  }
  old = store.read_json(run.cell) if run.cell.exists() else None
  if run.model.exists():
    store.refuse_change(
      f'finetune cell {cell.name}',
      old['fingerprint'] if old else {},
      fingerprint,
      f'set it back, delete {run.root} or use another --workdir',
    )
    if run.checkpoints.exists():
      shutil.rmtree(run.checkpoints)
    return False
  new = store.plain({**dataclasses.asdict(cell), 'fingerprint': fingerprint})
  if old != new:
    # Started with other inputs and never finished: start over.
    if run.root.exists():
      shutil.rmtree(run.root)
    store.write_json(run.cell, new)
  return True


def _encode(
  prompt_format: models.PromptFormat,
  cells: Mapping[study.Cell, _Triples],
  max_length: int,
) -> dict[str, responses.Example]:
  """Tokenises the prompts of all cells with their answers; by id."""
  encoded = {}
  for triples in cells.values():
    for i, prompt, answer in triples:
      if i not in encoded:
        with errors.about_prompt(i):
          encoded[i] = responses.encode(
            prompt_format, prompt, answer, max_length
          )
  return encoded


def _num_with_control_tokens(
  prompt_format: models.PromptFormat, cells: Mapping[study.Cell, _Triples]
) -> int:
  """Number of different examples whose text has control tokens."""
  examples = {x[0]: x for triples in cells.values() for x in triples}
  return sum(
    prompt_format.num_control_tokens(prompt, answer) > 0
    for _, prompt, answer in examples.values()
  )


def _finetune(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  hyperparameters: trainer_lib.Hyperparameters,
  path: pathlib.Path,
  cells: Mapping[study.Cell, _Triples],
  todo: Sequence[study.Cell],
) -> dict[str, int]:
  """Finetunes the cells of `todo`; returns the counts of all cells."""
  prompt_format = models.load_prompt_format(path, **config.prompt)
  with_control = _num_with_control_tokens(prompt_format, cells)
  if with_control:
    examples = console.count(with_control, 'example')
    console.say(
      'finetune',
      f'{examples} with control tokens, {prompt_format.control_note}',
    )
  mesh = mesh_lib.make_mesh(**config.mesh)
  decoder = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
  encoded = _encode(
    prompt_format, cells, hyperparameters.max_length or decoder.config.context
  )
  steps = {
    cell: batches.num_steps(
      len(triples), hyperparameters.epochs, hyperparameters.batch_size
    )
    for cell, triples in cells.items()
  }
  trainer = trainer_lib.Trainer(
    decoder,
    hyperparameters,
    mesh,
    trainer_lib.MemoryOptions.of(config.finetuning),
  )
  schedule = train_loop.Schedule(
    config.finetuning.checkpoint_steps, config.finetuning.log_steps
  )
  total = sum(steps.values())
  done = total - sum(steps[cell] for cell in todo)
  with console.bar('finetune', total, 'steps', initial=done) as bar:
    for cell in todo:
      run = workdir.run(cell.name)
      state = train_loop.train(
        trainer,
        run,
        [encoded[i] for i, _, _ in cells[cell]],
        cell.seed,
        schedule=schedule,
        progress=bar.update,
      )
      with store.replacing(run.model) as partial:
        trainer.save(state, partial, path, config.model.path)
      if run.checkpoints.exists():
        shutil.rmtree(run.checkpoints)
  return {
    'cells': len(cells),
    'steps': total,
    'examples': len(encoded),
    'response_tokens': sum(e.num_response for e in encoded.values()),
    'prompts_truncated': sum(e.prompt_truncated for e in encoded.values()),
    'responses_cut': sum(e.response_cut for e in encoded.values()),
    'with_control_tokens': with_control,
  }
