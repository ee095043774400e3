"""Files in other storages, as gs:// and s3://, fetched where fsspec can."""

import atexit
import functools
import pathlib
import shutil
import tempfile

from edsft_jax import errors
from edsft_jax.store.workdir import has_scheme


def local(path: str, option: str) -> pathlib.Path:
  """The file that a person named, on this machine.

  One with a scheme is fetched into a folder that lasts as long as the process,
  once; a path without one is returned as it is, whether it exists or not.

  Args:
    path: a path, or SCHEME://... of any storage that fsspec knows.
    option: the option that named it, for messages.

  Raises:
    InputError: the storage cannot be reached, or has no such file.
  """
  return _fetch(path, option) if has_scheme(path) else pathlib.Path(path)


@functools.cache
def _fetch(path: str, option: str) -> pathlib.Path:
  try:
    import fsspec
  except ImportError:
    raise errors.InputError(
      f'{option}={path} needs fsspec: pip install fsspec, and what it asks for '
      'to reach that storage, or copy the file here'
    ) from None
  # The name stays: its ending tells the format.
  file = pathlib.Path(tempfile.mkdtemp(dir=_folder()), path.rpartition('/')[2])
  try:
    with fsspec.open(path, 'rb') as source, file.open('wb') as copy:
      shutil.copyfileobj(source, copy)
  # Every storage has errors of its own.
  except Exception as e:
    reason = ' '.join(str(e).split()) or type(e).__name__
    raise errors.InputError(
      f'{option}={path} cannot be read ({reason}): check the path and the '
      'rights to read it, or copy the file here'
    ) from None
  return file


@functools.cache
def _folder() -> pathlib.Path:
  folder = pathlib.Path(tempfile.mkdtemp(prefix='edsft_jax-'))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
