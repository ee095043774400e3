"""The command: flags -> config -> the stages asked for, in order.

  python -m edsft_jax.main --config=configs/quickstart.py --workdir=DIR
  python -m edsft_jax.main score select --config=... --workdir=DIR \
      --config.model.path=HF_DIR --config.pool.path=prompts.jsonl

Stages are positional words: pool score select annotate finetune evaluate
report; none means all. Running a command again goes on where it stopped. The
word preview shows the first prompts as the model will see them, and runs the
pool stage for it.
"""

from collections.abc import Iterator, Sequence
import contextlib
import difflib
import functools
import io
import operator
import os
import pathlib
import sys
import time
import traceback
from types import ModuleType

from absl import app, flags, logging
import jax
import ml_collections
from ml_collections import config_flags

from configs import default
from edsft_jax import (
  annotation,
  artifacts,
  console,
  errors,
  evaluation,
  finetuning,
  pool,
  preview,
  processes,
  reporting,
  scoring,
  strategies,
)

STAGES: dict[str, ModuleType] = {
  'pool': pool,
  'score': scoring,
  'select': strategies,
  'annotate': annotation,
  'finetune': finetuning,
  'evaluate': evaluation,
  'report': reporting,
}

PREVIEW = 'preview'
# What may be asked for: stages, and what stands between them but is none of
# "all".
WORDS = {'pool': pool, PREVIEW: preview, **STAGES}

# What several processes work on together; all else the first does alone while
# the others wait.
SHARED = frozenset({'score'})
# What uses every device from one process.
ALONE = frozenset({'finetune', 'evaluate'})

# Stages that need the answers, and so wait until people have written them.
AFTER_ANSWERS = frozenset({'finetune', 'evaluate', 'report'})


def main(argv: Sequence[str]) -> None:
  """Runs the stages named in argv[1:]; exits with 2 when a person must act."""
  logging.set_verbosity(logging.WARNING)
  _keep_compilations()
  options = flags.FLAGS
  try:
    if not options.workdir:
      raise errors.InputError(
        'no --workdir: name the folder for this study, as --workdir=runs/first'
      )
    stages = stages_asked_for(argv[1:])
    processes.start(
      options.coordinator,
      options.num_processes,
      options.process_id,
      options.start_timeout,
    )
    run(_load_config(), pathlib.Path(options.workdir), stages)
  except BrokenPipeError:
    processes.end(_PIPE_CLOSED, _write_nowhere)
  except errors.InputError as e:
    processes.end(2, functools.partial(_complain, e))
  except KeyboardInterrupt:
    processes.end(
      130,
      lambda: print(
        '\nStopped. The same command goes on from here.', file=sys.stderr
      ),
    )
  except Exception:
    if processes.count() == 1:
      raise
    processes.end(1, traceback.print_exc)


def run(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  stages: Sequence[str] = tuple(STAGES),
) -> None:
  """Runs stages in order in a workdir; what is done and unchanged is skipped.

  Before each stage, it and all that come after it check their options and
  inputs: a budget beyond the pool is found when the pool is read, not after
  hours of scoring.

  Of several processes each calls this with the same arguments.

  Raises:
    InputError: a bad option or file; finished stages stay finished.
  """
  workdir = artifacts.Workdir(path)
  if alone := [s for s in stages if s in ALONE and processes.count() > 1]:
    raise errors.InputError(
      f'{" and ".join(alone)} cannot be run by several processes: run pool and '
      'score so, and then the others as one process'
    )
  if processes.count() > 1:
    _refuse_other_commands(config, stages)
  if not processes.is_first():
    _help(config, workdir, stages)
    return
  with artifacts.claimed(workdir):
    processes.check_shared(workdir.root)
    try:
      _run_stages(config, workdir, stages)
    except errors.InputError:
      if not artifacts.Manifest(workdir).contents['stages']:
        workdir.config.unlink(missing_ok=True)
      raise
    processes.meet('end')


def _refuse_other_commands(
  config: ml_collections.ConfigDict, stages: Sequence[str]
) -> None:
  """Processes with other options would wait for each other in vain."""
  command = {
    'stages': stages,
    **{n: operator.attrgetter(n)(config) for n in option_names(config)},
  }
  artifacts.refuse_change(
    'the work of process 0',
    processes.from_first('command', lambda: command),
    command,
    'start every process with the same command',
  )


def _help(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  stages: Sequence[str],
) -> None:
  """What every process but the first does: its part of the shared stages."""
  processes.check_shared(workdir.root)
  for name in stages:
    if name in SHARED:
      processes.meet(name)
      WORDS[name].run(config, workdir)
  processes.meet('end')


