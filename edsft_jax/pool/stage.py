"""The pool stage: reads and checks prompts, and separates the answers.

Nothing in pool/ contains a response, so scoring and selection cannot read one:
answers go to annotations/ and, for held-out prompts, to heldout/.
"""

import collections
import dataclasses
import pathlib
import time
from typing import Any

import ml_collections

from edsft_jax import console, errors, store
from edsft_jax.pool import append as append_lib
from edsft_jax.pool import build, excluded, heldout, sources
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool.built import Built, Rules, as_prompts

# Newer options are in the fingerprint only if set: older workdirs lack them.
_COLUMN_OPTIONS = (
  'id_column',
  'prompt_column',
  'task_column',
  'response_column',
)
_NEWER_COLUMN_OPTIONS = ('context_column', 'system_column')
_FILE = 'file of pool.path'
# Number of tasks to print.
_TASKS_SHOWN = 12


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses options that make no pool and files that cannot be opened.

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
  if options.answer_in_prompt not in ('refuse', 'keep'):
    raise errors.unknown(
      f'pool.answer_in_prompt={options.answer_in_prompt!r}',
      options.answer_in_prompt,
      ('refuse', 'keep'),
    )
  _open_pool(options)
  if options.heldout_path:
    _open_heldout(options)
  excluded.read(options.exclude)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes pool/, heldout/ and annotations/pool_responses.parquet.

  Raises:
    InputError: the file or a named column cannot be used, or the workdir was
      made from another pool; nothing is written then.
  """
  check(config, workdir, frozenset())
  manifest = store.Manifest(workdir)
  # Both are read before either is written.
  heldout_set = _read_heldout(config.pool, workdir, manifest)
  _run_pool(config.pool, workdir, manifest)
  _run_heldout(config.pool, workdir, manifest, heldout_set)


def _open_pool(options: ml_collections.ConfigDict) -> sources.Source:
  return sources.open_source(options.path, options.format, 'pool.path')


def _open_heldout(options: ml_collections.ConfigDict) -> sources.Source:
  # pool.format is about pool.path; another file goes by its ending.
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
  done = manifest.is_done('pool') and workdir.pool.exists()
  appends = done and options.append and _has_new_file(manifest, fingerprint)
  if done and not appends:
    manifest.begin(
      'pool',
      fingerprint,
      'set it back, use another --workdir, or set pool.append=True if the file '
      'only has further rows',
    )
    _refuse_quarantined(options, workdir, manifest.counts('pool'))
    _say_pool(workdir, manifest.counts('pool'))
    return

  rules = dataclasses.replace(
    _rules(options),
    heldout_fraction=0.0 if appends else fraction,
    excluded=excluded.read(options.exclude),
  )
  built = build.build(options.path, source.rows(options.limit), rules)
  if appends:
    was_split = manifest.counts('pool')['heldout'] > 0
    built = append_lib.append(
      options.path, built, workdir, was_split, options.strict
    )
  prompts = built.prompts()
  counts = _count(built, prompts)
  _say_columns(built)
  if fraction and not counts['answers'] and not counts['heldout']:
    console.say('pool', 'no row has a response: nothing is held out')

  if appends:
    # The old record stays until the new pool is written.
    counts['rounds'] = _begin_round(workdir, manifest, len(built.pool))
    _write(workdir, built, prompts)
    seconds = time.monotonic() - start
    manifest.update('pool', fingerprint, counts, seconds)
  else:
    manifest.restart('pool', fingerprint)
    # An interrupted run may have left one.
    workdir.heldout.unlink(missing_ok=True)
    if built.heldout:
      store.write_parquet(
        workdir.heldout, store.prompt_table(built.heldout_prompts())
      )
    _write(workdir, built, prompts)
    manifest.finish('pool', counts, seconds=time.monotonic() - start)
  _say_pool(workdir, counts)


def _say_columns(built: Built) -> None:
  """Says what was noticed, and what became of the other columns."""
  for note in built.notes:
    console.say('pool', note)
  for name, reason in built.dropped.items():
    console.say('pool', f'column {name!r} is left out: {reason}')
  if built.kept:
    console.say('pool', f'other columns kept: {", ".join(built.kept)}')


def _write(
  workdir: store.Workdir, built: Built, prompts: store.Prompts
) -> None:
  """Writes the pool without its answers last: it marks the pool as written."""
  answered = prompts.answered()
  answers = dict(zip(answered.ids, answered.responses or (), strict=True))
  store.write_parquet(workdir.pool_responses, store.response_table(answers))
  store.write_jsonl(workdir.quarantine, built.quarantine)
  store.write_jsonl(workdir.duplicates, built.duplicates)
  without_answers = dataclasses.replace(prompts, responses=None)
  store.write_parquet(
    workdir.pool, store.prompt_table(without_answers, built.kept)
  )


def _has_new_file(
  manifest: store.Manifest, fingerprint: dict[str, Any]
) -> bool:
  """Whether prompts are to be appended: the file changed, and nothing else.

  Raises:
    InputError: options have changed too, or scoring is not finished.
  """
  known = manifest.stages['pool'].fingerprint
  store.refuse_change(
    'the pool in this workdir',
    {**known, _FILE: fingerprint[_FILE]},
    fingerprint,
    'set it back or use another --workdir',
  )
  if known[_FILE] == fingerprint[_FILE]:
    return False
  if 'score' in manifest.stages and not manifest.is_done('score'):
    raise errors.InputError(
      'pool.append: the current pool is not scored completely: finish the '
      'score stage with the old file first'
    )
  return True


def _begin_round(
  workdir: store.Workdir, manifest: store.Manifest, num_prompts: int
) -> list[dict[str, Any]]:
  """Records what the pool is now, and returns the record of all rounds.

  An interrupted run has recorded it already; its pool may be written or not.
  """
  old = store.hash_file(workdir.pool)
  num_old = len(store.read_prompts(workdir.pool))
  rounds = [
    dataclasses.asdict(r)
    for r in store.earlier_rounds(manifest)
    if r.prompts < num_old
  ]
  if num_old < num_prompts:
    rounds.append({'prompts': num_old, 'hash': old})
  record = manifest.stages['pool']
  manifest.update(
    'pool', record.fingerprint, {**record.counts, 'rounds': rounds}
  )
  return rounds


def _split_fraction(
  options: ml_collections.ConfigDict, manifest: store.Manifest
) -> float:
  """The share to split off; a held-out file needs none.

  Such a file may come later, to a pool of which nothing was split off: that
  pool is the same one, whatever its fraction.
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
  newer = [name for name in _NEWER_COLUMN_OPTIONS if options[name]]
  fingerprint = {
    _FILE: source.hash(),
    **{f'pool.{name}': options[name] for name in (*names, *newer)},
    'pool.heldout_fraction': fraction,
  }
  if options.answer_in_prompt != 'refuse':
    fingerprint['pool.answer_in_prompt'] = options.answer_in_prompt
  if ids := excluded.read(options.exclude):
    fingerprint['ids of pool.exclude'] = store.hash_json(sorted(ids))
  return fingerprint


