"""The evaluate stage: every model on every task -> runs/CELL/evaluations/."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

from flax import nnx
import jax
import ml_collections
import tqdm

from edsft_jax import console, errors, models, processes, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.evaluation import contamination, judging, results
from edsft_jax.evaluation import tasks as tasks_lib
from edsft_jax.evaluation.evaluator import Evaluator
from edsft_jax.evaluation.task import Task, TaskInputs
from edsft_jax.inference.throughput import Rate
from edsft_jax.models import lora


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad options, an unusable model and missing inputs of the tasks.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.evaluation
  study.check(config)
  _check_names(config)
  context = models.check(models.resolve(config.model.path)).context
  if not 1 <= c.max_new_tokens < context:
    raise errors.InputError(
      f'evaluation.max_new_tokens is {c.max_new_tokens}: give 1 to '
      f"{context - 1}, so that a prompt fits the model's context of {context}"
    )
  errors.refuse_below('evaluation.batch_tokens', c.batch_tokens, 1)
  mesh_lib.make_mesh(**config.mesh)
  for name in c.tasks:
    tasks_lib.find(name, config).check(config, workdir, planned)


def _check_names(config: ml_collections.ConfigDict) -> None:
  names = config.evaluation.tasks
  if not names:
    raise errors.InputError('evaluation.tasks is empty: name at least one')
  for name in names:
    tasks_lib.find(name, config)
  if len(set(names)) != len(names):
    raise errors.InputError(
      f'evaluation.tasks has duplicates ({", ".join(names)}): name each once'
    )


def check_metric(config: ml_collections.ConfigDict) -> None:
  """Rejects a report.metric that none of the tasks has.

  Raises:
    InputError: listing the metrics that they have.
  """
  _check_names(config)
  known = tasks_lib.metrics(config)
  metric = config.report.metric
  if metric not in known:
    tasks = ', '.join(config.evaluation.tasks)
    raise errors.unknown(
      f'report.metric {metric!r} for evaluation.tasks ({tasks})', metric, known
    )


def run(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  part: study.CellPart | None = None,
) -> None:
  """Evaluates the base model and every finetuned cell, once on each task.

  Several processes divide the items. The first decides what is left to do, and
  joins the results.

  Args:
    config: see edsft_jax/config.py.
    workdir: the study's folder.
    part: the part of the cells that is this command's; None: all.

  Raises:
    InputError: a cell was evaluated with other inputs, or some process does
      not see the workdir as it is.
  """
  check(config, workdir, frozenset())
  path = models.resolve(config.model.path)
  options = _options(config, workdir, path)
  store.refuse_other_inputs(
    {
      f'{task}: {name}': value
      for task, inputs in options.items()
      for name, value in inputs.items()
    }
  )
  manifest = store.Manifest(workdir)
  cells, todo = _decided_by_first(
    lambda: _begin(config, workdir, manifest, options, part), options
  )
  first = processes.is_first()
  counts: dict[str, dict[str, int]] = {}
  if todo:
    with manifest.timed('evaluate') if first else contextlib.nullcontext():
      if first:
        manifest.record_versions('evaluate')
      counts = _evaluate(config, workdir, path, todo)
  else:
    console.say('evaluate', f'{len(cells)} models, all already done')
  if part and todo:
    if first:
      manifest.add_counts('evaluate', _flat(counts))
    console.say(
      'evaluate',
      f'{console.count(len(cells), "model")} -> {workdir.runs}; when every '
      'part is done, run the command once without --cells',
    )
  elif first and not part:
    _say_counts(counts, todo, workdir)
    # Other tasks were counted by earlier runs.
    found = {**manifest.counts('evaluate'), 'models': len(cells)}
    found |= _flat(counts)
    if not tasks_lib.JUDGED.isdisjoint(config.evaluation.tasks):
      with manifest.timed('evaluate'):
        found |= judging.run(config, workdir, cells)
    manifest.finish('evaluate', found)


def _decided_by_first(
  begin: Callable[[], dict[str, Any]],
  options: Mapping[str, Mapping[str, Any]],
) -> tuple[list[study.Cell], dict[str, '_Todo']]:
  """The stage's cells, and for each task those to evaluate.

  Only the first process calls `begin`; the others get its result.
  """
  begun = processes.from_first('models to evaluate', begin)
  cells = [study.Cell(**fields) for fields in begun['cells']]
  todo: dict[str, _Todo] = {
    task: {
      cell: _fingerprint(options[task], hashes[cell.name])
      for cell in cells
      if cell.name in hashes
    }
    for task, hashes in begun['todo'].items()
  }
  return cells, todo


def _begin(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  options: Mapping[str, Mapping[str, Any]],
  part: study.CellPart | None,
) -> dict[str, Any]:
  """Begins the stage; returns its cells, and for each task those to evaluate.

  The cells to evaluate are names, each with a hash of what its model was made
  from.

  Raises:
    InputError: a cell was evaluated with other inputs.
  """
  cells = _cells(config, workdir)
  if part:
    cells = part.of(cells)
  known = manifest.stages.get('evaluate')
  if known and known.fingerprint:
    # Older versions had one fingerprint here; now each eval.json has its own.
    manifest.forget('evaluate')
  manifest.begin('evaluate', {})
  todo = {
    name: _pending(config, workdir, name, cells, options[name])
    for name in config.evaluation.tasks
  }
  return {
    'cells': [dataclasses.asdict(cell) for cell in cells],
    'todo': {name: hashes for name, hashes in todo.items() if hashes},
  }


def _flat(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
  return {
    f'{task}_{name}': number
    for task, numbers in counts.items()
    for name, number in numbers.items()
  }


def _say_counts(
  counts: Mapping[str, Mapping[str, int]],
  todo: Mapping[str, '_Todo'],
  workdir: store.Workdir,
) -> None:
  """Says what each task was evaluated on."""
  for task, numbers in counts.items():
    listed = ''.join(
      f', {number:,} {name.replace("_", " ")}'
      for name, number in numbers.items()
      if name != 'items'
    )
    console.say(
      'evaluate',
      f'{console.count(len(todo[task]), "model")} on '
      f'{console.count(numbers["items"], "item")} of {task}{listed} -> '
      f'{workdir.runs}',
    )


def _cells(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[study.Cell]:
  """The base model, then every finished cell of the study."""
  num_prompts = len(store.read_prompts(workdir.pool))
  cells = study.cells(config)
  outdated = study.outdated(workdir)

  def is_finished(cell: study.Cell) -> bool:
    return cell not in outdated and workdir.run(cell.name).model.exists()

  unfinished = [cell for cell in cells if not is_finished(cell)]
  if unfinished:
    console.say(
      'evaluate',
      f'{len(unfinished)} of {len(cells)} cells have no model yet: run the '
      'finetune stage, when their prompts are answered (the first is '
      f'{unfinished[0].name})',
    )
  cells += study.full_pool_cells(config, num_prompts)
  return [study.no_finetuning_cell(), *filter(is_finished, cells)]


def _options(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  path: pathlib.Path,
) -> dict[str, dict[str, Any]]:
  """Task -> the inputs that its eval.json depends on, besides the cell's."""
  model = models.fingerprint(path, config.model.dtype, config.prompt)
  return {
    name: {
      'version': tasks_lib.find(name, config).version,
      **model,
      **tasks_lib.find(name, config).fingerprint(config, workdir),
    }
    for name in config.evaluation.tasks
  }


