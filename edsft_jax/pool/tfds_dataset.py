"""Reads rows from a prepared TFDS dataset, without TensorFlow.

  pool.path=tfds:NAME[/CONFIG][:VERSION]/SPLIT      tfds:my_prompts/train[:100]

The dataset must be prepared as array_record in TFDS_DATA_DIR, by default
~/tensorflow_datasets. Nothing is downloaded or prepared here: that may take
hours and need TensorFlow, so it is left to a separate command, which the error
message gives. scripts/make_tfds_pool.py prepares a local file of prompts.
"""

from collections.abc import Iterable, Iterator
import contextlib
import os
import pathlib
import re
from typing import Any

from edsft_jax import errors
from edsft_jax.tables import readers

PREFIX = 'tfds:'
FORMAT = 'array_record'
_PATH = re.compile(
  PREFIX + r'(?P<name>\w+)(/(?P<config>\w[\w.-]*))?'
  r'(:(?P<version>\d+\.\d+\.\d+))?/(?P<split>[^/]+)'
)
_VERSION = re.compile(r'\d+\.\d+\.\d+')
# Records decoded at a time.
_BATCH_ROWS = 1024


class Split:
  """A split of a prepared dataset, or a slice of one, in its own order.

  Bytes become text, and class labels their names.

  Attributes:
    columns: names of the features.
  """

  def __init__(self, path: str):
    """Opens what `path` names.

    Raises:
      InputError: no such dataset, config, version or split is prepared as
        array_record, or it is damaged.
    """
    # Imported here: it takes half a second, which reading files does not need.
    import tensorflow_datasets as tfds

    match = _PATH.fullmatch(path)
    if match is None:
      raise errors.InputError(
        f'{path} does not name a split: write tfds:NAME/SPLIT, or '
        'tfds:NAME/CONFIG:1.0.0/SPLIT'
      )
    name, split = match['name'], match['split']
    folder = _find_folder(path, name, match['config'], match['version'])
    self._damage = f'{path}: {folder} is damaged: prepare it again'
    with _as_input_error(self._damage):
      builder = tfds.builder_from_directory(folder)
    info = builder.info
    formats = {fmt.value for fmt in info.available_file_formats()}
    if FORMAT not in formats:
      raise errors.InputError(
        f'{path}: {folder} is prepared as {", ".join(sorted(formats))}, not as '
        f'{FORMAT}: remove it and {_remedy(name)}'
      )
    splits = ', '.join(
      f'{n} ({s.num_examples:,})' for n, s in info.splits.items()
    )
    with _as_input_error(
      f'{path}: name one of the splits {splits}, or a slice such as '
      f'{next(iter(info.splits), "train")}[:100]'
    ):
      is_empty = info.splits[split].num_examples == 0
    self.columns: list[str] = sorted(info.features)
    self._features = info.features
    self._records: Any = []
    if not is_empty:
      with _as_input_error(self._damage):
        self._records = builder.as_data_source(split, file_format=FORMAT)

  def __len__(self) -> int:
    return len(self._records)

  def rows(self, limit: int = 0) -> Iterator[readers.Row]:
    """Yields the first `limit` records (0: all), numbered from 1.

    Raises:
      InputError: the prepared files are damaged.
    """
    end = min(limit or len(self), len(self))
    for start in range(0, end, _BATCH_ROWS):
      numbers = range(start, min(start + _BATCH_ROWS, end))
      with _as_input_error(self._damage):
        records = self._records.__getitems__(numbers)
      for number, record in zip(numbers, records, strict=True):
        yield readers.Row(number + 1, self._values(record))

  def hash(self) -> str:
    """SHA-256 of the records, in hex.

    The files differ each time TFDS writes them, but the same prompts prepared
    on another machine are the same pool.
    """
    return readers.hash_rows(self.rows())

  def _values(self, record: dict[str, Any]) -> dict[str, Any]:
    return {
      name: _value(record.get(name), self._features[name])
      for name in self.columns
    }


def _value(value: Any, feature: Any) -> Any:
  """A feature's value as it would be in a JSON file."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.ClassLabel):
    return feature.int2str(value) if value >= 0 else None  # -1: unknown.
  if isinstance(feature, tfds.features.Sequence) and isinstance(value, dict):
    # TFDS returns a list of turns as a list of roles and a list of contents.
    turns = zip(*value.values(), strict=True)
    value = [dict(zip(value, turn, strict=True)) for turn in turns]
  return _decode(value)


def _decode(value: Any) -> Any:
  """Decodes bytes to text at any depth; bytes that are not UTF-8 stay."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  if isinstance(value, dict):
    return {name: _decode(v) for name, v in value.items()}
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, Iterable) and not isinstance(value, str):
    return [_decode(v) for v in value]
  return value


@contextlib.contextmanager
def _as_input_error(message: str) -> Iterator[None]:
  """Turns errors of TFDS, protobuf and array_record into an InputError."""
  try:
    yield
  except Exception as e:  # They have no common error class.
    reason = next(iter(str(e).splitlines()), type(e).__name__)
    raise errors.InputError(f'{message} ({reason})') from None


def _find_folder(
  path: str, name: str, config: str | None, version: str | None
) -> pathlib.Path:
  """The folder of the dataset's version; the newest unless one is named."""
  root = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = pathlib.Path(root).expanduser()
  datasets = [d for d in _folders(folder) if _versions(d) or _configs(d)]
  if folder / name not in datasets:
    raise errors.InputError(
      f'{path}: no dataset {name} is prepared in {folder} (it has '
      f'{_names(datasets) or "none"}): '
      f'set TFDS_DATA_DIR to the folder that has it, or {_remedy(name)}'
    )
  folder = folder / name
  configs = _configs(folder)
  if config is None and configs and not _versions(folder):
    raise errors.InputError(
      f'{path}: {folder} has the configs {_names(configs)}: name one, as in '
      f'tfds:{name}/{configs[0].name}/SPLIT'
    )
  if config is not None:
    if folder / config not in configs:
      raise errors.InputError(
        f'{path}: {folder} has no config {config} (it has '
        f'{_names(configs) or "none"}): '
        f'name another, or {_remedy(f"{name}/{config}")}'
      )
    folder = folder / config
  versions = _versions(folder)
  if version is None:
    return versions[-1]
  if folder / version not in versions:
    raise errors.InputError(
      f'{path}: {folder} has no version {version} (it has {_names(versions)}): '
      'name another, or leave it out for the newest'
    )
  return folder / version


def _remedy(name: str) -> str:
  return (
    'prepare it in Python: import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}').download_and_prepare(file_format='{FORMAT}')"
  )


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(d for d in folder.glob('*') if d.is_dir())


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
  versions = [d for d in _folders(folder) if _VERSION.fullmatch(d.name)]
  return sorted(versions, key=lambda d: [int(n) for n in d.name.split('.')])


def _configs(folder: pathlib.Path) -> list[pathlib.Path]:
  return [d for d in _folders(folder) if _versions(d)]


def _names(folders: list[pathlib.Path]) -> str:
  return ', '.join(folder.name for folder in folders)