def _rules(options: ml_collections.ConfigDict) -> Rules:
  columns = (*_COLUMN_OPTIONS, *_NEWER_COLUMN_OPTIONS)
  return Rules(
    named=columns_lib.Named(
      **{name.removesuffix('_column'): options[name] for name in columns}
    ),
    strict=options.strict,
    answers_in_prompts=options.answer_in_prompt == 'keep',
  )


def _read_heldout(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
) -> Built | None:
  """Reads pool.heldout_path; None if it is not needed or was read before.

  Raises:
    InputError: it has no prompt with a response.
  """
  path = options.heldout_path
  if not path or (manifest.is_done('heldout') and workdir.heldout.exists()):
    return None
  rules = dataclasses.replace(_rules(options), for_heldout=True)
  built = build.build(path, _open_heldout(options).rows(0), rules)
  if not any(item.response for item in built.pool):
    number = f'{len(built.pool):,}'
    raise errors.InputError(
      f'pool.heldout_path={path} has no prompt to evaluate on: of {number}, '
      f'{number} have no response: name another file'
    )
  return built


def _run_heldout(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  built: Built | None,
) -> None:
  """Reads pool.heldout_path, if one is set or was set before."""
  start = time.monotonic()
  path = options.heldout_path
  source = _open_heldout(options) if path else None
  fingerprint = {'file of pool.heldout_path': source.hash() if source else ''}
  if manifest.is_done('heldout') and workdir.heldout.exists():
    manifest.begin('heldout', fingerprint)
    _say_heldout(path, manifest.counts('heldout'))
    return
  if built is None:
    return

  answered = [item for item in built.pool if item.response]
  separated = heldout.separate(answered, append_lib.with_answers(workdir))
  counts = {
    'prompts': len(separated.kept),
    'without_response': len(built.pool) - len(answered),
    'in_pool': separated.in_pool,
    'near_pool': separated.near_pool,
    'in_conversation': separated.in_conversation,
    'duplicates': built.num_merged,
    'quarantined': len(built.quarantine),
    'columns': str(built.columns),
  }
  if not separated.kept:
    raise errors.InputError(
      f'pool.heldout_path={path} has no prompt to evaluate on: of '
      f'{len(built.pool):,}, {counts["without_response"]:,} have no response '
      f'and {len(answered):,} are in the pool: name another file'
    )
  for note in built.notes:
    console.say('pool', f'held-out file: {note}')
  if not built.with_tasks:
    task = built.columns.task or ''
    reason = built.dropped[task]
    console.say('pool', f'held-out column {task!r} is left out: {reason}')
  manifest.restart('heldout', fingerprint)
  quarantine = workdir.heldout.with_name('quarantine.jsonl')
  store.write_jsonl(quarantine, built.quarantine)
  prompts = as_prompts(separated.kept, built.with_tasks)
  store.write_parquet(workdir.heldout, store.prompt_table(prompts))
  manifest.finish('heldout', counts, seconds=time.monotonic() - start)
  _say_heldout(path, counts)


