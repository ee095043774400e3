"""Where rows come from: the demo, a TFDS split or a file."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Protocol

from edsft_jax import console, errors, store
from edsft_jax.pool import demo, readers, tfds_dataset

DEMO = 'demo'
# Bytes of a file, or records of a dataset, from which on reading takes seconds.
_LARGE_FILE = 2**25
_LARGE_DATASET = 2**16


class Source(Protocol):
  """Rows in order, which columns they have, and a hash of all of them."""

  def columns(self, limit: int) -> Sequence[str]:
    """Names in the order in which the first `limit` rows show them."""

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """The first `limit` rows, 0 for all; a bar where that takes seconds."""

  def hash(self) -> str:
    """SHA-256 in hex, of what the rows are made from."""


def open_source(path: str, fmt: str, option: str) -> Source:
  """Opens what an option names.

  Args:
    path: 'demo', 'tfds:NAME/SPLIT', or a file, with a scheme or without.
    fmt: of a file; 'auto' goes by its ending.
    option: the name of the option, for messages.

  Raises:
    InputError: it does not exist, cannot be read, or its format is unknown.
  """
  if path == DEMO:
    return _Demo()
  if path.startswith(tfds_dataset.PREFIX):
    return _Dataset(tfds_dataset.Split(path))
  if not path:
    raise errors.InputError(f'{option} is empty: name a file, or {DEMO}')
  file = store.local(path, option)
  readers.check_readable(file, option)
  return _File(file, readers.find_format(file, fmt))


class _Demo:
  def columns(self, limit: int) -> Sequence[str]:
    del limit  # All rows have the same ones.
    return list(demo.rows()[0])

  def rows(self, limit: int) -> Iterator[readers.Row]:
    for number, values in enumerate(demo.rows()[: limit or None], 1):
      yield readers.Row(number, values)

  def hash(self) -> str:
    return store.hash_json(demo.rows())


class _Dataset:
  def __init__(self, split: tfds_dataset.Split):
    self._split = split

  def columns(self, limit: int) -> Sequence[str]:
    del limit  # A dataset has features.
    return self._split.columns

  def rows(self, limit: int) -> Iterator[readers.Row]:
    rows, count = self._split.rows(limit), len(self._split)
    if count < _LARGE_DATASET:
      return rows
    return iter(console.bar('pool', limit or count, 'rows', iterable=rows))

  def hash(self) -> str:
    return self._split.hash()


class _File:
  def __init__(self, path: pathlib.Path, fmt: str):
    self._path = path
    self._format = fmt

  def columns(self, limit: int) -> Sequence[str]:
    return readers.columns(self._path, self._format, limit)

  def rows(self, limit: int) -> Iterator[readers.Row]:
    rows = readers.read(self._path, self._format, limit)
    if self._path.stat().st_size < _LARGE_FILE:
      return rows
    return iter(console.bar('pool', limit or None, 'rows', iterable=rows))

  def hash(self) -> str:
    return store.hash_file(self._path)
