"""The stages in their order, and the one runner that takes a study through.

A stage is a module with two functions:

  check(config, workdir, planned)   cheap: options and inputs; raises
                                    InputError. `planned` are the stages that
                                    run before it in the same command: an input
                                    that one of them makes may still be absent.
  run(config, workdir)              does the work, resumes, skips what is done.

Modules are imported when their turn comes: a mistake that an earlier stage
finds is answered before jax is loaded.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib
import operator
import sys
import time
from typing import Any

import ml_collections

from edsft_jax import config as config_lib
from edsft_jax import console, errors, processes, store, study


@dataclasses.dataclass(frozen=True)
class Stage:
  """A row of the table.

  Attributes:
    name: the word on the command line.
    module: where check and run are.
    about: what it does, for --help.
    of_study: whether it reads strategies, budgets and seeds.
    shared: whether several processes work on it together.
    single_process: whether it uses every device from one process.
    needs_answers: whether it waits until people have answered.
    shows: stages whose options it must not show what they refuse.
  """

  name: str
  module: str
  about: str
  of_study: bool = False
  shared: bool = False
  single_process: bool = False
  needs_answers: bool = False
  shows: tuple[str, ...] = ()

  def load(self) -> Any:
    """The module; importing it may take seconds."""
    return importlib.import_module(self.module)

  def check(
    self,
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Refuses bad options and missing inputs, see the module's check.

    Raises:
      InputError: naming the option or the file.
    """
    if self.of_study:
      study.check(config)
    for name in self.shows:
      COMMANDS[name].load().check_options(config)
    self.load().check(config, workdir, planned)


STAGES: Mapping[str, Stage] = {
  stage.name: stage
  for stage in (
    Stage(
      'pool',
      'edsft_jax.pool.stage',
      'read prompts, set known answers apart',
    ),
    Stage(
      'score',
      'edsft_jax.scoring.stage',
      'token margins and features by the pretrained model',
      shared=True,
    ),
    Stage(
      'select',
      'edsft_jax.strategies.stage',
      'order the prompts by every strategy',
      of_study=True,
    ),
    Stage(
      'annotate',
      'edsft_jax.annotation.stage',
      'look answers up, or ask people for them',
      of_study=True,
    ),
    Stage(
      'finetune',
      'edsft_jax.finetuning.stage',
      'one model per strategy, budget and seed',
      of_study=True,
      single_process=True,
      needs_answers=True,
    ),
    Stage(
      'evaluate',
      'edsft_jax.evaluation.stage',
      'every model on the evaluation tasks',
      of_study=True,
      single_process=True,
      needs_answers=True,
    ),
    Stage(
      'report',
      'edsft_jax.reporting.stage',
      'a page, plots and tables of what was saved',
      needs_answers=True,
    ),
  )
}

PREVIEW = Stage(
  'preview',
  'edsft_jax.preview',
  'print the first prompts as the model will see them',
  shows=('score', 'finetune'),
)

# All that may be asked for, in the order of the data.
COMMANDS: Mapping[str, Stage] = {
  'pool': STAGES['pool'],
  PREVIEW.name: PREVIEW,
  **STAGES,
}


def stages_asked_for(words: Sequence[str]) -> list[str]:
  """The words in the order of the data; every stage for no words.

  A preview brings the pool stage with it.

  Raises:
    InputError: a word does not name a stage; the nearest is offered.
  """
  for word in words:
    if word not in COMMANDS:
      raise errors.unknown(f'stage {word!r}', word, COMMANDS)
  asked = {*words} or {*STAGES}
  if PREVIEW.name in asked:
    asked.add('pool')
  return [name for name in COMMANDS if name in asked]


def run(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  stages: Sequence[str] = tuple(STAGES),
) -> None:
  """Runs stages in order in a workdir; what is done and unchanged is skipped.

  Before each stage, it and all that come after it check their options and
  inputs: a budget beyond the pool is found when the pool is read, not after
  hours of scoring.

  Of several processes each calls this with the same arguments.

  Args:
    config: see edsft_jax/config.py.
    workdir: where the study's files lie; made if it does not exist.
    stages: names from COMMANDS, in that order.

  Raises:
    InputError: a bad option or file; finished stages stay finished.
  """
  if processes.count() > 1:
    _refuse_single_process(stages)
    _refuse_other_commands(config, stages)
  if not processes.is_first():
    _join_shared(config, workdir, stages)
    return
  with store.claimed(workdir):
    processes.check_shared(workdir.root)
    try:
      _run_stages(config, workdir, stages)
    except errors.InputError:
      if not store.Manifest(workdir).stages:
        workdir.config.unlink(missing_ok=True)
      raise
    processes.meet('end')


def _refuse_single_process(stages: Sequence[str]) -> None:
  if alone := [name for name in stages if COMMANDS[name].single_process]:
    raise errors.InputError(
      f'{" and ".join(alone)} cannot be run by several processes: run pool and '
      'score so, and then the others as one process'
    )


def _refuse_other_commands(
  config: ml_collections.ConfigDict, stages: Sequence[str]
) -> None:
  """Processes with other options would wait for each other forever."""
  command = {
    'stages': stages,
    **{
      name: operator.attrgetter(name)(config)
      for name in config_lib.option_names(config)
    },
  }
  store.refuse_change(
    'the work of process 0',
    processes.from_first('command', lambda: command),
    command,
    'start every process with the same command',
  )


def _join_shared(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  stages: Sequence[str],
) -> None:
  """What every process but the first does: its part of the shared stages."""
  processes.check_shared(workdir.root)
  for name in stages:
    if COMMANDS[name].shared:
      processes.meet(name)
      COMMANDS[name].load().run(config, workdir)
  processes.meet('end')


def _run_stages(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  stages: Sequence[str],
) -> None:
  start = time.monotonic()
  for i, name in enumerate(stages):
    for j, later in enumerate(stages[i:], start=i):
      planned = frozenset(stages[i:j])
      COMMANDS[later].check(config, workdir, planned)
      if later == 'report' and 'evaluate' in planned:
        # The report learns from eval.json what metrics there are: too late.
        STAGES['evaluate'].load().check_metric(config)
    # A command that is refused must not rewrite what a study was made with.
    if not workdir.config.exists():
      store.write_json(workdir.config, config.to_dict())
    if COMMANDS[name].shared:
      processes.meet(name)
    COMMANDS[name].load().run(config, workdir)
    waiting = [s for s in stages[i + 1 :] if COMMANDS[s].needs_answers]
    if name == 'annotate' and waiting and _answers_missing(workdir):
      console.say(name, f'{", ".join(waiting)} wait for the answers')
      break
  # A preview may try other options than those that the study was made with.
  if list(stages) != ['pool', PREVIEW.name]:
    store.write_json(workdir.config, config.to_dict())
  store.Manifest(workdir).describe(**_devices())
  console.say('done', f'in {time.monotonic() - start:.1f} s')


def _answers_missing(workdir: store.Workdir) -> bool:
  return store.Manifest(workdir).counts('annotate').get('missing', 0) > 0


def _devices() -> dict[str, list[str]]:
  """What the stages ran on, if any of them used a device."""
  jax = sys.modules.get('jax')
  if jax is None:
    return {}
  return {'devices': [device.device_kind for device in jax.devices()]}
