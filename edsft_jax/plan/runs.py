"""The cells to finetune and evaluate, and how long the rest of them take."""

from collections.abc import Sequence

import ml_collections

from edsft_jax import console, store, study
from edsft_jax.finetuning import batches
from edsft_jax.plan.section import Section
from edsft_jax.reporting import timing, wording


def section(
  config: ml_collections.ConfigDict, workdir: store.Workdir, num_prompts: int
) -> Section:
  """Cells, answers and steps; hours, from what this workdir has recorded."""
  full_pool = study.full_pool_cells(config, num_prompts)
  cells = [*study.cells(config), *full_pool]
  c = config.finetuning
  steps = sum(
    batches.num_steps(cell.budget, c.epochs, c.batch_size) for cell in cells
  )
  examples = c.epochs * sum(cell.budget for cell in cells)
  text = (
    f'{console.count(len(cells), "cell")} with {examples:,} examples in '
    f'{console.count(c.epochs, "epoch")}, {steps:,} steps'
  )
  if full_pool:
    text += ' (with the full pool, if all of its answers are known)'
  return Section(
    'Time of finetuning and evaluating, all cells',
    [
      f'{text}.',
      _finetuning(workdir, cells, steps),
      _evaluation(config, workdir, [*cells, study.no_finetuning_cell()]),
    ],
  )


def _finetuning(
  workdir: store.Workdir, cells: Sequence[study.Cell], num_steps: int
) -> str:
  """Seconds per step so far, and what the other steps take at that rate."""
  lines = [
    line
    for cell in cells
    if (path := workdir.run(cell.name).timing).exists()
    for line in store.read_jsonl(path)[-1:]
  ]
  done = sum(line['step'] for line in lines)
  if not done:
    return (
      'No step has been recorded here: once a cell is finetuned, the plan says '
      'how long the others take.'
    )
  seconds = sum(line['seconds'] for line in lines)
  speed = sum(line['tokens_per_second'] for line in lines) / len(lines)
  left = seconds / done * max(num_steps - done, 0)
  return (
    f'Finetuning: {done:,} steps took {wording.duration(seconds)} '
    f'({speed:,.0f} tokens/s), so the others take {wording.duration(left)}.'
  )


def _evaluation(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  cells: Sequence[study.Cell],
) -> str:
  """Seconds per cell so far, and what the other cells take at that rate."""
  done = [
    run
    for run in (workdir.run(cell.name) for cell in cells)
    if all(run.evaluation(task).exists() for task in config.evaluation.tasks)
  ]
  stages = store.Manifest(workdir).stages
  seconds = timing.read_timing(stages, done).seconds.get('evaluate')
  if not done or not seconds:
    return 'No cell has been evaluated here.'
  left = seconds / len(done) * (len(cells) - len(done))
  return (
    f'Evaluating: {console.count(len(done), "cell")} took '
    f'{wording.duration(seconds)}, so the others take {wording.duration(left)}.'
  )
