"""The files of a workdir: their names, whole or absent, hashed, listed.

Every stage reads the files of earlier stages and writes its own through this
module. A file appears under its name only when it is complete: it is written
beside its place and renamed. `manifest.json` remembers for each stage the
options and inputs it was made from, so that a second run skips what is done
and refuses what changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import errors

# A prompt is text, or a conversation that ends with the turn to answer.
Message = dict[str, str]
Prompt = str | list[Message]


@dataclasses.dataclass(frozen=True)
class Workdir:
  """Where everything of one study lies; paths only, nothing is opened."""

  root: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    return self.root / 'config.json'

  @property
  def manifest(self) -> pathlib.Path:
    return self.root / 'manifest.json'

  @property
  def pool(self) -> pathlib.Path:
    return self.root / 'pool' / 'pool.parquet'

  @property
  def quarantine(self) -> pathlib.Path:
    return self.root / 'pool' / 'quarantine.jsonl'

  @property
  def heldout(self) -> pathlib.Path:
    return self.root / 'heldout' / 'heldout.parquet'

  @property
  def pool_responses(self) -> pathlib.Path:
    """Answers that came with the pool; only annotate reads them."""
    return self.root / 'annotations' / 'pool_responses.parquet'

  @property
  def responses(self) -> pathlib.Path:
    """Answers by id that finetuning may use."""
    return self.root / 'annotations' / 'responses.parquet'

  @property
  def todo(self) -> pathlib.Path:
    """Prompts whose answers are still to be bought; todo.csv beside it."""
    return self.root / 'annotations' / 'todo.jsonl'

  @property
  def scores(self) -> pathlib.Path:
    return self.root / 'scores' / 'scores.parquet'

  @property
  def features(self) -> pathlib.Path:
    """As one process writes it; see `feature_files`."""
    return self.root / 'scores' / 'features.npy'

  def features_part(self, index: int, count: int) -> pathlib.Path:
    """Features of the index-th of `count` ranges of the pool."""
    name = f'features-{index:05d}-of-{count:05d}.npy'
    return self.features.with_name(name)

  @property
  def score_shards(self) -> pathlib.Path:
    return self.root / 'scores' / 'shards'

  @property
  def selections(self) -> pathlib.Path:
    return self.root / 'selections'

  @property
  def gains_curves(self) -> pathlib.Path:
    return self.selections / 'gains_curves.json'

  def selection(self, strategy: str, seed: int) -> pathlib.Path:
    return self.selections / f'{strategy}-seed{seed}.jsonl'

  def selection_record(self, strategy: str) -> pathlib.Path:
    """What a strategy's orders were made from, and how good they can be."""
    return self.selections / f'{strategy}.json'

  @property
  def runs(self) -> pathlib.Path:
    return self.root / 'runs'

  def run(self, cell: str) -> 'Run':
    """The files of the cell of that name."""
    return Run(self.runs / cell)

  @property
  def report(self) -> pathlib.Path:
    return self.root / 'report' / 'index.html'


@dataclasses.dataclass(frozen=True)
class Run:
  """Where everything of one cell lies; paths only, nothing is opened."""

  root: pathlib.Path

  @property
  def cell(self) -> pathlib.Path:
    """What the cell is made from, written when it begins."""
    return self.root / 'cell.json'

  @property
  def model(self) -> pathlib.Path:
    """A PEFT adapter or a Hugging Face model; there when finetuning is done."""
    return self.root / 'model'

  @property
  def metrics(self) -> pathlib.Path:
    return self.root / 'metrics.jsonl'

  @property
  def tensorboard(self) -> pathlib.Path:
    return self.root / 'tensorboard'

  @property
  def checkpoints(self) -> pathlib.Path:
    """There only while the cell is being finetuned."""
    return self.root / 'checkpoints'

  @property
  def evaluation(self) -> pathlib.Path:
    """There when the cell is evaluated."""
    return self.root / 'eval.json'

  @property
  def predictions(self) -> pathlib.Path:
    return self.root / 'predictions.jsonl'


