"""The command lines of all scripts: --help, paths, names and errors."""

import argparse
from collections.abc import Callable, Collection
import pathlib
import sys
from typing import NoReturn

# Libraries that only the benchmarks compare with.
PEERS = ('apricot', 'lm_eval', 'peft', 'submodlib', 'torch')


def parser(doc: str) -> argparse.ArgumentParser:
  """A parser whose --help shows the script's docstring."""
  return argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )


def existing(text: str) -> pathlib.Path:
  """The type of an argument that names a file or folder to read."""
  path = pathlib.Path(text)
  if not path.exists():
    raise argparse.ArgumentTypeError(f'{text} does not exist: check the path')
  return path


def existing_file(text: str) -> pathlib.Path:
  """The type of an argument that names a file to read."""
  path = existing(text)
  if path.is_dir():
    raise argparse.ArgumentTypeError(f'{text} is a folder: name a file')
  return path


def existing_folder(text: str) -> pathlib.Path:
  """The type of an argument that names a folder to read."""
  path = existing(text)
  if not path.is_dir():
    raise argparse.ArgumentTypeError(f'{text} is not a folder: name one')
  return path


def positive(text: str) -> int:
  """The type of an argument that is a whole number of at least 1."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text}: must be 1 or more')
  return int(text)


def one_of(names: Collection[str]) -> Callable[[str], str]:
  """The type of an argument that is one of these names.

  argparse refuses its `choices` where an optional list of them is left out.
  """

  def check(text: str) -> str:
    if text not in names:
      raise argparse.ArgumentTypeError(
        f'{text!r} is unknown: use any of {", ".join(names)}'
      )
    return text

  return check


def add_names(
  to: argparse.ArgumentParser, names: Collection[str], about: str = ''
) -> None:
  """Adds the argument `names`: any of these, or [] if none is given."""
  to.add_argument(
    'names',
    nargs='*',
    type=one_of(names),
    help=f'any of {", ".join(names)}; {about or "all by default"}',
  )


def run(main: Callable[[], None]) -> None:
  """Runs a script's main; exits with 2 and one line on an InputError.

  A missing library of the extra `bench` is one line, too.
  """
  try:
    main()
  except ModuleNotFoundError as error:
    if error.name not in PEERS:
      raise
    _exit(f"{error.name} is not installed: pip install -e '.[bench]'")
  except ValueError as error:
    # Imported late: the peers' environments may have no edsft_jax.
    from edsft_jax import errors

    if not isinstance(error, errors.InputError):
      raise
    _exit(str(error))


def _exit(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