# Cells to evaluate, each with its fingerprint.
_Todo = Mapping[study.Cell, Mapping[str, Any]]


def _fingerprint(options: Mapping[str, Any], cell_hash: str) -> dict[str, Any]:
  return store.plain({**options, 'cell': cell_hash})


def _pending(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  task: str,
  cells: Sequence[study.Cell],
  options: Mapping[str, Any],
) -> dict[str, str]:
  """Names of cells not yet evaluated on a task, with hashes of their inputs.

  Raises:
    InputError: one was evaluated with other inputs.
  """
  todo = {}
  for cell in cells:
    run = workdir.run(cell.name)
    cell_hash = store.hash_json(_made_from(config, run))
    path = results.marker(run, task)
    if path.exists():
      # A command that was killed may have left them.
      shutil.rmtree(run.evaluation_shards(task), ignore_errors=True)
      store.refuse_change(
        f'the evaluation of {cell.name} on {task}',
        results.read_fingerprint(path),
        _fingerprint(options, cell_hash),
        f'set it back, remove {path} (and those of other cells) to evaluate '
        'again, or use another --workdir',
      )
    else:
      todo[cell.name] = cell_hash
  return todo


def _made_from(
  config: ml_collections.ConfigDict, run: store.Run
) -> dict[str, Any] | None:
  """What a cell's model depends on; None for the pretrained model alone."""
  if run.cell.exists():
    contents = store.read_cell(run.cell)
    return {k: v for k, v in contents.items() if k != 'training'}
  if adapter := config.finetuning.adapter_path:
    with errors.about('finetuning.adapter_path'):
      return {'adapter': models.hash_adapter(adapter)}
  return None