@contextlib.contextmanager
def claimed(workdir: Workdir) -> Iterator[None]:
  """Holds a workdir against other commands; leaves no empty folder behind.

  Raises:
    InputError: another command is at work there, or it cannot be written to.
  """
  lock = workdir.root / '.lock'
  try:
    workdir.root.mkdir(parents=True, exist_ok=True)
    file = lock.open('a')
  except OSError as e:
    raise errors.InputError(
      f'--workdir={workdir.root} cannot be written to ({e.strerror}): name a '
      'folder that can'
    ) from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.InputError(
        f'another command is at work in {workdir.root}: wait for it, or name '
        'another --workdir'
      ) from None
    try:
      yield
    finally:
      if [p.name for p in workdir.root.iterdir()] == [lock.name]:
        lock.unlink()
        workdir.root.rmdir()


# Writing: whole or not at all.


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path beside `path` to write to; renames it there at the end.

  On any exception what was written is removed and `path` is left as it was.
  Works for a file and, where `path` does not exist yet, for a directory.

  Raises:
    InputError: there is no space for it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  _remove(partial)
  try:
    yield partial
    _sync(partial)
    os.replace(partial, path)
  except BaseException as e:
    _remove(partial)
    if isinstance(e, OSError) and e.errno in _NO_SPACE:
      raise errors.InputError(
        f'{path} cannot be written ({os.strerror(e.errno)}): make room, and '
        'the same command goes on'
      ) from e
    raise


# The disk, the user's share of it, the largest file allowed.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
  """Data before name: a crash after the rename must not leave a hole."""
  for file in path.rglob('*') if path.is_dir() else [path]:
    if file.is_file():
      with file.open('rb+') as f:
        os.fsync(f.fileno())


