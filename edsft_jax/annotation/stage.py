"""The annotate stage: answers for the prompts that the study's cells chose.

If the answers came with the pool, they are looked up. If not, annotations/todo
lists the prompts to answer, in several formats, and the later stages wait:

  1. annotate writes the todo: each prompt once over all cells, those of the
     smallest budgets first, or the picks of one strategy (annotation.buy).
  2. Annotators fill the `response` column, in place or in a copy, or answer in
     a tool that reads one of the other files.
  3. annotate with --config.annotation.answers_path=FILE reads what they
     delivered, all of it or part of it, and keeps it in the workdir. A file
     with a row that does not fit is refused as a whole.
  4. Rejected prompts are replaced: the select stage extends every order, and
     annotate asks for the new picks.
  5. When budgets, seeds or strategies are added, annotate lists only the new
     prompts, in todo-2.csv if todo.csv has been edited. Earlier answers may be
     repeated but need not be; one file may answer several todos.
"""

from collections.abc import Mapping, Sequence
import pathlib
import time
from typing import Any

import ml_collections

from edsft_jax import console, errors, store, study
from edsft_jax.annotation import delivery as delivery_lib
from edsft_jax.annotation import formats, purchase
from edsft_jax.annotation import ledger as ledger_lib
from edsft_jax.annotation.records import Records

_STAGE = 'annotate'
_NAMES_SHOWN = 10


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad options, and a missing answers file, pool or selection.

  Raises:
    InputError: naming the option, or what is missing.
  """
  study.check(config)
  c = config.annotation
  if c.answers_path:
    path = store.local(c.answers_path, 'annotation.answers_path')
    if not path.is_file():
      raise errors.InputError(
        f'annotation.answers_path={path} is not a file: check the path'
      )
  if c.duplicates not in delivery_lib.CHOICES:
    raise errors.unknown(
      f'annotation.duplicates={c.duplicates!r}',
      c.duplicates,
      delivery_lib.CHOICES,
    )
  purchase.check(config)
  store.require(workdir.pool, 'pool', planned)
  for cell in study.cells(config):
    path = workdir.selection(cell.strategy, cell.seed)
    store.require(path, 'select', planned)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Reads a delivery, and writes a todo of what is missing.

  Raises:
    InputError: the delivery does not match the prompts; nothing is written.
  """
  check(config, workdir, frozenset())
  start = time.monotonic()
  manifest = store.Manifest(workdir)
  pool = store.read_prompts(workdir.pool)
  ids = study.cell_ids(config, workdir)
  from_pool = store.read_responses(workdir.pool_responses)
  before = Records.read(workdir)
  records = before
  delivery = None
  if config.annotation.answers_path:
    delivery = _take(config, pool, _known(from_pool, before), before)
    records = before.updated(delivery, _name(config.annotation.answers_path))

  _begin(manifest, workdir)
  known = _known(from_pool, records)
  needed = dict.fromkeys(i for some in ids.values() for i in some)
  if config.study.full_pool and all(i in known for i in pool.ids):
    needed = dict.fromkeys(pool.ids)
  # Answers taken earlier stay, even if no cell needs them any more.
  records = records.with_responses({i: known[i] for i in needed if i in known})
  records.write(workdir, before)
  if delivery is not None:
    _say_delivery(delivery, workdir)

  # Without the picks that are now rejected.
  ids = study.cell_ids(config, workdir)
  ledger = ledger_lib.Ledger(workdir)
  asked, num_unreplaced = purchase.wanted(config, ids)
  missing = [i for i in asked if i not in known]
  if missing and not num_unreplaced:
    tasks = ledger_lib.tasks(pool, missing)
    if delivery is None or not ledger.has_asked(missing):
      purchase.say_union(config, ids, known)
    purchase.say_cost(config, workdir, tasks)
  files = ledger.ask(pool, missing)
  counts: dict[str, Any] = {
    'prompts': len(asked),
    'answers': len(asked) - len(missing),
    'missing': len(missing),
    'rejected': len(records.rejected),
    'unreplaced': num_unreplaced,
    'cells': len(ids),
    'complete_cells': sum(
      not study.num_missing(cell, some, known) for cell, some in ids.items()
    ),
    'todo': [str(f.relative_to(workdir.root)) for f in files],
  }
  manifest.finish(_STAGE, counts, seconds=time.monotonic() - start)
  _say_missing(counts, files)


