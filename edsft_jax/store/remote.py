"""Fetches files with a scheme, such as gs:// and s3://, through fsspec."""

import atexit
import functools
import glob
import pathlib
import shutil
import tempfile

from edsft_jax import errors
from edsft_jax.store.workdir import has_scheme


def local(path: str, option: str) -> pathlib.Path:
  """The local path of a file that the user named.

  A path with a scheme is fetched once, into a folder that is removed when the
  process exits. Other paths are returned unchanged, whether they exist or not.

  Args:
    path: a path, or SCHEME://... for any storage that fsspec supports.
    option: the option that names it, for messages.

  Raises:
    InputError: the storage cannot be reached, or does not have the file.
  """
  return _fetch(path, option) if has_scheme(path) else pathlib.Path(path)


@functools.cache
def _fetch(path: str, option: str) -> pathlib.Path:
  if glob.has_magic(path):
    raise errors.InputError(
      f'{option}={path} has wildcards: with a scheme, name a single file, or '
      'copy the files here'
    )
  try:
    import fsspec
  except ImportError:
    raise errors.InputError(
      f'{option}={path} needs fsspec: pip install fsspec and its backend for '
      'this storage, or copy the file here'
    ) from None
  # Keeps the name, whose extension gives the format.
  file = pathlib.Path(tempfile.mkdtemp(dir=_folder()), path.rpartition('/')[2])
  try:
    with fsspec.open(path, 'rb') as source, file.open('wb') as copy:
      shutil.copyfileobj(source, copy)
  # Every storage has its own errors.
  except Exception as e:
    reason = ' '.join(str(e).split()) or type(e).__name__
    raise errors.InputError(
      f'{option}={path} cannot be read ({reason}): check the path and your '
      'permission to read it, or copy the file here'
    ) from None
  return file


@functools.cache
def _folder() -> pathlib.Path:
  folder = pathlib.Path(tempfile.mkdtemp(prefix='edsft_jax-'))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
