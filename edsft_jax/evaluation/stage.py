"""The evaluate stage: runs/CELL/model and heldout/ -> runs/CELL/eval.json."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib.util
import pathlib
from typing import Any

from flax import nnx
import jax
import ml_collections
import numpy as np

from edsft_jax import console, errors, models, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.evaluation import evaluator as evaluator_lib
from edsft_jax.evaluation import metrics
from edsft_jax.models import lora


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses bad options, an unusable model and a missing held-out set.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.evaluation
  study.check(config)
  if importlib.util.find_spec('rouge_score') is None:
    raise errors.InputError(
      "evaluating needs rouge-score: pip install 'edsft-jax[evaluation]', or "
      'all of requirements.txt'
    )
  path = models.resolve(config.model.path)
  models.check(path)
  context = models.read_config(path).context
  if not 1 <= c.max_new_tokens < context:
    raise errors.InputError(
      f'evaluation.max_new_tokens is {c.max_new_tokens}: 1 to {context - 1}, '
      f"so that a prompt fits the model's context of {context}"
    )
  if c.batch_tokens < 1:
    raise errors.InputError(
      f'evaluation.batch_tokens is {c.batch_tokens}: at least 1'
    )
  if c.limit < 0:
    raise errors.InputError(
      f'evaluation.limit is {c.limit}: a number of prompts, or 0 for all'
    )
  mesh_lib.make_mesh(**config.mesh)
  _check_heldout(config, workdir, planned)


def _check_heldout(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  if workdir.heldout.exists():
    return
  wanted = bool(config.pool.heldout_path or config.pool.heldout_fraction)
  if 'pool' in planned and wanted:
    return
  if store.Manifest(workdir).counts('pool').get('answers') == 0:
    # The command ends at annotate, with a list of answers to buy.
    if 'annotate' in planned:
      return
    raise errors.InputError(
      'there is nothing to evaluate on, since the pool came without responses: '
      'set pool.heldout_path to a file of prompts with responses, or ask for '
      'the stages pool score select annotate finetune alone'
    )
  raise errors.InputError(
    f'{workdir.heldout} is not there: set pool.heldout_path or '
    'pool.heldout_fraction and run the pool stage'
  )


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Evaluates every finetuned cell and the base model, each once.

  Raises:
    InputError: a cell was evaluated with other inputs.
  """
  check(config, workdir, frozenset())
  path = models.resolve(config.model.path)
  options = _options(config, workdir, models.hash_model(path))
  cells = _cells(config, workdir)
  manifest = store.Manifest(workdir)
  if not any(workdir.runs.glob('*/eval.json')):
    manifest.forget('evaluate')
  manifest.begin(
    'evaluate',
    options,
    f'set it back, remove {workdir.runs}/*/eval.json to evaluate every cell '
    'anew, or use another --workdir',
  )
  fingerprints = {
    cell: _fingerprint(workdir.run(cell.name), options) for cell in cells
  }
  todo = [
    cell for cell in cells if not _done(workdir, cell, fingerprints[cell])
  ]
  if not todo:
    console.say('evaluate', f'{len(cells)} models, all done before')
    return
  with manifest.timed('evaluate'):
    heldout = _heldout(workdir, config.evaluation.limit)
    counts = _evaluate(config, workdir, path, heldout, todo, fingerprints)
  counts = {'models': len(cells), **counts}
  manifest.finish('evaluate', counts)
  console.say(
    'evaluate',
    f'{console.count(counts["models"], "model")} on '
    f'{console.count(counts["prompts"], "held-out prompt")}, '
    f'{console.count(counts["prompts_truncated"], "prompt")} truncated, '
    f'{console.count(counts["references_cut"], "reference")} cut -> '
    f'{workdir.runs}',
  )