def _evaluate(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  path: pathlib.Path,
  todo: Mapping[str, _Todo],
) -> dict[str, dict[str, int]]:
  """Evaluates cells on the tasks; returns each task's counts."""
  prompt_format = models.load_prompt_format(path, **config.prompt)
  mesh = mesh_lib.model_mesh(**config.mesh)
  base = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
  inputs = TaskInputs(config, workdir, prompt_format, base.config.context)
  tasks = [tasks_lib.find(name, config)(inputs) for name in todo]
  counts = {}
  with _bar(sum(len(x.items) * len(todo[x.name]) for x in tasks), mesh) as bar:
    rate = Rate(bar, mesh)
    for task in tasks:
      cells = todo[task.name]
      evaluator = Evaluator(
        task,
        workdir,
        prompt_format,
        mesh,
        config.evaluation.batch_tokens,
        len(cells),
        rate,
      )
      for cell, decoder in _decoders(config, workdir, base, mesh, list(cells)):
        evaluator(cell, decoder, cells[cell])
      counts[task.name] = {'items': len(task.items), **task.counts}
  if processes.is_first():
    for task in tasks:
      overlap = _count_contaminated(config, workdir, task)
      counts[task.name]['contaminated_by_pool'] = overlap['pool']
  return counts


def _bar(num_items: int, mesh: jax.sharding.Mesh) -> tqdm.tqdm:
  """A progress bar over all items of all cells, or this process's share."""
  num = processes.count()
  if num == 1 or mesh.is_multi_process:
    return console.bar('evaluate', num_items, 'items')
  unit = f'items in one of {num} processes'
  return console.bar('evaluate', -(-num_items // num), unit)


def _count_contaminated(
  config: ml_collections.ConfigDict, workdir: store.Workdir, task: Task
) -> dict[str, Any]:
  """Writes contamination.json of a task; see contamination.count."""
  overlap = contamination.count(
    task.items,
    contamination.read_texts(workdir),
    {
      cell.name: study.selected_ids(workdir, cell.strategy, cell.seed)[
        : cell.budget
      ]
      for cell in study.cells(config)
      if workdir.selection(cell.strategy, cell.seed).exists()
    },
  )
  path = workdir.contamination
  with store.locked(workdir, path.name, wait=True):
    known = store.read_json(path) if path.exists() else {}
    store.write_json(path, {**known, task.name: overlap})
  return overlap


def _decoders(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  base: models.Decoder,
  mesh: jax.sharding.Mesh,
  cells: Sequence[study.Cell],
) -> Iterator[tuple[study.Cell, models.Decoder]]:
  """Yields each cell's model; adapters share the base model's weights."""
  c = config.finetuning
  for cell in cells:
    directory = workdir.run(cell.name).model
    if cell != study.no_finetuning_cell():
      processes.await_files([directory])
    if (directory / lora.ADAPTER_CONFIG).exists():
      decoder = nnx.merge(*nnx.split(base))
      models.load_adapter(decoder, directory)
    elif cell != study.no_finetuning_cell():
      decoder = models.load_decoder(
        directory, dtype=config.model.dtype, mesh=mesh
      )
    else:
      decoder = nnx.merge(*nnx.split(base))
      if c.adapter_path:
        with errors.about('finetuning.adapter_path'):
          models.load_adapter(decoder, c.adapter_path)
      elif c.method == 'lora':
        # A new adapter changes no output, and lets the base model share the
        # program of the finetuned ones.
        models.add_lora(
          decoder,
          c.lora_rank,
          c.lora_alpha,
          c.lora_targets,
          nnx.Rngs(0),
          c.rslora,
        )
    models.shard_decoder(decoder, mesh)
    yield cell, decoder