def write_text(path: pathlib.Path, text: str) -> None:
  """UTF-8."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
  """Indented, for people too."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """One strict JSON object a line (NaN is refused, not written)."""
  with replacing(path) as partial, partial.open('w', encoding='utf-8') as f:
    for row in rows:
      f.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')


def write_parquet(path: pathlib.Path, table: pa.Table) -> None:
  """One table, whole."""
  with replacing(path) as partial:
    pq.write_table(table, partial)


def write_npy(path: pathlib.Path, array: np.ndarray) -> None:
  """One array, whole."""
  write_rows(path, array.shape, array.dtype, [array])


def write_rows(
  path: pathlib.Path,
  shape: Sequence[int],
  dtype: np.dtype,
  parts: Iterable[np.ndarray],
) -> None:
  """One array from its parts, which follow each other along the first axis.

  Through plain writes: np.save names no cause when the disk is full, and a
  memory map ends the process.
  """
  header = {'shape': tuple(shape), 'fortran_order': False}
  header['descr'] = np.lib.format.dtype_to_descr(np.dtype(dtype))
  with replacing(path) as partial, partial.open('wb') as f:
    np.lib.format.write_array_header_1_0(f, header)
    for part in parts:
      f.write(np.ascontiguousarray(part, dtype).data)


# Reading.


@contextlib.contextmanager
def _whole(path: pathlib.Path, remedy: str) -> Iterator[None]:
  """Turns what a reader makes of a damaged file into one line.

  Raises:
    InputError: the file is there and is not what was written.
  """
  try:
    yield
  except (FileNotFoundError, PermissionError):
    raise
  except (pa.ArrowException, OSError, ValueError) as e:
    reason = ' '.join(str(e).split()).rstrip('.')
    raise errors.InputError(f'{path} is damaged ({reason}): {remedy}') from e


def read_json(path: pathlib.Path) -> Any:
  """The value that `write_json` wrote."""
  return json.loads(path.read_text(encoding='utf-8'))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows that `write_jsonl` wrote."""
  with path.open(encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def read_parquet(
  path: pathlib.Path, columns: Sequence[str] | None = None
) -> pa.Table:
  """The table, or only the columns named.

  Raises:
    InputError: the file is damaged.
  """
  with _whole(path, _remedy(path)):
    return pq.read_table(path, columns=columns)


def _remedy(path: pathlib.Path) -> str:
  """What brings back a damaged table of a workdir."""
  root = path.parent.parent
  if path == Workdir(root).scores:
    return 'remove it and run the score stage again'
  if path == Workdir(root).responses:
    return (
      'remove it and run the annotate stage again, once with each file of '
      'answers that it took'
    )
  # The pool stage makes all of its tables anew where this one is missing.
  return f'remove {Workdir(root).pool} and run the pool stage again'


@dataclasses.dataclass(frozen=True)
class Prompts:
  """A pool or a held-out set, in file order; no field has a pool's answers.

  Attributes:
    ids: unique ids.
    prompts: text, or a list of {'role', 'content'} turns.
    tasks: a label for each prompt, or None when the file has none.
    responses: reference answers of a held-out set; None for a pool.
  """

  ids: list[str]
  prompts: list[Prompt]
  tasks: list[str] | None
  responses: list[str] | None = None

  def __len__(self) -> int:
    return len(self.ids)


def read_prompts(path: pathlib.Path) -> Prompts:
  """Reads pool.parquet or heldout.parquet.

  Raises:
    InputError: the file is damaged.
  """
  table = read_parquet(path)
  names = set(table.column_names)
  if 'messages' in names:
    prompts = [
      turns if turns is not None else text
      for turns, text in zip(
        table['messages'].to_pylist(),
        table['prompt'].to_pylist()
        if 'prompt' in names
        else [None] * len(table),
        strict=True,
      )
    ]
  else:
    prompts = table['prompt'].to_pylist()
  return Prompts(
    ids=table['id'].to_pylist(),
    prompts=prompts,
    tasks=table['task'].to_pylist() if 'task' in names else None,
    responses=table['response'].to_pylist() if 'response' in names else None,
  )


def read_responses(path: pathlib.Path) -> dict[str, str]:
  """Reads a table of id and response; an absent file has none.

  Raises:
    InputError: the file is damaged.
  """
  if not path.exists():
    return {}
  table = read_parquet(path, columns=['id', 'response'])
  return dict(
    zip(table['id'].to_pylist(), table['response'].to_pylist(), strict=True)
  )


# Features: one file, or one a process that scored.


def feature_files(workdir: Workdir) -> list[pathlib.Path]:
  """The files that hold the pool's features, in pool order; [] for none.

  Raises:
    InputError: they are not all there, or there are others beside them.
  """
  found = sorted(workdir.features.parent.glob('features*.npy'))
  if not found or found == [workdir.features]:
    return found
  count = int(match[1]) if (match := _PART.search(found[-1].name)) else 0
  parts = [workdir.features_part(i, count) for i in range(count)]
  if found != parts:
    odd = min({*found} ^ {*parts})
    raise errors.InputError(
      f'{odd} is {"not" if odd in found else "missing"} part of one set of '
      f'features: remove all features*.npy in {odd.parent} and score again'
    )
  return parts


_PART = re.compile(r'-of-(\d{5})\.npy$')


def read_features(workdir: Workdir) -> np.ndarray:
  """The pool's features [N, D] float32, in pool order.

  Raises:
    InputError: a file is damaged, or not all are there.
  """
  parts = []
  for path in feature_files(workdir):
    # All of them: the score stage refuses a set with one missing.
    with _whole(
      path,
      f'remove all features*.npy in {path.parent} and run the score stage '
      'again',
    ):
      parts.append(np.lib.format.open_memmap(path, mode='r'))
  return np.concatenate(parts)


def hash_features(workdir: Workdir) -> str:
  """One hash over all files of the features."""
  paths = feature_files(workdir)
  return hash_file(paths[0]) if len(paths) == 1 else hash_files(paths)


# Hashes.


def hash_file(path: pathlib.Path) -> str:
  """SHA-256 of a file's bytes, in hex; read once while the file is the same."""
  stat = path.stat()
  return _hash_file(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_file(path: pathlib.Path, *identity: int) -> str:
  del identity  # Distinguishes what a path named at different times.
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def hash_files(paths: Sequence[pathlib.Path]) -> str:
  """One SHA-256 over several files' names and bytes, order-independent."""
  digest = hashlib.sha256()
  for path in sorted(paths, key=lambda p: p.name):
    digest.update(f'{path.name}\0{hash_file(path)}\n'.encode())
  return digest.hexdigest()


def hash_json(value: Any) -> str:
  """SHA-256 of a value's canonical JSON."""
  return hashlib.sha256(
    json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
  ).hexdigest()


# The manifest: what every stage was made from.


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Names whose value differs, each with both values, shortened."""

  def short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):
      return value[:8]  # Of a hash the beginning tells as much.
    return text if len(text) <= 60 else f'{text[:57]}...'

  return [
    f'{name} (was {short(old.get(name))}, is {short(new.get(name))})'
    for name in [*new, *(n for n in old if n not in new)]
    if old.get(name) != new.get(name)
  ]


def refuse_change(
  what: str, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str
) -> None:
  """Raises InputError naming what changed between two fingerprints, if any."""
  if differences := changed(old, plain(new)):
    raise errors.InputError(
      f'{what} was made with other inputs: {"; ".join(differences)}: {remedy}'
    )


def plain(value: Any) -> Any:
  """The value as it comes back from JSON (tuples are lists there)."""
  return json.loads(json.dumps(value, ensure_ascii=False))


class Manifest:
  """manifest.json, rewritten whole after each change.

  A stage calls `begin` with its fingerprint (the options that it reads and
  the hashes of its inputs, by name), does its work, and calls `finish`.
  """

  def __init__(self, workdir: Workdir):
    self._path = workdir.manifest
    self.contents: dict[str, Any] = {'stages': {}}
    if self._path.exists():
      with _whole(
        self._path,
        'put back a copy of it, or remove it and run every stage again, of '
        'which pool and score make their files anew',
      ):
        self.contents = read_json(self._path)

  def begin(
    self,
    stage: str,
    fingerprint: Mapping[str, Any],
    remedy: str = 'set it back or use another --workdir',
  ) -> bool:
    """Returns True when the stage is done with this very fingerprint.

    Args:
      stage: its name.
      fingerprint: what it is made from, by name.
      remedy: what a person can do when that has changed.

    Raises:
      InputError: the stage was begun or done with another fingerprint.
    """
    fingerprint = plain(fingerprint)
    known = self.contents['stages'].get(stage)
    if known is not None:
      refuse_change(
        f'{stage} in this workdir',
        known['fingerprint'],
        fingerprint,
        remedy,
      )
      return known['done']
    self.contents['stages'][stage] = {
      'fingerprint': fingerprint,
      'done': False,
      'seconds': 0.0,
      'counts': {},
    }
    self._write()
    return False

  def finish(self, stage: str, counts: Mapping[str, Any]) -> None:
    entry = self.contents['stages'][stage]
    entry['done'] = True
    entry['counts'] = plain(counts)
    self._write()

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Adds the block's wall seconds to the stage, also when it is cut short."""
    start = time.monotonic()
    try:
      yield
    finally:
      entry = self.contents['stages'].setdefault(
        stage, {'fingerprint': {}, 'done': False, 'seconds': 0.0, 'counts': {}}
      )
      entry['seconds'] = round(entry['seconds'] + time.monotonic() - start, 3)
      self._write()

  def forget(self, stage: str) -> None:
    """Drops a stage's fingerprint: it has nothing done that could be mixed."""
    self.contents['stages'].pop(stage, None)

  def describe(self, **facts: Any) -> None:
    """Notes facts about the whole study beside the stages."""
    self.contents |= plain(facts)
    self._write()

  def counts(self, stage: str) -> dict[str, Any]:
    return self.contents['stages'].get(stage, {}).get('counts', {})

  def _write(self) -> None:
    self.contents['versions'] = versions()
    write_json(self._path, self.contents)


@functools.cache
def versions() -> dict[str, str]:
  """Versions of what the numbers may depend on."""
  import importlib.metadata
  import platform

  names = ('jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }
