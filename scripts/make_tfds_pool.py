"""Prepares a local file of prompts as a TFDS dataset, without TensorFlow.

  python scripts/make_tfds_pool.py prompts.jsonl --name=my_prompts
  python -m edsft_jax.main --config.pool.path=tfds:my_prompts/train ...

Any file that pool.path reads can be prepared: .jsonl, .json, .csv, .parquet,
plain or gzipped. The pool is then the same as that of the file, in the same
order, except for what TFDS does not support: floats have 32 bits, columns are
sorted by name, and nested ones are left out (as they are in a pool).
"""

from collections.abc import Iterator, Set
import functools
import json
import pathlib
import re
from typing import Any

from absl import logging
import command_line
import numpy as np
import tensorflow_datasets as tfds

from edsft_jax import console, errors
from edsft_jax.pool import tfds_dataset
from edsft_jax.tables import readers


# tfds.core has no types, so mypy finds only object's __init_subclass__.
class PromptFile(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A file of prompts as a dataset of one split, in the file's order."""

  def __init__(
    self,
    file: pathlib.Path,
    name: str,
    data_dir: str | None = None,
    version: str = '1.0.0',
    split: str = 'train',
  ):
    """Scans the file; writes nothing yet.

    Raises:
      InputError: the file cannot be read, has a broken row, or a column of
        different kinds, such as text and lists.
    """
    readers.check_readable(file, 'the file')
    self.name = name
    self.VERSION = tfds.core.Version(version)
    self._split = split
    self._rows = functools.partial(
      readers.read, file, readers.find_format(file, 'auto', 'its extension')
    )
    self._kinds = _find_kinds(file, self._rows())
    super().__init__(data_dir=data_dir, file_format=tfds_dataset.FORMAT)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {name: _FEATURES[kind] for name, kind in self._kinds.items()}
    return tfds.core.DatasetInfo(
      builder=self,
      description='Prompts from a local file.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    return {self._split: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(self._rows()):
      # Otherwise _find_kinds would have raised.
      assert row.values is not None
      yield (
        number,
        {
          name: _to_kind(row.values.get(name), kind)
          for name, kind in self._kinds.items()
        },
      )


_TEXT = tfds.features.Text()
_FEATURES = {
  'text': tfds.features.Text(optional=True),
  'integer': tfds.features.Scalar(np.int64, optional=True),
  'number': tfds.features.Scalar(np.float32, optional=True),
  'truth': tfds.features.Scalar(np.bool_, optional=True),
  'texts': tfds.features.Sequence(_TEXT),
  'turns': tfds.features.Sequence({'role': _TEXT, 'content': _TEXT}),
}


def _find_kinds(
  file: pathlib.Path, rows: Iterator[readers.Row]
) -> dict[str, str]:
  """Column -> its kind in _FEATURES; TFDS has one kind per column."""
  found: dict[str, set[str]] = {}
  for row in rows:
    where = f'{file}, line {row.line}'
    if row.values is None:
      raise errors.InputError(f'{where}: {row.problem}: fix it')
    for name, value in row.values.items():
      try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
      except UnicodeEncodeError:
        raise errors.InputError(
          f'{where}: {name!r} has half of a surrogate pair: fix it'
        ) from None
      found.setdefault(name, set()).update(_kinds(value))
  kinds = {name: _join(file, name, each) for name, each in found.items()}
  for name in [name for name, kind in kinds.items() if kind == 'nested']:
    console.say('tfds', f'column {name!r} is left out: nested')
    del kinds[name]
  if not kinds:
    raise errors.InputError(f'{file} has no rows: give one prompt per row')
  return kinds


def _kinds(value: Any) -> Set[str]:
  """The kinds that a value gives to its column; none for a missing value."""
  if _is_gap(value):
    return set()
  if isinstance(value, bool):
    return {'truth'}
  if isinstance(value, int):
    return {'integer' if abs(value) < 2**63 else 'text'}
  if isinstance(value, float):
    return {'number'}
  if isinstance(value, str):
    return {'text'}
  if isinstance(value, list):
    if all(isinstance(v, str) for v in value):
      return {'texts'}
    if all(_is_turn(v) for v in value):
      return {'turns'}
  return {'nested'}


def _is_gap(value: Any) -> bool:
  return value is None or value == [] or value != value


def _is_turn(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(value.get(name), str) for name in ('role', 'content')
  )


def _join(file: pathlib.Path, name: str, kinds: Set[str]) -> str:
  """The kind of a column whose values have these kinds."""
  if len(kinds) == 1:
    return next(iter(kinds))
  if kinds <= {'text', 'integer', 'number', 'truth'}:
    return 'text'
  raise errors.InputError(
    f'{file}: column {name!r} holds {" and ".join(sorted(kinds))}, and TFDS '
    'supports one kind per column: split the file in two'
  )


def _to_kind(value: Any, kind: str) -> Any:
  """The value as the builder expects it."""
  if _is_gap(value):
    return [] if kind in ('texts', 'turns') else None
  if kind == 'turns':
    return [
      {name: turn[name] for name in ('role', 'content')} for turn in value
    ]
  return str(value) if kind == 'text' else value


def prepare(
  file: pathlib.Path, name: str, data_dir: str | None, version: str, split: str
) -> PromptFile:
  """Writes the dataset atomically.

  Raises:
    InputError: see PromptFile; or the dataset already exists.
  """
  for option, value, pattern in (
    ('name', name, '[a-z][a-z0-9_]*'),
    ('split', split, '[a-z][a-z0-9_]*'),
    ('version', version, r'\d+\.\d+\.\d+'),
  ):
    if not re.fullmatch(pattern, value):
      raise errors.InputError(
        f'--{option}={value} is not of the form {pattern}'
      )
  builder = PromptFile(file, name, data_dir, version, split)
  if builder.data_path.exists():
    raise errors.InputError(
      f'{builder.data_path} already exists: give another --version, or remove '
      'it'
    )
  builder.download_and_prepare(file_format=tfds_dataset.FORMAT)
  return builder


def main() -> None:
  """Prepares the named file and prints how to read it."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('file', type=command_line.existing_file, help='file of prompts')
  add('--name', required=True, help="dataset name: letters, digits, '_'")
  add('--data_dir', help='folder of datasets; TFDS_DATA_DIR by default')
  add('--version', default='1.0.0')
  add('--split', default='train', help='name of its only split')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  builder = prepare(**vars(arguments))
  count = builder.info.splits[arguments.split].num_examples
  console.say('tfds', f'{console.count(count, "row")} in {builder.data_path}')
  data_dir, version = arguments.data_dir, arguments.version
  set_folder = f'TFDS_DATA_DIR={data_dir} ' if data_dir else ''
  console.say(
    'tfds',
    f'read them: {set_folder}python -m edsft_jax.main '
    f'--config.pool.path=tfds:{arguments.name}:{version}/{arguments.split}',
  )


if __name__ == '__main__':
  command_line.run(main)
