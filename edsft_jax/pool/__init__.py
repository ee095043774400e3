"""The pool stage: prompts in, checked and without doubles, answers set apart.

Nothing under pool/ holds a response, so that what scores and selects cannot
read one: answers go to annotations/ and, of held-out prompts, to heldout/.
"""

from collections.abc import Set
import pathlib
import time
from typing import Any

import ml_collections

from edsft_jax import artifacts, console, errors
from edsft_jax.pool import build, demo, readers, schema, tfds_dataset

DEMO = 'demo'
# Bytes of a file, or records of a dataset, from which on reading takes seconds.
_LARGE_FILE = 2**25
_LARGE_DATASET = 2**16


def check(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  planned: Set[str],
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
      'give the share of the prompts to hold out'
    )
  if options.limit < 0:
    raise errors.InputError(
      f'pool.limit={options.limit} is below 0: 0 reads every row'
    )
  for option, path in (
    ('pool.path', options.path),
    ('pool.heldout_path', options.heldout_path),
  ):
    if option == 'pool.path' and path == DEMO:
      continue
    if _is_dataset(path):
      tfds_dataset.Split(path)
    elif path:
      readers.check_readable(pathlib.Path(path), option)
      readers.find_format(pathlib.Path(path), _format(options, path))
    elif option == 'pool.path':
      raise errors.InputError('pool.path is empty: name a file, or demo')


def run(config: ml_collections.ConfigDict, workdir: artifacts.Workdir) -> None:
  """Writes pool/, heldout/ and annotations/pool_responses.parquet.

  Raises:
    InputError: the file or a named column cannot be used, or the workdir was
      made from another pool; nothing is written then.
  """
  check(config, workdir, frozenset())
  manifest = artifacts.Manifest(workdir)
  _run_pool(config.pool, workdir, manifest)
  _run_heldout(config.pool, workdir, manifest)


def _is_dataset(path: str) -> bool:
  return path.startswith(tfds_dataset.PREFIX)


def _format(options: ml_collections.ConfigDict, path: str) -> str:
  """pool.format is about pool.path; another file goes by its ending."""
  return options.format if path == options.path else 'auto'


def _run_pool(
  options: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  manifest: artifacts.Manifest,
) -> None:
  start = time.monotonic()
  fraction = _split_fraction(options, manifest)
  fingerprint = _fingerprint(options, fraction)
  known = manifest.contents['stages'].get('pool')
  if known and known['done'] and workdir.pool.exists():
    manifest.begin('pool', fingerprint)
    _refuse_quarantined(options, workdir, manifest.counts('pool'))
    _say_pool(workdir, manifest.counts('pool'))
    return

  rows, columns = _open(options, options.path, options.limit, optional=False)
  built = build.build(options.path, rows, columns, fraction, options.strict)
  counts = _count(built)
  for name, reason in built.dropped.items():
    console.say('pool', f'column {name!r} is left out: {reason}')
  if built.kept:
    console.say('pool', f'other columns kept: {", ".join(built.kept)}')
  if fraction and not counts['answers'] and not counts['heldout']:
    console.say('pool', 'no row has a response: nothing is held out')

  # A pool that was never finished has no part that could be gone on with.
  manifest.contents['stages'].pop('pool', None)
  manifest.begin('pool', fingerprint)
  artifacts.write_parquet(
    workdir.pool_responses, build.response_table(built.pool)
  )
  # A run cut short may have left one.
  workdir.heldout.unlink(missing_ok=True)
  if len(built.heldout):
    artifacts.write_parquet(workdir.heldout, build.heldout_table(built.heldout))
  artifacts.write_jsonl(workdir.quarantine, built.quarantine)
  artifacts.write_parquet(
    workdir.pool, build.pool_table(built.pool, built.kept)
  )
  manifest.contents['stages']['pool']['seconds'] = _seconds(start)
  manifest.finish('pool', counts)
  _say_pool(workdir, counts)


def _split_fraction(
  options: ml_collections.ConfigDict, manifest: artifacts.Manifest
) -> float:
  """The share to split off; a held-out file needs none.

  Such a file may come later, to a pool of which nothing was split off: that
  pool is the same one, whatever its fraction.
  """
  if not options.heldout_path:
    return options.heldout_fraction
  known = manifest.contents['stages'].get('pool')
  if known and known['done'] and known['counts']['heldout'] == 0:
    return known['fingerprint']['pool.heldout_fraction']
  return 0.0


