"""Reads and writes the files of a workdir.

Files are written atomically: to a temporary path next to the target, which is
renamed once complete. Their permissions follow the umask.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import errno
import json
import os
import pathlib
import shutil
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import errors
from edsft_jax.store.workdir import Workdir


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path next to `path` to write to, and renames it at the end.

  On any exception, what was written is removed and `path` is unchanged. Works
  for files and, if `path` does not exist yet, for directories. Permissions
  follow the umask, whatever library wrote the file.

  Raises:
    InputError: the disk or the quota is full.
  """
  partial = path.with_name(f'.{path.name}.partial')
  with reporting_full_disk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
      yield partial
      _apply_umask(partial)
      _sync(partial)
      os.replace(partial, path)
    except BaseException:
      _remove(partial)
      raise


# Disk full, quota exceeded, file too large.
# The umask belongs to the whole process: one thread at a time may change it.
_UMASK = threading.Lock()
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def reporting_full_disk(path: pathlib.Path) -> Iterator[None]:
  """Turns the error for a full disk or quota into one that names `path`.

  Libraries in C++ have it only in the text of their errors.

  Raises:
    InputError: the disk or the quota is full.
  """
  try:
    yield
  except Exception as e:
    for number in _NO_SPACE:
      reason = os.strerror(number)
      if reason in str(e) or getattr(e, 'errno', None) == number:
        raise errors.InputError(
          f'{path} cannot be written ({reason}): free some space and run the '
          'same command to resume'
        ) from e
    raise


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _apply_umask(path: pathlib.Path) -> None:
  """Sets the permissions that plain writes have; safetensors writes 0600."""
  with _UMASK:
    mask = os.umask(0o077)  # The umask can only be read by setting it.
    os.umask(mask)
  for each in [path, *path.rglob('*')]:
    mode = (0o777 if each.is_dir() else 0o666) & ~mask
    if each.stat().st_mode & 0o777 != mode:
      # Some network file systems do not allow it; the content is unaffected.
      with contextlib.suppress(OSError):
        each.chmod(mode)


def _sync(path: pathlib.Path) -> None:
  """Flushes data to disk, so that a crash after the rename loses nothing."""
  for file in [path, *path.rglob('*')]:
    if file.is_file():
      with file.open('rb+') as f:
        os.fsync(f.fileno())


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes text as UTF-8."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as indented JSON."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes one strict JSON object per line (NaN is an error)."""
  with replacing(path) as partial, partial.open('w', encoding='utf-8') as f:
    for row in rows:
      f.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')


def append_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Appends one JSON object per line, for `read_appended`.

  Raises:
    InputError: the disk or the quota is full.
  """
  lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
  with reporting_full_disk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a', encoding='utf-8') as f:
      f.write(lines)


def read_appended(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads what was appended; none without a file.

  Cuts off a last line that was not written whole, so that lines can be appended
  again, and leaves out damaged ones.
  """
  if not path.exists():
    return []
  content = path.read_bytes()
  whole = content.rfind(b'\n') + 1
  if whole < len(content):
    os.truncate(path, whole)
  rows = []
  for line in content[:whole].decode('utf-8', 'replace').splitlines():
    with contextlib.suppress(ValueError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]


def write_parquet(path: pathlib.Path, table: pa.Table) -> None:
  """Writes a table."""
  with replacing(path) as partial:
    pq.write_table(table, partial)


def write_npy(path: pathlib.Path, array: np.ndarray) -> None:
  """Writes an array."""
  write_rows(path, array.shape, array.dtype, [array])


def write_rows(
  path: pathlib.Path,
  shape: Sequence[int],
  dtype: np.typing.DTypeLike,
  parts: Iterable[np.ndarray],
) -> None:
  """Writes an array from its parts, concatenated along the first axis.

  Uses plain writes: on a full disk, np.save does not say what is wrong, and a
  memory map kills the process.
  """
  header = {'shape': tuple(shape), 'fortran_order': False}
  header['descr'] = np.lib.format.dtype_to_descr(np.dtype(dtype))
  with replacing(path) as partial, partial.open('wb') as f:
    np.lib.format.write_array_header_1_0(f, header)
    for part in parts:
      f.write(np.ascontiguousarray(part, dtype).data)


@contextlib.contextmanager
def refuse_damaged(path: pathlib.Path, remedy: str) -> Iterator[None]:
  """Turns a reader's errors for a damaged file into an InputError.

  Raises:
    InputError: the file exists but cannot be read as what it should be.
  """
  try:
    yield
  except (FileNotFoundError, PermissionError):
    raise
  except (pa.ArrowException, OSError, ValueError) as e:
    reason = ' '.join(str(e).split()).rstrip('.')
    raise errors.InputError(f'{path} is damaged ({reason}): {remedy}') from e


def read_json(path: pathlib.Path) -> Any:
  """Reads what `write_json` wrote."""
  return json.loads(path.read_text(encoding='utf-8'))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads what `write_jsonl` wrote."""
  with path.open(encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def read_cell(path: pathlib.Path) -> dict[str, Any]:
  """Reads a cell.json.

  Raises:
    InputError: the file is damaged.
  """
  remedy = (
    f'restore it from a copy, or remove {path.parent} and run the finetune '
    'stage again'
  )
  with refuse_damaged(path, remedy):
    return read_json(path)


def read_parquet(
  path: pathlib.Path, columns: Sequence[str] | None = None
) -> pa.Table:
  """Reads a table, or only the given columns.

  Raises:
    InputError: the file is damaged.
  """
  with refuse_damaged(path, _remedy(path)):
    return pq.read_table(path, columns=columns)


def _remedy(path: pathlib.Path) -> str:
  """How the user can restore a damaged table of a workdir."""
  root = path.parent.parent
  if path == Workdir(root).scores:
    return 'remove it and run the score stage again'
  if path == Workdir(root).responses:
    return (
      'remove it and run the annotate stage again, once with each file of '
      'answers that it has read'
    )
  # If this one is missing, the pool stage makes all of its tables again.
  return f'remove {Workdir(root).pool} and run the pool stage again'