def _cells(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[study.Cell]:
  """The base model, then every finished cell of the study."""
  num_prompts = len(store.read_prompts(workdir.pool))
  cells = study.cells(config)
  unfinished = [
    cell for cell in cells if not workdir.run(cell.name).model.exists()
  ]
  if unfinished:
    console.say(
      'evaluate',
      f'{len(unfinished)} of {len(cells)} cells have no model yet and wait '
      f'for the finetune stage, {unfinished[0].name} first',
    )
  cells += study.full_pool_cells(config, num_prompts)
  return [
    study.no_finetuning_cell(),
    *(cell for cell in cells if workdir.run(cell.name).model.exists()),
  ]


def _options(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  model_hash: str,
) -> dict[str, Any]:
  """What changes a number in every eval.json, by name."""
  return {
    'heldout': store.hash_file(workdir.heldout),
    'model.path (its files)': model_hash,
    'model.dtype': config.model.dtype,
    'prompt.template': config.prompt.template,
    'prompt.separator': config.prompt.separator,
    'prompt.truncate': config.prompt.truncate,
    'evaluation.max_new_tokens': config.evaluation.max_new_tokens,
    'evaluation.limit': config.evaluation.limit,
  }


def _fingerprint(run: store.Run, options: Mapping[str, Any]) -> dict[str, Any]:
  """The options and what the cell was finetuned from, if it was."""
  cell = store.read_json(run.cell) if run.cell.exists() else None
  return store.plain({**options, 'cell': store.hash_json(cell)})


def _done(
  workdir: store.Workdir, cell: study.Cell, fingerprint: Mapping[str, Any]
) -> bool:
  run = workdir.run(cell.name)
  if not run.evaluation.exists():
    return False
  store.refuse_change(
    f'evaluate cell {cell.name}',
    store.read_json(run.evaluation)['fingerprint'],
    fingerprint,
    f'set it back, delete {run.evaluation} or use another --workdir',
  )
  return True


def _heldout(workdir: store.Workdir, limit: int) -> store.Prompts:
  heldout = store.read_prompts(workdir.heldout)
  part = slice(limit or None)
  return store.Prompts(
    ids=heldout.ids[part],
    prompts=heldout.prompts[part],
    tasks=heldout.tasks and heldout.tasks[part],
    responses=heldout.responses[part],
  )


def _evaluate(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  path: pathlib.Path,
  heldout: store.Prompts,
  todo: Sequence[study.Cell],
  fingerprints: Mapping[study.Cell, Mapping[str, Any]],
) -> dict[str, int]:
  """Evaluates the cells of `todo`, one after the other."""
  c = config.evaluation
  prompt_format = models.load_prompt_format(path, **config.prompt)
  mesh = mesh_lib.make_mesh(**config.mesh)
  evaluators: dict[nnx.GraphDef, evaluator_lib.Evaluator] = {}
  total = len(todo) * len(heldout)
  with console.bar('evaluate', total, 'prompts') as bar:
    for cell, decoder in _decoders(config, workdir, path, mesh, todo):
      graph, weights = nnx.split(decoder)
      if graph not in evaluators:
        evaluators[graph] = evaluator_lib.Evaluator(
          decoder,
          prompt_format,
          heldout,
          mesh,
          max_new_tokens=c.max_new_tokens,
          batch_tokens=c.batch_tokens,
        )
      evaluator = evaluators[graph]
      result = evaluator(weights, progress=bar.update)
      _write(
        workdir.run(cell.name),
        cell,
        heldout,
        result,
        evaluator.num_tokens,
        fingerprints[cell],
      )
  return {
    'prompts': len(heldout),
    'reference_tokens': sum(evaluator.num_tokens),
    'prompts_truncated': evaluator.num_truncated,
    'references_cut': evaluator.num_cut,
  }


def _decoders(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  path: pathlib.Path,
  mesh: jax.sharding.Mesh,
  cells: Sequence[study.Cell],
) -> Iterator[tuple[study.Cell, models.Decoder]]:
  """Each cell's model; adapters share the weights of one base model."""
  c = config.finetuning
  base = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
  for cell in cells:
    directory = workdir.run(cell.name).model
    if (directory / lora.ADAPTER_CONFIG).exists():
      decoder = nnx.merge(*nnx.split(base))
      models.load_adapter(decoder, directory)
    elif cell != study.no_finetuning_cell():
      decoder = models.load_decoder(
        directory, dtype=config.model.dtype, mesh=mesh
      )
    else:
      decoder = nnx.merge(*nnx.split(base))
      if c.method == 'lora':
        # A fresh adapter changes nothing, but it is the same program then.
        models.add_lora(
          decoder, c.lora_rank, c.lora_alpha, c.lora_targets, nnx.Rngs(0)
        )
    yield cell, decoder


def _write(
  run: store.Run,
  cell: study.Cell,
  heldout: store.Prompts,
  result: evaluator_lib.Result,
  num_tokens: Sequence[int],
  fingerprint: Mapping[str, Any],
) -> None:
  """Writes predictions.jsonl and then, as the done mark, eval.json."""
  if not np.all(np.isfinite(result.nats)):
    bad = heldout.ids[int(np.argmin(np.isfinite(result.nats)))]
    raise errors.InputError(
      f'evaluating {cell.name}: the loss of held-out prompt {bad!r} is not '
      "finite: the model's numbers overflow; check model.dtype"
    )
  tasks = heldout.tasks or [None] * len(heldout)
  rows = [
    {
      'id': heldout.ids[i],
      'task': tasks[i],
      'prediction': prediction,
      'reference': heldout.responses[i],
      'loss': float(result.nats[i]) / max(num_tokens[i], 1),
      **{
        name: metric(prediction, heldout.responses[i])
        for name, metric in metrics.TEXT_METRICS.items()
      },
    }
    for i, prediction in enumerate(result.answers)
  ]
  by_task: dict[str, list[int]] = {}
  for i, task in enumerate(heldout.tasks or ()):
    by_task.setdefault(task, []).append(i)
  store.write_jsonl(run.predictions, rows)
  store.write_json(
    run.evaluation,
    {
      **dataclasses.asdict(cell),
      'num_prompts': len(rows),
      'metrics': metrics.summarize(rows, num_tokens),
      'tasks': {
        task: {
          'num_prompts': len(indices),
          **metrics.summarize(
            [rows[i] for i in indices], [num_tokens[i] for i in indices]
          ),
        }
        for task, indices in by_task.items()
      },
      'fingerprint': fingerprint,
    },
  )