def _count(built: Built, prompts: store.Prompts) -> dict[str, Any]:
  tasks = collections.Counter(prompts.tasks or ())
  return {
    'rows': built.num_rows,
    'prompts': len(prompts),
    'tasks': len(tasks),
    'answers': len(prompts.answered()),
    'heldout': len(built.heldout),
    'duplicates': built.num_merged,
    'near_duplicates': len(built.duplicates) - built.num_merged,
    'quarantined': len(built.quarantine),
    'excluded': built.excluded,
    'columns': str(built.columns),
    'columns_left_out': built.dropped,
    'largest_tasks': dict(tasks.most_common(_TASKS_SHOWN)),
  }


def _refuse_quarantined(
  options: ml_collections.ConfigDict,
  workdir: store.Workdir,
  counts: dict[str, Any],
) -> None:
  """Applies pool.strict to a pool that was read without it."""
  if options.strict and counts['quarantined']:
    first = store.read_jsonl(workdir.quarantine)[0]
    place = f'line {first["line"]}' if first['line'] else f'id {first["id"]!r}'
    raise errors.InputError(
      f'{options.path}, {place}: {first["reason"]}: fix it, or '
      'set pool.strict=False to leave out such rows'
    )


def _say_pool(workdir: store.Workdir, counts: dict[str, Any]) -> None:
  if rounds := counts.get('rounds'):
    new = counts['prompts'] - rounds[-1]['prompts']
    console.say(
      'pool',
      f'{console.count(new, "prompt")} appended to {rounds[-1]["prompts"]:,}',
    )
  # Workdirs of older versions lack some of the counts.
  if 'columns' in counts:
    console.say('pool', f'columns: {counts["columns"]}')
  parts = [
    f'{console.count(counts["prompts"], "prompt")}, '
    f'{console.count(counts["answers"], "answer")} known',
    f'{counts["heldout"]:,} held out',
    _pointed(counts['duplicates'], 'merged', workdir.duplicates),
    _pointed(counts['quarantined'], 'quarantined', workdir.quarantine),
  ]
  if counts.get('excluded'):
    parts.append(f'{counts["excluded"]:,} excluded')
  rows = f'{console.count(counts["rows"], "row")}: ' if 'rows' in counts else ''
  console.say('pool', rows + ', '.join(parts))
  if near := counts.get('near_duplicates'):
    console.say(
      'pool',
      f'{near:,} prompts have the same words as another one and are kept: '
      f'{workdir.duplicates}',
    )
  if largest := counts.get('largest_tasks'):
    more = counts['tasks'] - len(largest)
    shown = [f'{task} {count:,}' for task, count in largest.items()]
    shown += [f'and {more:,} more'] if more else []
    console.say(
      'pool', f'{console.count(counts["tasks"], "task")}: {", ".join(shown)}'
    )


def _pointed(count: int, what: str, path: pathlib.Path) -> str:
  # Workdirs of older versions do not list what was merged.
  return f'{count:,} {what}' + (f' ({path})' if count and path.exists() else '')


def _say_heldout(path: str, counts: dict[str, Any]) -> None:
  # Workdirs of older versions lack some of the counts.
  if 'columns' in counts:
    console.say('pool', f'held-out columns: {counts["columns"]}')
  left_out = [
    f'{counts["without_response"]:,} without a response',
    f'{counts["in_pool"]:,} in the pool',
    f'{counts.get("near_pool", 0):,} with the words of a prompt in the pool',
    f'{counts.get("in_conversation", 0):,} inside a conversation in the pool',
    f'{counts["duplicates"]:,} merged',
    f'{counts["quarantined"]:,} quarantined',
  ]
  console.say(
    'pool',
    f'{console.count(counts["prompts"], "held-out prompt")} from {path}; '
    f'left out: {", ".join(left_out)}',
  )
