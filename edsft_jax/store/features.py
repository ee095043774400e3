"""Features of the pool: one file, or one per process that scored it."""

import pathlib
import re

import numpy as np

from edsft_jax import errors
from edsft_jax.store import files, hashes
from edsft_jax.store.workdir import Workdir


def feature_files(workdir: Workdir) -> list[pathlib.Path]:
  """The files with the pool's features, in pool order; [] if there are none.

  Raises:
    InputError: the set is incomplete, or there are other files next to it.
  """
  found = sorted(workdir.features.parent.glob('features*.npy'))
  if not found or found == [workdir.features]:
    return found
  count = int(match[1]) if (match := _PART.search(found[-1].name)) else 0
  parts = [workdir.features_part(i, count) for i in range(count)]
  if found != parts:
    odd = min({*found} ^ {*parts})
    raise errors.InputError(
      f'{odd} {"does not belong to" if odd in found else "is missing from"} '
      f'one set of features: remove all features*.npy in {odd.parent} and '
      'score again'
    )
  return parts


_PART = re.compile(r'-of-(\d{5})\.npy$')


def read_features(workdir: Workdir) -> np.ndarray:
  """The pool's features [N, D] float32, in pool order.

  Raises:
    InputError: a file is damaged, or the set is incomplete.
  """
  parts = []
  for path in feature_files(workdir):
    # Remove all: the score stage would reject an incomplete set.
    with files.refuse_damaged(
      path,
      f'remove all features*.npy in {path.parent} and run the score stage '
      'again',
    ):
      parts.append(np.lib.format.open_memmap(path, mode='r'))
  return np.concatenate(parts)


def hash_features(workdir: Workdir) -> str:
  """One hash over all files of the features."""
  paths = feature_files(workdir)
  if len(paths) == 1:
    return hashes.hash_file(paths[0])
  return hashes.hash_files(paths)
