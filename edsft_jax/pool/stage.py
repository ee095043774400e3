"""The pool stage: reads and checks prompts, and splits off the answers.

pool/ holds no responses, so scoring and selection cannot read them: answers go
to annotations/, those of held-out prompts to heldout/.
"""

import dataclasses
import time
from typing import Any

import ml_collections

from edsft_jax import console, errors, store
from edsft_jax.pool import build, schema, sources

_COLUMN_OPTIONS = (
  'id_column',
  'prompt_column',
  'task_column',
  'response_column',
)


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad options and files that cannot be opened.

  Raises:
    InputError: naming the option.
  """
  del workdir, planned  # The pool has no input in the workdir.
  options = config.pool
  if not 0 <= options.heldout_fraction < 1:
    raise errors.InputError(
      f'pool.heldout_fraction={options.heldout_fraction} is not in [0, 1): '
      'give the share of prompts to hold out'
    )
  if options.limit < 0:
    raise errors.InputError(
      f'pool.limit={options.limit} is below 0: 0 reads every row'
    )
  _open_pool(options)
  if options.heldout_path:
    _open_heldout(options)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes pool/, heldout/ and annotations/pool_responses.parquet.

  Raises:
    InputError: the file or a named column cannot be used, or the workdir was
      made from another pool; nothing is written.
  """
  check(config, workdir, frozenset())
  manifest = store.Manifest(workdir)
  _run_pool(config.pool, workdir, manifest)
  _run_heldout(config.pool, workdir, manifest)


def _open_pool(options: ml_collections.ConfigDict) -> sources.Source:
  return sources.open_source(options.path, options.format, 'pool.path')


def _open_heldout(options: ml_collections.ConfigDict) -> sources.Source:
  # pool.format is for pool.path; the extension decides for another file.
  same = options.heldout_path == options.path
  return sources.open_source(
    options.heldout_path,
    options.format if same else 'auto',
    'pool.heldout_path',
  )


def _run_pool(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
) -> None:
  start = time.monotonic()
  source = _open_pool(options)
  fraction = _split_fraction(options, manifest)
  fingerprint = _fingerprint(options, source, fraction)
  if manifest.is_done('pool') and workdir.pool.exists():
    manifest.begin('pool', fingerprint)
    _refuse_quarantined(options, workdir, manifest.counts('pool'))
    _say_pool(workdir, manifest.counts('pool'))
    return

  built = build.build(
    options.path,
    source.rows(options.limit),
    _columns(source, options, options.path, limit=options.limit),
    fraction,
    options.strict,
  )
  counts = _count(built)
  for name, reason in built.dropped.items():
    console.say('pool', f'column {name!r} is left out: {reason}')
  if built.kept:
    console.say('pool', f'other columns kept: {", ".join(built.kept)}')
  if fraction and not counts['answers'] and not counts['heldout']:
    console.say('pool', 'no row has a response: nothing is held out')

  manifest.restart('pool', fingerprint)
  answered = built.pool.answered()
  answers = dict(zip(answered.ids, answered.responses or (), strict=True))
  store.write_parquet(workdir.pool_responses, store.response_table(answers))
  # An interrupted run may have left one.
  workdir.heldout.unlink(missing_ok=True)
  if len(built.heldout):
    store.write_parquet(workdir.heldout, store.prompt_table(built.heldout))
  store.write_jsonl(workdir.quarantine, built.quarantine)
  without_answers = dataclasses.replace(built.pool, responses=None)
  store.write_parquet(
    workdir.pool, store.prompt_table(without_answers, built.kept)
  )
  manifest.finish('pool', counts, seconds=time.monotonic() - start)
  _say_pool(workdir, counts)


def _split_fraction(
  options: ml_collections.ConfigDict, manifest: store.Manifest
) -> float:
  """The share to hold out; 0 with a held-out file.

  The file may be added later, if nothing was split off from the pool. The pool
  is then unchanged, and its old fraction is kept for the fingerprint.
  """
  if not options.heldout_path:
    return options.heldout_fraction
  if manifest.is_done('pool') and manifest.counts('pool')['heldout'] == 0:
    return manifest.stages['pool'].fingerprint['pool.heldout_fraction']
  return 0.0


