"""Keeps a finished study in a folder of the repository, and checks it there.

  python scripts/keep_study.py keep WORKDIR FOLDER --log=log.txt
  python scripts/keep_study.py verify FOLDER

keep copies the page, plots, tables and config, and adds the value of every
item, the log of the study's commands and the output of `edsft-jax verify`.
verify makes the tables again from the items, as a test does for each folder
that is kept.
"""

import argparse
import contextlib
import io
import pathlib
import sys

from edsft_jax import errors, pipeline, store, study
from edsft_jax.reporting import kept

LOG, VERIFIED = 'log.txt', 'verify.txt'


def keep(
  workdir: store.Workdir, folder: pathlib.Path, log: pathlib.Path
) -> None:
  """Writes the folder.

  Raises:
    InputError: the study is not finished, or not what it says.
  """
  kept.write(workdir, folder)
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    pipeline.run(study.read_config(workdir), workdir, ['verify'])
  command = f'$ edsft-jax verify --workdir={workdir.root}\n'
  store.write_text(folder / VERIFIED, command + output.getvalue())
  store.write_text(folder / LOG, without_bars(log.read_text('utf-8')))


def without_bars(text: str) -> str:
  """A log with only the last state of each progress bar."""
  lines = (line.rsplit('\r', 1)[-1].rstrip() for line in text.split('\n'))
  return '\n'.join(line for line in lines if line) + '\n'


def main() -> None:
  """Keeps or verifies; exits with 1 on an InputError."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  commands = parser.add_subparsers(dest='command', required=True)
  keeping = commands.add_parser('keep')
  keeping.add_argument('workdir', type=pathlib.Path)
  keeping.add_argument('folder', type=pathlib.Path)
  keeping.add_argument('--log', type=pathlib.Path, required=True)
  commands.add_parser('verify').add_argument('folder', type=pathlib.Path)
  arguments = parser.parse_args()
  try:
    if arguments.command == 'keep':
      workdir = store.Workdir(arguments.workdir)
      keep(workdir, arguments.folder, arguments.log)
    if different := kept.differences(arguments.folder):
      raise errors.InputError('; '.join(different))
  except errors.InputError as error:
    sys.exit(f'keep_study: {error}')
  print(f'{arguments.folder}: its tables are what its items give')


if __name__ == '__main__':
  main()
