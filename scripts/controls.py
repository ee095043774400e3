"""Two controls: a study must find a real difference, and no other.

  python scripts/controls.py planted --model=HF_DIR --pool=... --heldout=...
  python scripts/controls.py null --model=HF_DIR --pool=... --heldout=...

--pool and --heldout as in scripts/prepare_sni.py. The same command resumes a
control that was stopped; its workdirs and its table are in --folder.

planted: half of the pool's prompts are useless. The others and the held-out
ones are from other families of tasks, and their answers are in capitals, which
the useless half does not teach. A strategy that chooses at random from the
useful half has as many useful prompts as random has with twice the answers, so
the study should find that it saves half of them.

null: random against random with other seeds. Each repetition has its own pool;
at a level of .05, one repetition in 20 may find a difference.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
import pathlib
import sys

import command_line
import jax
import ml_collections
import numpy as np
from prepare_sni import first_of_each_task, read, short

# The folder configs is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from configs import sni_smollm2
from edsft_jax import main as command
from edsft_jax import pipeline, selection, store
from edsft_jax.reporting import comparison, results, tables
from edsft_jax.strategies import registry
from edsft_jax.strategies.view import View

# Families of tasks whose answers follow from the prompt, and families whose
# answers have to be composed. The latter help too, unless the answers of the
# former are in capitals: see docs/statistics.md.
USEFUL = (
  'Named Entity Recognition',
  'Basic Sentiment Analysis',
  'Program Execution',
)
USELESS = ('Question Generation', 'Title Generation')
# Added to the seeds of the other random.
OTHER_SEEDS = 1000
STAGES = ('pool', 'select', 'annotate', 'finetune', 'evaluate')
Rows = list[dict[str, str]]


def useful_half(view: View, budget: int, seed: int) -> selection.Selection:
  """At random among the prompts of useful families."""
  assert view.tasks is not None
  useful = [i for i, family in enumerate(view.tasks) if family in USEFUL]
  order = selection.random(len(useful), budget, seed)
  return dataclasses.replace(order, indices=np.array(useful)[order.indices])


def random_again(view: View, budget: int, seed: int) -> selection.Selection:
  """Random with another seed."""
  return selection.random(len(view.pool), budget, seed + OTHER_SEEDS)


def config(
  folder: pathlib.Path, model: str, strategy: str
) -> ml_collections.ConfigDict:
  """The study's config, for random and one strategy, without scores."""
  c = sni_smollm2.get_config()
  c.pool.path = str(folder / 'pool.jsonl')
  c.pool.heldout_path = str(folder / 'heldout.jsonl')
  # Families of tasks.
  c.pool.task_column = 'category'
  c.model.path = model
  c.selection.strategies = (registry.RANDOM, strategy)
  c.study.random_seeds = ()
  c.study.full_pool = False
  # Only the loss is compared.
  c.evaluation.max_new_tokens = 4
  return c


def planted(
  pool: Rows, heldout: Rows, arguments: argparse.Namespace
) -> Iterator[dict[str, str]]:
  """Rows of the table: the curve's difference and the answers saved."""
  useful = _in_capitals(pool)
  useless = [row for row in pool if row['category'] in USELESS]
  size = min(len(useful), len(useless))
  folder = _write(
    arguments.folder / 'planted',
    pool=[*useful[:size], *useless[:size]],
    heldout=_in_capitals(heldout),
  )
  c = config(folder, arguments.model, 'useful_half')
  c.study.seeds = (0, 1, 2, 3)
  c.study.pool_fraction = 0.25
  c.study.budgets = (20, 40, 80)
  compared = run(c, folder)
  (values,) = tables.savings_rows({c.report.metric: compared})
  saved = dict(zip(tables.SAVINGS_COLUMNS, values, strict=True))
  yield {
    **difference(compared.curves['useful_half']),
    **{
      name: 'undetermined' if saved[name] is None else f'{saved[name]:.0%}'
      for name in ('saving', 'saving_low', 'saving_high')
    },
    'method': saved['method'],
  }


