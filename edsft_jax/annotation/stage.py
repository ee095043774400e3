"""The annotate stage: answers for the prompts that the study's cells chose.

If the answers came with the pool, they are looked up. If not,
annotations/todo.csv and todo.jsonl list the prompts to answer, and the later
stages wait:

  1. annotate writes the todo: each prompt once over all cells, those of the
     smallest budgets first.
  2. An annotator fills the `response` column, in place or in a copy.
  3. annotate with --config.annotation.answers_path=FILE reads the answers, one
     for each prompt of that todo, and keeps them in the workdir.
  4. When budgets, seeds or strategies are added, annotate lists only the new
     prompts, in todo-2.csv if todo.csv has been edited. Earlier answers may be
     repeated but need not be; one file may answer several todos.
"""

import pathlib
import time

import ml_collections

from edsft_jax import console, errors, store, study
from edsft_jax.annotation import answers
from edsft_jax.annotation import ledger as ledger_lib


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects a missing answers file, pool or selection.

  Raises:
    InputError: naming what is missing.
  """
  study.check(config)
  if path := config.annotation.answers_path:
    answers.check(store.local(path, 'annotation.answers_path'))
  store.require(workdir.pool, 'pool', planned)
  for cell in study.cells(config):
    path = workdir.selection(cell.strategy, cell.seed)
    store.require(path, 'select', planned)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes annotations/responses.parquet, and a todo of what is missing.

  Raises:
    InputError: the answers do not match the prompts; nothing is written.
  """
  check(config, workdir, frozenset())
  start = time.monotonic()
  manifest = store.Manifest(workdir)
  pool = store.read_prompts(workdir.pool)
  from_pool = store.read_responses(workdir.pool_responses)
  taken = store.read_responses(workdir.responses)
  chosen = chosen_ids(config, workdir)
  ledger = ledger_lib.Ledger(workdir)

  known = {**from_pool, **taken}
  given: dict[str, str] = {}
  if config.annotation.answers_path:
    path = store.local(
      config.annotation.answers_path, 'annotation.answers_path'
    )
    given = answers.take(
      path,
      answers.read(path),
      pool_ids=set(pool.ids),
      known=known,
      unanswered=[i for i in chosen if i not in known],
      asked=[version['ids'] for version in ledger.versions],
    )
    known |= given

  manifest.begin(
    'annotate', {'pool/pool.parquet': store.hash_file(workdir.pool)}
  )
  needed = list(chosen)
  if config.study.full_pool and all(i in known for i in pool.ids):
    needed = pool.ids
  missing = [i for i in needed if i not in known]
  # Answers taken earlier stay, even if no cell needs them any more.
  keep = {i: known[i] for i in needed if i in known} | taken | given
  if keep != taken or not workdir.responses.exists():
    store.write_parquet(workdir.responses, store.response_table(keep))
  files = ledger.ask(pool, missing)

  counts = {
    'prompts': len(needed),
    'answers': len(needed) - len(missing),
    'missing': len(missing),
    'todo': [str(f.relative_to(workdir.root)) for f in files],
  }
  manifest.finish('annotate', counts, seconds=time.monotonic() - start)
  _say(len(needed), len(given), missing, files)


def missing(workdir: store.Workdir) -> int:
  """Number of answers still missing before finetuning can start."""
  return store.Manifest(workdir).counts('annotate').get('missing', 0)


def chosen_ids(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """Ids chosen by any cell, each once, those of small budgets first.

  Raises:
    InputError: a selection is shorter than a budget.
  """
  cells = study.cells(config)
  orders = {
    (cell.strategy, cell.seed): study.selected_ids(
      workdir, cell.strategy, cell.seed
    )
    for cell in cells
  }
  chosen: dict[str, None] = {}
  for cell in sorted(cells, key=lambda cell: cell.budget):
    order = orders[cell.strategy, cell.seed]
    if len(order) < cell.budget:
      path = workdir.selection(cell.strategy, cell.seed)
      raise errors.InputError(
        f'{path} has {len(order)} prompts, study.budgets needs {cell.budget}: '
        'run the select stage again'
      )
    chosen.update(dict.fromkeys(order[: cell.budget]))
  return list(chosen)


def _say(
  num_needed: int, num_given: int, missing: list[str], files: list[pathlib.Path]
) -> None:
  if num_given:
    console.say('annotate', f'{num_given:,} new answers read')
  if not missing:
    console.say('annotate', f'all {num_needed:,} answers are known')
    return
  names = ', '.join(str(f) for f in files)
  console.say(
    'annotate',
    f'{len(missing):,} of {num_needed:,} answers are missing: '
    f'fill the column response of {names} (or of the .jsonl next to it)',
  )
  console.say(
    'annotate',
    f'then run again with --config.annotation.answers_path={files[0]}',
  )