def _fingerprint(
  options: ml_collections.ConfigDict, source: sources.Source, fraction: float
) -> dict[str, Any]:
  names = ('format', 'limit', *_COLUMN_OPTIONS)
  return {
    'file of pool.path': source.hash(),
    **{f'pool.{name}': options[name] for name in names},
    'pool.heldout_fraction': fraction,
  }


def _columns(
  source: sources.Source,
  options: ml_collections.ConfigDict,
  path: str,
  limit: int = 0,
  optional: bool = False,
) -> schema.Columns:
  """Finds the role of each column."""
  names = source.columns(limit)
  if not names:  # No row can be read; `build` will say why.
    return schema.Columns(prompt='prompt')
  named = schema.Named(
    **{n.removesuffix('_column'): options[n] for n in _COLUMN_OPTIONS}
  )
  return schema.find_columns(path, names, named, optional)


def _run_heldout(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
) -> None:
  """Reads pool.heldout_path, if it is set or was set before."""
  start = time.monotonic()
  path = options.heldout_path
  source = _open_heldout(options) if path else None
  fingerprint = {'file of pool.heldout_path': source.hash() if source else ''}
  if manifest.is_done('heldout') and workdir.heldout.exists():
    manifest.begin('heldout', fingerprint)
    _say_heldout(path, manifest.counts('heldout'))
    return
  if source is None:
    return

  built = build.build(
    path,
    source.rows(0),
    _columns(source, options, path, optional=True),
    strict=options.strict,
  )
  answered = built.pool.answered()
  heldout = build.without_pool_prompts(
    answered, store.read_prompts(workdir.pool)
  )
  counts = {
    'prompts': len(heldout),
    'without_response': len(built.pool) - len(answered),
    'in_pool': len(answered) - len(heldout),
    'duplicates': built.duplicates,
    'quarantined': len(built.quarantine),
  }
  if not heldout.ids:
    raise errors.InputError(
      f'pool.heldout_path={path} has no prompt to evaluate on: of '
      f'{len(built.pool):,}, {counts["without_response"]:,} have no response '
      f'and {counts["in_pool"]:,} are in the pool: name another file'
    )
  manifest.restart('heldout', fingerprint)
  quarantine = workdir.heldout.with_name('quarantine.jsonl')
  store.write_jsonl(quarantine, built.quarantine)
  store.write_parquet(workdir.heldout, store.prompt_table(heldout))
  manifest.finish('heldout', counts, seconds=time.monotonic() - start)
  _say_heldout(path, counts)


def _count(built: build.Built) -> dict[str, Any]:
  return {
    'prompts': len(built.pool),
    'tasks': len(set(built.pool.tasks or ())),
    'answers': len(built.pool.answered()),
    'heldout': len(built.heldout),
    'duplicates': built.duplicates,
    'quarantined': len(built.quarantine),
    'columns_left_out': built.dropped,
  }


def _refuse_quarantined(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  counts: dict[str, Any],
) -> None:
  """Applies pool.strict to a pool that was made without it."""
  if options.strict and counts['quarantined']:
    first = store.read_jsonl(workdir.quarantine)[0]
    raise errors.InputError(
      f'{options.path}, line {first["line"]}: {first["reason"]}: fix it, or '
      'set pool.strict=False to leave out such rows'
    )


def _say_pool(workdir: store.Workdir, counts: dict[str, Any]) -> None:
  refused = f'{counts["quarantined"]:,} quarantined'
  if counts['quarantined']:
    refused += f' ({workdir.quarantine})'
  console.say(
    'pool',
    f'{console.count(counts["prompts"], "prompt")}, '
    f'{console.count(counts["tasks"], "task")}, '
    f'{console.count(counts["answers"], "answer")} known, '
    f'{counts["heldout"]:,} held out, '
    f'{console.count(counts["duplicates"], "duplicate")}, {refused}',
  )


def _say_heldout(path: str, counts: dict[str, Any]) -> None:
  console.say(
    'pool',
    f'{console.count(counts["prompts"], "held-out prompt")} from {path}; '
    'left out: '
    f'{counts["without_response"]:,} without a response, '
    f'{counts["in_pool"]:,} in the pool, '
    f'{console.count(counts["duplicates"], "duplicate")}, '
    f'{counts["quarantined"]:,} quarantined',
  )
