"""The command line: flags -> config -> the requested stages, in order.

  python -m edsft_jax.main --config=configs/quickstart.py --workdir=DIR
  python -m edsft_jax.main score select --config=... --workdir=DIR \
      --config.model.path=HF_DIR --config.pool.path=prompts.jsonl

Stages are positional words: pool score select annotate finetune evaluate
report; none means all. Running a command again resumes where it stopped. Three
further words run something else: preview shows the first prompts as the model
will see them, plan says what the study would cost and could find, and verify
compares the workdir's files with what made them.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
import os
import pathlib
import sys
import traceback
from typing import Any

from edsft_jax import interrupts

if __name__ == '__main__':
  # Other imports take a while.
  interrupts.note_signals()

from absl import app, flags, logging
import ml_collections
from ml_collections import config_flags

import edsft_jax
from edsft_jax import config as config_lib
from edsft_jax import (
  errors,
  huge_pages,
  pipeline,
  processes,
  store,
)

# What a shell reports for a program killed by SIGPIPE.
_PIPE_CLOSED = 141

# Common options and their descriptions, for --help.
_COMMON_OPTIONS = {
  'pool.path=FILE': 'prompts: jsonl, csv, parquet ...',
  'pool.heldout_path=FILE': 'prompts with answers to test on',
  'model.path=DIR': 'a Hugging Face model, or OWNER/NAME',
  'selection.strategies=TUPLE': 'how to choose, see README.md',
  "study.budgets='(100,200)'": 'numbers of answers to buy',
  "study.seeds='(0,1,2)'": 'runs per strategy and budget',
  'annotation.answers_path=FILE': 'the answered todo file',
}


def cli() -> None:
  """The entry point of the edsft-jax command."""
  interrupts.note_signals()
  _escape_unencodable()
  if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & {*sys.argv[1:]}:
    print(usage())
    return
  if {'--version', '-version'} & {*sys.argv[1:]}:
    print(f'edsft-jax {edsft_jax.__version__}')
    return
  argv = _drop_repeated(sys.argv)
  words = [word.lstrip('-') for word in argv if word.startswith('-')]
  if not any(word == 'config' or word.startswith('config=') for word in words):
    # Overrides are only parsed after a --config.
    argv.insert(1, f'--config={config_lib.__file__}')
  config_flags.DEFINE_config_file(
    'config', help_string="The experiment's config file.", sys_argv=argv
  )
  flags.DEFINE_string('workdir', '', "The folder for this study's files.")
  flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT where process 0 listens, or auto.'
  )
  flags.DEFINE_integer('num_processes', None, 'Number of processes.')
  flags.DEFINE_integer('process_id', None, 'Index of this process, from 0.')
  flags.DEFINE_integer(
    'start_timeout', 120, 'Seconds to wait for the other processes at start.'
  )
  flags.DEFINE_string(
    'cells', '', 'I/N: only the I-th of N parts of the cells, from 0.'
  )
  with _quiet_on_closed_pipe():
    app.run(main, argv=argv, flags_parser=_parse_flags)


def usage() -> str:
  """Returns the text of --help, which fits one screen."""
  stages = '\n'.join(
    f'  {name:<9} {stage.about}' for name, stage in pipeline.STAGES.items()
  )
  options = '\n'.join(
    f'  {f"--config.{name}":<38} {about}'
    for name, about in _COMMON_OPTIONS.items()
  )
  return f"""\
edsft-jax [STAGE ...] --workdir=DIR [--config=FILE.py] [--config.X=VALUE ...]

Stages, in this order; none means all. Run the same command to resume:
{stages}
  {pipeline.PREVIEW.name:<9} {pipeline.PREVIEW.about}
  {pipeline.PLAN.name:<9} {pipeline.PLAN.about}
  {pipeline.VERIFY.name:<9} {pipeline.VERIFY.about}

