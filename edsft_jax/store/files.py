"""A workdir's files are whole or absent, and readable as the umask says.

A file appears under its name only when it is complete: it is written next to
its place and renamed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import errno
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import errors
from edsft_jax.store.workdir import Workdir


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path next to `path` to write to; renames it at the end.

  On any exception what was written is removed and `path` is left as it was.
  Works for a file and, where `path` does not exist yet, for a directory.
  Others may read it as the umask says, whatever library wrote it.

  Raises:
    InputError: there is no space for it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  _remove(partial)
  try:
    yield partial
    _grant(partial)
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


def _grant(path: pathlib.Path) -> None:
  """Sets permissions as plain writes would; safetensors writes 0600."""
  mask = os.umask(0o077)  # It cannot only be read.
  os.umask(mask)
  for each in [path, *path.rglob('*')]:
    mode = (0o777 if each.is_dir() else 0o666) & ~mask
    if each.stat().st_mode & 0o777 != mode:
      # Some network file systems refuse; what is written is whole all the same.
      with contextlib.suppress(OSError):
        each.chmod(mode)


def _sync(path: pathlib.Path) -> None:
  """Data before name: a crash after the rename must not leave a hole."""
  for file in [path, *path.rglob('*')]:
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
  """One strict JSON object per line (NaN is refused, not written)."""
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
  dtype: np.typing.DTypeLike,
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


@contextlib.contextmanager
def refuse_damaged(path: pathlib.Path, remedy: str) -> Iterator[None]:
  """Turns whatever a reader raises for a damaged file into one line.

  Raises:
    InputError: the file exists and is not what was written.
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
  with refuse_damaged(path, _remedy(path)):
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
  # The pool stage makes all of its tables again where this one is missing.
  return f'remove {Workdir(root).pool} and run the pool stage again'
