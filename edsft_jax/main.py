"""The command: flags -> config -> the stages asked for, in order.

  python -m edsft_jax.main --config=configs/quickstart.py --workdir=DIR
  python -m edsft_jax.main score select --config=... --workdir=DIR \
      --config.model.path=HF_DIR --config.pool.path=prompts.jsonl

Stages are positional words: pool score select annotate finetune evaluate
report; none means all. Running a command again goes on where it stopped. The
word preview shows the first prompts as the model will see them, and runs the
pool stage for it.
"""

from collections.abc import Sequence
import difflib
import pathlib
import sys
import time
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

# Stages that need the answers, and so wait until people have written them.
AFTER_ANSWERS = frozenset({'finetune', 'evaluate', 'report'})


def main(argv: Sequence[str]) -> None:
  """Runs the stages named in argv[1:]; exits with 2 when a person must act."""
  logging.set_verbosity(logging.WARNING)
  try:
    if not flags.FLAGS.workdir:
      raise errors.InputError(
        'no --workdir: name the folder for this study, as --workdir=runs/first'
      )
    stages = stages_asked_for(argv[1:])
    run(_load_config(), pathlib.Path(flags.FLAGS.workdir), stages)
  except errors.InputError as e:
    sys.exit(_complain(e))
  except KeyboardInterrupt:
    print(
      '\nStopped. The same command goes on from here.',
      file=sys.stderr,
    )
    sys.exit(130)


def run(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  stages: Sequence[str] = tuple(STAGES),
) -> None:
  """Runs stages in order in a workdir; what is done and unchanged is skipped.

  Before each stage, it and all that come after it check their options and
  inputs: a budget beyond the pool is found when the pool is read, not after
  hours of scoring.

  Raises:
    InputError: a bad option or file; finished stages stay finished.
  """
  workdir = artifacts.Workdir(path)
  with artifacts.claimed(workdir):
    try:
      _run_stages(config, workdir, stages)
    except errors.InputError:
      if not artifacts.Manifest(workdir).contents['stages']:
        workdir.config.unlink(missing_ok=True)
      raise


def _run_stages(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  stages: Sequence[str],
) -> None:
  start = time.monotonic()
  for i, name in enumerate(stages):
    for j, later in enumerate(stages[i:], start=i):
      WORDS[later].check(config, workdir, frozenset(stages[i:j]))
    # A command that is refused must not rewrite what a study was made with.
    if not workdir.config.exists():
      artifacts.write_json(workdir.config, config.to_dict())
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
  print(f'edsft_jax: {" ".join(str(problem).split())}', file=sys.stderr)
  return 2


def _last_of_each(argv: Sequence[str]) -> list[str]:
  """Drops options that are given again later: else tuples would add up."""
  last = {word.partition('=')[0]: i for i, word in enumerate(argv)}
  return [
    word
    for i, word in enumerate(argv)
    if not word.startswith('--config.') or i == last[word.partition('=')[0]]
  ]


def cli() -> None:
  """The entry point of the edsft-jax command."""
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
  app.run(main, argv=argv, flags_parser=_parse_flags)


if __name__ == '__main__':
  cli()