Common options (edsft_jax/config.py has all; --version prints the version):
{options}
Several processes: --coordinator=HOST:PORT --num_processes=N --process_id=I
Machines that share the folder: finetune evaluate --cells=I/N (I from 0)"""


def main(argv: Sequence[str]) -> None:
  """Runs the stages named in argv[1:]; exits with 2 on an InputError."""
  logging.set_verbosity(logging.WARNING)
  options = flags.FLAGS
  try:
    interrupts.raise_on_signals()
    if not options.workdir:
      raise errors.InputError(
        'no --workdir: name the folder for this study, as --workdir=runs/first'
      )
    stages = pipeline.stages_asked_for(argv[1:])
    part = pipeline.part_asked_for(options.cells)
    huge_pages.restart()
    workdir = store.open_workdir(options.workdir)
    enable_compilation_cache()
    processes.start(
      options.coordinator,
      options.num_processes,
      options.process_id,
      options.start_timeout,
    )
    pipeline.run(_load_config(), workdir, stages, part)
    interrupts.raise_lost()
  except BrokenPipeError:
    processes.end(_PIPE_CLOSED, _discard_output)
  except errors.InputError as e:
    processes.end(2, functools.partial(_print_error, e))
  except (KeyboardInterrupt, interrupts.Terminated) as e:
    processes.end(interrupts.exit_code(e), _print_stopped)
  except Exception:
    if processes.count() == 1:
      raise
    processes.end(1, traceback.print_exc)


def enable_compilation_cache() -> None:
  """Turns on JAX's persistent compilation cache, so reruns skip compilation.

  Sets the environment variables that JAX reads on import, unless the user has
  set them.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = pathlib.Path(cache) / 'edsft_jax' / 'compilations'
  if not folder.is_absolute():
    return  # The user has no home directory.
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # The cache is optional.
  if os.access(folder, os.W_OK):
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    # JAX's default of 1 s skips compilations that add up to a fifth of a small
    # study's time.
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')


def _load_config() -> ml_collections.ConfigDict:
  config = flags.FLAGS.config
  try:
    config.to_dict()
  except OSError as e:
    name = config_flags.get_config_filename(flags.FLAGS['config'])
    # ml_collections raises its own IOError, without strerror.
    problem = e.strerror or 'does not exist'
    raise errors.InputError(
      f'--config={name} {problem}: {_config_hint()}'
    ) from e
  return config


def _config_hint() -> str:
  folder = pathlib.Path(edsft_jax.__file__).parents[1] / 'configs'
  if (folder / 'default.py').is_file():
    return f"the repository's configs are in {folder}"
  return (
    'leave it out for the defaults, or give the path of a file in the '
    "repository's configs folder"
  )


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags as absl does, but reports an error in one line."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    sys.exit(_print_error(_unknown_option(argv) or e))


def _unknown_option(argv: Sequence[str]) -> Exception | None:
  """The error for the first --config.X that does not exist, or None."""
  known = config_lib.option_names(config_lib.get_config())
  for word in argv[1:]:
    option = word.lstrip('-').partition('=')[0]
    name = option.removeprefix('config.')
    if option != name and name not in known:
      options = [f'--config.{each}' for each in known]
      return errors.unknown(
        f'option --{option}', f'--{option}', options, max_listed=3
      )
  return None


def _print_error(problem: Any) -> int:
  who = '' if processes.is_first() else f'process {processes.index()}: '
  print(f'edsft_jax: {who}{" ".join(str(problem).split())}', file=sys.stderr)
  return 2


def _print_stopped() -> None:
  print('\nStopped. Run the same command to resume.', file=sys.stderr)


def _drop_repeated(argv: Sequence[str]) -> list[str]:
  """Keeps the last of repeated options; tuples would be concatenated."""
  last = {word.partition('=')[0]: i for i, word in enumerate(argv)}
  return [
    word
    for i, word in enumerate(argv)
    if not word.startswith('--config.') or i == last[word.partition('=')[0]]
  ]


@contextlib.contextmanager
def _quiet_on_closed_pipe() -> Iterator[None]:
  """Exits quietly when the reader of stdout goes away, as with `| head`."""
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    _discard_output()
    sys.exit(_PIPE_CLOSED)


def _discard_output() -> None:
  """Redirects stdout to /dev/null, so that Python's final flush succeeds."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_unencodable() -> None:
  """Prints characters that the terminal cannot encode as escapes."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


if __name__ == '__main__':
  cli()