def missing(workdir: store.Workdir) -> int:
  """Number of answers asked for and still missing."""
  return store.Manifest(workdir).counts(_STAGE).get('missing', 0)


def _known(from_pool: Mapping[str, str], records: Records) -> dict[str, str]:
  """All answers, by id."""
  known = {**from_pool, **records.responses}
  return {i: text for i, text in known.items() if i not in records.rejected}


def _name(path: str) -> str:
  return path.rpartition('/')[2]


def _begin(manifest: store.Manifest, workdir: store.Workdir) -> None:
  """Begins the stage.

  Raises:
    InputError: it was run with another pool, which did not grow into this one.
  """
  fingerprint = {'pool/pool.parquet': store.hash_file(workdir.pool)}
  record = manifest.stages.get(_STAGE)
  old = record.fingerprint.get('pool/pool.parquet', '') if record else ''
  if store.round_of(manifest, old):
    manifest.restart(_STAGE, fingerprint)
  manifest.begin(_STAGE, fingerprint)


def _take(
  config: ml_collections.ConfigDict,
  pool: store.Prompts,
  known: Mapping[str, str],
  records: Records,
) -> delivery_lib.Delivery:
  """Reads annotation.answers_path.

  Raises:
    InputError: it cannot be read, or does not match the prompts.
  """
  c = config.annotation
  path = store.local(c.answers_path, 'annotation.answers_path')
  delivered = formats.read(path)
  taken = delivery_lib.take(
    path,
    delivered.rows,
    pool,
    known,
    records.rejected,
    delivery_lib.Rules(c.duplicates, c.amend),
  )
  for note in delivered.notes:
    console.say(_STAGE, f'{path}: {note}')
  return taken


def _say_delivery(
  delivery: delivery_lib.Delivery, workdir: store.Workdir
) -> None:
  """Says what a delivery had, and which cells it makes obsolete."""
  parts = [
    console.count(len(delivery.answers.keys() - delivery.amended), 'new answer')
  ]
  numbers = {
    'rejected': len(delivery.rejections),
    'corrected': len(delivery.amended),
    'skipped': delivery.counts['skipped'],
    'without an answer yet': delivery.counts['empty'],
    'known before': delivery.counts['known'],
    'with several answers, of which one was taken': delivery.counts['several'],
  }
  parts += [f'{number:,} {what}' for what, number in numbers.items() if number]
  console.say(_STAGE, f'read: {", ".join(parts)}')
  if delivery.rejections:
    console.say(_STAGE, f'rejected prompts are listed in {workdir.rejected}')
  if delivery.amended:
    console.say(_STAGE, f'corrected: {_listed(list(delivery.amended))}')
  if outdated := study.outdated(workdir):
    console.say(
      _STAGE,
      f'{console.count(len(outdated), "cell")} made from old answers, to be '
      'finetuned again by the finetune stage: '
      f'{_listed([cell.name for cell in outdated])}',
    )


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _NAMES_SHOWN
  tail = f' and {more:,} more' if more > 0 else ''
  return ', '.join(names[:_NAMES_SHOWN]) + tail


def _say_missing(counts: Mapping[str, Any], files: list[pathlib.Path]) -> None:
  if counts['unreplaced']:
    console.say(
      _STAGE,
      f'{console.count(counts["unreplaced"], "rejected pick")} not replaced '
      'yet: the select stage chooses others, and annotate asks for them',
    )
    return
  if not counts['missing']:
    console.say(_STAGE, f'all {counts["prompts"]:,} answers are known')
    return
  names = ', '.join(str(f) for f in files)
  others = [f'.{form.extension}' for form in formats.written()[1:]]
  console.say(
    _STAGE,
    f'{counts["missing"]:,} of {counts["prompts"]:,} answers are missing: '
    f'fill the column response of {names} (or use '
    f'{", ".join(others[:-1])} or {others[-1]} next to it)',
  )
  console.say(
    _STAGE,
    f'then run again with --config.annotation.answers_path={files[0]}',
  )
