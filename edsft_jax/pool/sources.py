"""Sources of rows: the demo, datasets, files."""

from collections.abc import Iterator, Sequence
import dataclasses
import glob
import itertools
import json
import pathlib
from typing import Protocol

from edsft_jax import console, errors, store
from edsft_jax.pool import demo, tfds_dataset
from edsft_jax.tables import hub_dataset, readers

DEMO = 'demo'
# The option for messages about the format of a file.
_OPTION = 'pool.format'
# From this size in bytes, or number of records, reading takes seconds.
LARGE_FILES = 2**25
LARGE_DATASET = 2**16
# Files that datasets.save_to_disk writes, for a Dataset and a DatasetDict.
_STATE, _DICT = 'state.json', 'dataset_dict.json'


class Source(Protocol):
  """Rows in order, and a hash of all of them."""

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """The first `limit` rows, 0 for all; a bar where that takes seconds."""

  def hash(self) -> str:
    """SHA-256 in hex, of what the rows are made from."""


def open_source(path: str, fmt: str, option: str) -> Source:
  """Opens the source that an option names.

  Args:
    path: 'demo', 'tfds:NAME/SPLIT', 'hf:NAME/SPLIT', a file, with or without a
      scheme, a folder of files, or a pattern with *.
    fmt: format of files; 'auto' decides by their extension.
    option: name of the option, for messages.

  Raises:
    InputError: it does not exist, cannot be read, or its format is unknown.
  """
  if path == DEMO:
    return Demo()
  if path.startswith(tfds_dataset.PREFIX):
    return Dataset(tfds_dataset.Split(path))
  if path.startswith(hub_dataset.PREFIX):
    return Dataset(hub_dataset.Split(path))
  if not path:
    raise errors.InputError(f'{option} is empty: name a file, or {DEMO}')
  return Files(_find_files(path, fmt, option), fmt)


class Demo:
  """The generated pool."""

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    for number, values in enumerate(demo.rows()[: limit or None], 1):
      yield readers.Row(number, values)

  def hash(self) -> str:
    """See Source."""
    return store.hash_json(demo.rows())


class Dataset:
  """A split of a dataset that another library reads."""

  def __init__(
    self,
    split: tfds_dataset.Split | hub_dataset.Split,
    large: int = LARGE_DATASET,
  ):
    """Rows show a bar from `large` records on."""
    self._split = split
    self._large = large

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    rows, count = self._split.rows(limit), len(self._split)
    if count < self._large:
      return rows
    return iter(console.bar('pool', limit or count, 'rows', iterable=rows))

  def hash(self) -> str:
    """See Source."""
    return self._split.hash()


class Files:
  """Files on this machine, one after the other."""

  def __init__(
    self, paths: Sequence[pathlib.Path], fmt: str, large: int = LARGE_FILES
  ):
    """Rows show a bar from `large` bytes on.

    Raises:
      InputError: the format of a file is unknown.
    """
    self._formats = {p: readers.find_format(p, fmt, _OPTION) for p in paths}
    self._large = large

  def rows(self, limit: int) -> Iterator[readers.Row]:
    """See Source."""
    rows = itertools.chain.from_iterable(map(self._rows_of, self._formats))
    limited = itertools.islice(rows, limit or None)
    if sum(path.stat().st_size for path in self._formats) < self._large:
      return limited
    return iter(console.bar('pool', limit or None, 'rows', iterable=limited))

  def hash(self) -> str:
    """See Source."""
    hashes = [store.hash_file(path) for path in self._formats]
    return hashes[0] if len(hashes) == 1 else store.hash_json(hashes)

  def _rows_of(self, path: pathlib.Path) -> Iterator[readers.Row]:
    for row in readers.read(path, self._formats[path], _OPTION):
      if len(self._formats) > 1:
        row = dataclasses.replace(row, file=path.name)
      yield row


def _find_files(path: str, fmt: str, option: str) -> list[pathlib.Path]:
  """The file, the files in a folder, or the files that match a pattern.

  Raises:
    InputError: there is none, or one cannot be opened.
  """
  if store.has_scheme(path):
    return [store.local(path, option)]
  file = pathlib.Path(path)
  if file.is_dir():
    files = _files_inside(file, fmt, option)
  elif not file.exists() and glob.has_magic(path):
    files = sorted(map(pathlib.Path, glob.glob(path, recursive=True)))
    files = [file for file in files if file.is_file()]
    if not files:
      raise errors.InputError(
        f'{option}={path} matches no file: check the pattern'
      )
  else:
    files = [file]
  for file in files:
    readers.check_readable(file, option)
  return files


def _files_inside(
  folder: pathlib.Path, fmt: str, option: str
) -> list[pathlib.Path]:
  """The files in a folder, or of a dataset that was saved there."""
  if (folder / _DICT).exists():
    splits = json.loads((folder / _DICT).read_text())['splits']
    raise errors.InputError(
      f'{option}={folder} has the splits {", ".join(splits)}: name one, such '
      f'as {folder / splits[0]}'
    )
  if (folder / _STATE).exists():
    data = json.loads((folder / _STATE).read_text())['_data_files']
    return [folder / file['filename'] for file in data]
  files = sorted(f for f in folder.iterdir() if f.is_file())
  known = [f for f in files if fmt != 'auto' or readers.is_known(f)]
  known = [f for f in known if not f.name.startswith('.')]
  if not known:
    raise errors.InputError(
      f'{option}={folder} has no file with a known extension '
      f'({", ".join(readers.FORMATS)}): add one, or set pool.format'
    )
  if ignored := len(files) - len(known):
    console.say(
      'pool', f'files in {folder}: {len(known)} read, {ignored} ignored'
    )
  return known