def null(
  pool: Rows, heldout: Rows, arguments: argparse.Namespace
) -> Iterator[dict[str, str]]:
  """Rows of the table: the curve's difference in each repetition."""
  count = arguments.repetitions
  for i in range(count):
    folder = _write(
      arguments.folder / f'null-{i:02}',
      pool=pool[i::count],
      heldout=first_of_each_task(heldout, 1),
    )
    c = config(folder, arguments.model, 'random_again')
    c.study.seeds = (3 * i, 3 * i + 1, 3 * i + 2)
    c.study.pool_fraction = 0.33
    c.study.budgets = (7, 14, 28)
    c.finetuning.epochs = 2
    compared = run(c, folder)
    yield {
      'repetition': str(i),
      **difference(compared.curves['random_again']),
    }


def run(
  c: ml_collections.ConfigDict, folder: pathlib.Path
) -> comparison.Comparisons:
  """Runs or resumes a study; returns its comparisons by loss."""
  workdir = store.open_workdir(str(folder / 'workdir'))
  pipeline.run(c, workdir, STAGES)
  found = results.read_results(c, workdir)
  return comparison.compare(found, c.report.metric, c.report.confidence)


def difference(curve: comparison.Comparison) -> dict[str, str]:
  """The difference from random, its interval and the verdict, as text."""
  found = curve.difference
  assert found is not None
  return {
    'difference': f'{found.mean:+.4f}',
    'low': f'{found.low:+.4f}',
    'high': f'{found.high:+.4f}',
    'p': f'{curve.p_value:.3f}',
    'verdict': curve.verdict.value,
  }


def _in_capitals(rows: Rows) -> Rows:
  """The rows of useful families, with their answers in capitals."""
  return [
    {**row, 'response': row['response'].upper()}
    for row in rows
    if row['category'] in USEFUL
  ]


def _write(folder: pathlib.Path, **files: Rows) -> pathlib.Path:
  for name, rows in files.items():
    store.write_jsonl(folder / f'{name}.jsonl', rows)
  return folder


def _use_compilation_cache() -> None:
  """Repetitions compile the same programs, each with its own trainer."""
  command.enable_compilation_cache()
  # jax read these variables when it was imported.
  for name in (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  ):
    if value := os.environ.get(name.upper()):
      jax.config.update(name, float(value) if 'secs' in name else value)


@dataclasses.dataclass(frozen=True)
class Control:
  """A control: its strategy, and the rows of its table."""

  strategy: registry.Strategy
  rows: Callable[[Rows, Rows, argparse.Namespace], Iterator[dict[str, str]]]


CONTROLS = {
  'planted': Control(
    registry.Strategy(
      'useful_half',
      useful_half,
      '#009e73',
      's',
      reads=frozenset({'tasks'}),
      seeded=True,
    ),
    planted,
  ),
  'null': Control(
    registry.Strategy(
      'random_again', random_again, '#0072b2', 's', seeded=True
    ),
    null,
  ),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a control and writes its table."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('control', choices=CONTROLS)
  add('--model', required=True, help='a Hugging Face directory or name')
  for option in ('--pool', '--heldout'):
    add(option, type=command_line.existing, required=True)
  add('--repetitions', type=command_line.positive, default=20, help='for null')
  add(
    '--num_prompts',
    type=command_line.positive,
    help='use only this many prompts of the pool, to try a control',
  )
  add('--folder', type=pathlib.Path, default=pathlib.Path('runs/controls'))
  arguments = parser.parse_args(argv)
  _use_compilation_cache()
  control = CONTROLS[arguments.control]
  registry.STRATEGIES[control.strategy.name] = control.strategy
  pool, heldout = (
    short(read(path)) for path in (arguments.pool, arguments.heldout)
  )
  rows = []
  for row in control.rows(pool[: arguments.num_prompts], heldout, arguments):
    rows.append(row)
    print(
      ', '.join(f'{name} {value}' for name, value in row.items()), flush=True
    )
  path = arguments.folder / f'{arguments.control}.csv'
  values = [tuple(row.values()) for row in rows]
  store.write_text(path, tables.csv_text((list(rows[0]), values)))
  print(f'wrote {path}')


if __name__ == '__main__':
  command_line.run(main)