def _run_stages(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  stages: Sequence[str],
) -> None:
  start = time.monotonic()
  for i, name in enumerate(stages):
    for j, later in enumerate(stages[i:], start=i):
      _check(later, config, workdir, frozenset(stages[i:j]))
    # A command that is refused must not rewrite what a study was made with.
    if not workdir.config.exists():
      artifacts.write_json(workdir.config, config.to_dict())
    if name in SHARED:
      processes.meet(name)
    WORDS[name].run(config, workdir)
    waiting = [s for s in stages[i + 1 :] if s in AFTER_ANSWERS]
    if name == 'annotate' and waiting and annotation.missing(workdir):
      console.say(
        'annotate',
        f'{", ".join(waiting)} wait for the answers',
      )
      break
  # A preview may try other options than those that the study was made with.
  if list(stages) != ['pool', PREVIEW]:
    artifacts.write_json(workdir.config, config.to_dict())
  artifacts.Manifest(workdir).describe(
    devices=[device.device_kind for device in jax.devices()]
  )
  if 'report' in stages and workdir.report.exists():
    print(reporting.summary(config, workdir))
  console.say('done', f'in {time.monotonic() - start:.1f} s')


def _check(
  name: str,
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  planned: frozenset[str],
) -> None:
  if name == PREVIEW:
    # It shows what these will do, so that it must not show what they refuse.
    scoring.check_options(config)
    finetuning.check_options(config)
  WORDS[name].check(config, workdir, planned)


def _keep_compilations() -> None:
  """A second run compiles nothing again; JAX's own settings go before this."""
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = pathlib.Path(cache) / 'edsft_jax' / 'compilations'
  if not folder.is_absolute():
    return  # There is no home.
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # A convenience, no condition.
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
      # JAX's own 1 s leaves out what adds up to a fifth of a small study.
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def stages_asked_for(words: Sequence[str]) -> list[str]:
  """The words in the order of the data; every stage for no words.

  A preview brings the pool stage with it.

  Raises:
    InputError: a word is no stage; the nearest is offered.
  """
  for word in words:
    if word not in WORDS:
      nearest = difflib.get_close_matches(word, WORDS, 1, 0.0)[0]
      raise errors.InputError(
        f'{word!r} is no stage: did you mean {nearest!r}? All: '
        f'{" ".join(WORDS)}'
      )
  asked = {*words} or {*STAGES}
  if PREVIEW in asked:
    asked.add('pool')
  return [name for name in WORDS if name in asked]


def _load_config() -> ml_collections.ConfigDict:
  config = flags.FLAGS.config
  try:
    config.to_dict()
  except OSError as e:
    name = config_flags.get_config_filename(flags.FLAGS['config'])
    raise errors.InputError(
      f'--config={name} cannot be read: name a file such as configs/default.py'
    ) from e
  return config


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Flags as absl parses them, but one line a mistake and no traceback."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    sys.exit(_complain(_unknown_option(argv) or e))


def _unknown_option(argv: Sequence[str]) -> str | None:
  """Names the first --config.X that no config has, with the nearest one."""
  known = option_names(default.get_config())
  for word in argv[1:]:
    option = word.lstrip('-').partition('=')[0]
    name = option.removeprefix('config.')
    if option != name and name not in known:
      nearest = difflib.get_close_matches(name, known, 1, 0.0)[0]
      return f'unknown option --{option}: did you mean --config.{nearest}?'
  return None


def option_names(config: ml_collections.ConfigDict) -> list[str]:
  """Dotted names of every option, as the command line spells them."""
  names = []
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      names += [f'{name}.{inner}' for inner in option_names(value)]
    else:
      names.append(name)
  return names


def _complain(problem: object) -> int:
  who = '' if processes.is_first() else f'process {processes.index()}: '
  print(f'edsft_jax: {who}{" ".join(str(problem).split())}', file=sys.stderr)
  return 2


def _last_of_each(argv: Sequence[str]) -> list[str]:
  """Drops options that are given again later: else tuples would add up."""
  last = {word.partition('=')[0]: i for i, word in enumerate(argv)}
  return [
    word
    for i, word in enumerate(argv)
    if not word.startswith('--config.') or i == last[word.partition('=')[0]]
  ]


# What a shell reports of a program that a closed pipe has ended.
_PIPE_CLOSED = 141


@contextlib.contextmanager
def _ends_with_its_pipe() -> Iterator[None]:
  """Ends the command quietly when nobody reads its output, as under head."""
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    _write_nowhere()
    sys.exit(_PIPE_CLOSED)


def _write_nowhere() -> None:
  """What is still to be printed must not fail when Python ends."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_anything() -> None:
  """Shows what the terminal's encoding has not as escapes, and goes on."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def cli() -> None:
  """The entry point of the edsft-jax command."""
  _print_anything()
  argv = _last_of_each(sys.argv)
  if not any(word.lstrip('-').startswith('config=') for word in argv):
    # Overrides are only understood behind a config.
    argv.insert(1, f'--config={default.__file__}')
  config_flags.DEFINE_config_file(
    'config',
    help_string='The experiment, a file in configs/; default.py if absent.',
    sys_argv=argv,
  )
  flags.DEFINE_string(
    'workdir', '', "Where this study's files go; made if it is not there."
  )
  flags.DEFINE_string(
    'coordinator',
    '',
    'Several processes: HOST:PORT at which process 0 listens, or auto on a '
    'Cloud TPU pod. SLURM steps need none of this.',
  )
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
  flags.DEFINE_integer(
    'start_timeout', 120, 'Seconds that processes wait for each other.'
  )
  with _ends_with_its_pipe():
    app.run(main, argv=argv, flags_parser=_parse_flags)


if __name__ == '__main__':
  cli()