def _fingerprint(
  options: ml_collections.ConfigDict, fraction: float
) -> dict[str, Any]:
  names = ('format', 'limit', *_COLUMN_OPTIONS)
  return {
    'file of pool.path': _hash(options.path),
    **{f'pool.{name}': options[name] for name in names},
    'pool.heldout_fraction': fraction,
  }


def _hash(path: str) -> str:
  if path == DEMO:
    return artifacts.hash_json(demo.rows())
  if _is_dataset(path):
    return tfds_dataset.Split(path).hash()
  return artifacts.hash_file(pathlib.Path(path))


_COLUMN_OPTIONS = (
  'id_column',
  'prompt_column',
  'task_column',
  'response_column',
)


def _open(
  options: ml_collections.ConfigDict, path: str, limit: int, optional: bool
) -> tuple[Any, schema.Columns]:
  """A file's rows and which of its columns is what."""
  if path == DEMO:
    items = demo.rows()[: limit or None]
    rows = (readers.Row(i, values) for i, values in enumerate(items, 1))
    names = list(items[0])
  elif _is_dataset(path):
    split = tfds_dataset.Split(path)
    names = split.columns
    rows = split.rows(limit)
    if len(split) >= _LARGE_DATASET:
      rows = console.bar('pool', limit or len(split), 'rows', iterable=rows)
  else:
    file = pathlib.Path(path)
    fmt = readers.find_format(file, _format(options, path))
    names = readers.columns(file, fmt, limit)
    rows = readers.read(file, fmt, limit)
    if file.stat().st_size >= _LARGE_FILE:
      rows = console.bar('pool', limit or None, 'rows', iterable=rows)
    if not names:  # No row can be read; building says why.
      return rows, schema.Columns(prompt='prompt')
  named = schema.Named(
    **{n.removesuffix('_column'): options[n] for n in _COLUMN_OPTIONS}
  )
  return rows, schema.find_columns(path, names, named, optional)


def _run_heldout(
  options: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  manifest: artifacts.Manifest,
) -> None:
  """Reads pool.heldout_path, if one is set or was set before."""
  start = time.monotonic()
  path = options.heldout_path
  known = manifest.contents['stages'].get('heldout')
  fingerprint = {'file of pool.heldout_path': _hash(path) if path else ''}
  if known and known['done'] and workdir.heldout.exists():
    manifest.begin('heldout', fingerprint)
    _say_heldout(path, manifest.counts('heldout'))
    return
  if not path:
    return

  rows, columns = _open(options, path, limit=0, optional=True)
  built = build.build(path, rows, columns, strict=options.strict)
  answered = build.answered_only(built.pool)
  heldout = build.without(answered, artifacts.read_prompts(workdir.pool))
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
  manifest.contents['stages'].pop('heldout', None)
  manifest.begin('heldout', fingerprint)
  quarantine = workdir.heldout.with_name('quarantine.jsonl')
  artifacts.write_jsonl(quarantine, built.quarantine)
  artifacts.write_parquet(workdir.heldout, build.heldout_table(heldout))
  manifest.contents['stages']['heldout']['seconds'] = _seconds(start)
  manifest.finish('heldout', counts)
  _say_heldout(path, counts)


def _count(built: build.Built) -> dict[str, Any]:
  has_tasks = any(built.pool.tasks)
  return {
    'prompts': len(built.pool),
    'tasks': len(set(built.pool.tasks)) if has_tasks else 0,
    'answers': sum(map(bool, built.pool.responses)),
    'heldout': len(built.heldout),
    'duplicates': built.duplicates,
    'quarantined': len(built.quarantine),
    'columns_left_out': built.dropped,
  }


def _refuse_quarantined(
  options: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  counts: dict[str, Any],
) -> None:
  """Being strict also goes for a pool that was made when it was not."""
  if options.strict and counts['quarantined']:
    first = artifacts.read_jsonl(workdir.quarantine)[0]
    raise errors.InputError(
      f'{options.path}, line {first["line"]}: {first["reason"]}: mend it, or '
      'leave such rows out by pool.strict=False'
    )


def _say_pool(workdir: artifacts.Workdir, counts: dict[str, Any]) -> None:
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


def _seconds(start: float) -> float:
  return round(time.monotonic() - start, 3)
