"""Sources of rows: the demo, a TFDS split or a file."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Protocol

from edsft_jax import console, errors, store
from edsft_jax.pool import demo, readers, tfds_dataset

DEMO = 'demo'
# Sizes from which reading takes seconds: bytes of a file, records of a dataset.
LARGE_FILE = 2**25
LARGE_DATASET = 2**16


class Source(Protocol):
  """An ordered source of rows."""

  def columns(self, limit: int) -> Sequence[str]:
    """Column names, in the order in which the first `limit` rows have them."""

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """The first `limit` rows, 0 for all; shows a bar if it takes seconds."""

  def hash(self) -> str:
    """SHA-256, in hex, of the file or the records."""


def open_source(path: str, fmt: str, option: str) -> Source:
  """Opens the source that an option names.

  Args:
    path: 'demo', 'tfds:NAME/SPLIT', or a file, with or without a scheme.
    fmt: format of a file; 'auto' decides by its extension.
    option: name of the option, for messages.

  Raises:
    InputError: it does not exist, cannot be read, or its format is unknown.
  """
  if path == DEMO:
    return Demo()
  if path.startswith(tfds_dataset.PREFIX):
    return Dataset(tfds_dataset.Split(path))
  if not path:
    raise errors.InputError(f'{option} is empty: name a file, or {DEMO}')
  file = store.local(path, option)
  readers.check_readable(file, option)
  return File(file, readers.find_format(file, fmt))


class Demo:
  """The generated pool."""

  def columns(self, limit: int) -> Sequence[str]:
    """See Source."""
    del limit  # All rows have the same columns.
    return list(demo.rows()[0])

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    for number, values in enumerate(demo.rows()[: limit or None], 1):
      yield readers.Row(number, values)

  def hash(self) -> str:
    """See Source."""
    return store.hash_json(demo.rows())


class Dataset:
  """A split of a prepared TFDS dataset."""

  def __init__(self, split: tfds_dataset.Split, large: int = LARGE_DATASET):
    """Rows show a bar from `large` records on."""
    self._split = split
    self._large = large

  def columns(self, limit: int) -> Sequence[str]:
    """See Source."""
    del limit  # The dataset declares its features.
    return self._split.columns

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    rows, count = self._split.rows(limit), len(self._split)
    if count < self._large:
      return rows
    return iter(console.bar('pool', limit or count, 'rows', iterable=rows))

  def hash(self) -> str:
    """See Source."""
    return self._split.hash()


class File:
  """A file on this machine."""

  def __init__(self, path: pathlib.Path, fmt: str, large: int = LARGE_FILE):
    """Rows show a bar from `large` bytes on."""
    self._path = path
    self._format = fmt
    self._large = large

  def columns(self, limit: int) -> Sequence[str]:
    """See Source."""
    return readers.columns(self._path, self._format, limit)

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    rows = readers.read(self._path, self._format, limit)
    if self._path.stat().st_size < self._large:
      return rows
    return iter(console.bar('pool', limit or None, 'rows', iterable=rows))

  def hash(self) -> str:
    """See Source."""
    return store.hash_file(self._path)
