"""The table of stages, and the function that runs them.

A stage is a module with two functions:

  check(config, workdir, planned)   checks options and inputs cheaply; raises
                                    InputError. `planned` holds the stages that
                                    run before it in the same command: inputs
                                    that they make may be missing.
  run(config, workdir)              does the work, resumes, skips what is done.

A module is imported when its stage is checked, so an error that an earlier
stage finds is reported before jax is loaded.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import gc
import importlib
import operator
import time
from typing import Any

import ml_collections

from edsft_jax import config as config_lib
from edsft_jax import console, errors, interrupts, processes, store, study


@dataclasses.dataclass(frozen=True)
class Stage:
  """A row of the table.

  Attributes:
    name: the word on the command line.
    module: the module with check and run.
    about: what it does, for --help.
    uses_study: whether it reads strategies, budgets and seeds.
    shared: whether several processes work on it together.
    single_process: whether it must run in one process, on all devices.
    by_cells: whether several commands can divide its cells; its run takes the
      part that is its own as third argument.
    needs_answers: whether it waits until some cell has all its answers.
    only_shows: whether it only shows what the study would do, without changing
      the study; the pool stage is added and runs before it.
    also_checks: stages whose options are checked first; a preview must not
      show what they would reject.
  """

  name: str
  module: str
  about: str
  uses_study: bool = False
  shared: bool = False
  single_process: bool = False
  by_cells: bool = False
  needs_answers: bool = False
  only_shows: bool = False
  also_checks: tuple[str, ...] = ()

  def load(self) -> Any:
    """Imports the module, which may take seconds."""
    with interrupts.delayed():
      return importlib.import_module(self.module)

  def check(
    self,
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing inputs; see the module's check.

    Raises:
      InputError: naming the option or the file.
    """
    if self.uses_study:
      study.check(config)
    for name in self.also_checks:
      COMMANDS[name].load().check_options(config)
    self.load().check(config, workdir, planned)


STAGES: Mapping[str, Stage] = {
  stage.name: stage
  for stage in (
    Stage(
      'pool',
      'edsft_jax.pool.stage',
      'read the prompts, split off known answers',
    ),
    Stage(
      'score',
      'edsft_jax.scoring.stage',
      'token margins and features from the pretrained model',
      shared=True,
    ),
    Stage(
      'select',
      'edsft_jax.strategies.stage',
      'order the prompts by every strategy',
      uses_study=True,
    ),
    Stage(
      'annotate',
      'edsft_jax.annotation.stage',
      'look up answers, or list prompts to answer',
      uses_study=True,
    ),
    Stage(
      'finetune',
      'edsft_jax.finetuning.stage',
      'one model per strategy, budget and seed',
      uses_study=True,
      shared=True,
      by_cells=True,
      needs_answers=True,
    ),
    Stage(
      'evaluate',
      'edsft_jax.evaluation.stage',
      'every model on the evaluation tasks',
      uses_study=True,
      shared=True,
      by_cells=True,
      needs_answers=True,
    ),
    Stage(
      'report',
      'edsft_jax.reporting.stage',
      'a page with plots and tables of the results',
      needs_answers=True,
    ),
  )
}

PREVIEW = Stage(
  'preview',
  'edsft_jax.preview',
  'print the first prompts as the model will see them',
  only_shows=True,
  also_checks=('score', 'finetune'),
)

VERIFY = Stage(
  'verify',
  'edsft_jax.verify',
  'compare every file of the workdir with what made it',
  single_process=True,
)

PLAN = Stage(
  'plan',
  'edsft_jax.plan',
  'what the study would cost and could find, before money is spent',
  uses_study=True,
  single_process=True,
  only_shows=True,
)

# Every word of the command line, in the order in which they run.
COMMANDS: Mapping[str, Stage] = {
  'pool': STAGES['pool'],
  PREVIEW.name: PREVIEW,
  **STAGES,
  PLAN.name: PLAN,
  VERIFY.name: VERIFY,
}


def stages_asked_for(words: Sequence[str]) -> list[str]:
  """Returns the words in running order; every stage if there are none.

  A preview and a plan need the pool stage and add it. A plan comes last.

  Raises:
    InputError: a word does not name a stage; suggests the nearest.
  """
  for word in words:
    if word not in COMMANDS:
      raise errors.unknown(f'stage {word!r}', word, COMMANDS)
  asked = {*words} or {*STAGES}
  if VERIFY.name in asked and len(asked) > 1:
    raise errors.InputError('verify runs alone: do not name stages with it')
  if any(COMMANDS[name].only_shows for name in asked):
    asked.add('pool')
  return [name for name in COMMANDS if name in asked]


def part_asked_for(text: str) -> study.CellPart | None:
  """The part of the cells that --cells names; None if it is empty: all.

  Raises:
    InputError: it is not of the form I/N.
  """
  return study.CellPart.parse(text) if text else None


def run(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  stages: Sequence[str] = tuple(STAGES),
  part: study.CellPart | None = None,
) -> None:
  """Runs stages in order in a workdir; skips what is done and unchanged.

  Before each stage, it and all later ones check their options and inputs, so a
  budget larger than the pool is reported when the pool is read, not after hours
  of scoring.

  With several processes, each must call this with the same arguments.

  Args:
    config: see edsft_jax/config.py.
    workdir: the study's folder; created if it does not exist.
    stages: names from COMMANDS, in that order.
    part: the part of the cells that is this command's, while others share the
      workdir; None: all cells.

  Raises:
    InputError: a bad option or file; finished stages stay finished.
  """
  if unknown := [name for name in stages if name not in COMMANDS]:
    raise errors.unknown(f'stage {unknown[0]!r}', unknown[0], COMMANDS)
  if part is not None:
    _refuse_undivided(stages)
  if processes.count() > 1:
    _refuse_single_process(stages)
    _refuse_other_commands(config, stages)
  if not processes.is_first():
    _join_shared(config, workdir)
    return
  with store.claimed(workdir, shared=part is not None):
    processes.check_shared(workdir.root)
    if VERIFY.name in stages:
      VERIFY.check(config, workdir, frozenset())
      VERIFY.load().run(config, workdir)
      return
    try:
      _run_stages(config, workdir, stages, part)
    except errors.InputError:
      if not store.Manifest(workdir).stages:
        workdir.config.unlink(missing_ok=True)
      raise
    finally:
      store.record_checksums(workdir)
    _next_shared('')


def _refuse_undivided(stages: Sequence[str]) -> None:
  if whole := [name for name in stages if not COMMANDS[name].by_cells]:
    divided = ' and '.join(n for n, stage in STAGES.items() if stage.by_cells)
    raise errors.InputError(
      f'--cells divides {divided}, and not {whole[0]}: name only these stages, '
      'and run the others without --cells'
    )
  if processes.count() > 1:
    raise errors.InputError(
      '--cells divides the cells between commands of one process each: leave '
      'it out, or start the processes one by one, without --coordinator'
    )


def _refuse_single_process(stages: Sequence[str]) -> None:
  if alone := [name for name in stages if COMMANDS[name].single_process]:
    raise errors.InputError(
      f'{alone[0]} cannot be run by several processes: start it alone, without '
      '--coordinator'
    )


def _refuse_other_commands(
  config: ml_collections.ConfigDict, stages: Sequence[str]
) -> None:
  """Requires the same command everywhere, else processes would deadlock."""
  options = {
    name: operator.attrgetter(name)(config)
    for name in config_lib.option_names(config)
  }
  store.refuse_other_inputs({'stages': stages, **options})


def _join_shared(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> None:
  """Runs the shared stages on every process but the first, which names them."""
  processes.check_shared(workdir.root)
  while name := _next_shared():
    COMMANDS[name].load().run(config, workdir)


def _next_shared(name: str = '') -> str:
  """The shared stage that the first process begins; '' at the end."""
  return processes.from_first('next stage', lambda: name)


def _run_stages(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  stages: Sequence[str],
  part: study.CellPart | None,
) -> None:
  start = time.monotonic()
  for i, name in enumerate(stages):
    interrupts.raise_lost()
    for j, later in enumerate(stages[i:], start=i):
      planned = frozenset(stages[i:j])
      COMMANDS[later].check(config, workdir, planned)
      if later == 'report' and 'evaluate' in planned:
        # The report knows its metrics only once eval.json is written.
        STAGES['evaluate'].load().check_metric(config)
    # A rejected command must not overwrite the config that a study was run
    # with.
    if not workdir.config.exists():
      store.write_json(workdir.config, config.to_dict())
    if COMMANDS[name].shared:
      _next_shared(name)
    run_stage = COMMANDS[name].load().run
    if COMMANDS[name].by_cells:
      run_stage(config, workdir, part)
    else:
      run_stage(config, workdir)
    if COMMANDS[name].shared:
      # Engines and trainers are in reference cycles: their arrays stay in
      # memory until the next garbage collection.
      gc.collect()
    if name == 'annotate' and 'select' in stages and _picks_missing(workdir):
      _replace_rejected(config, workdir)
    waiting = [s for s in stages[i + 1 :] if COMMANDS[s].needs_answers]
    if name == 'annotate' and waiting and _no_cell_is_complete(workdir):
      console.say(name, f'waiting for the answers: {", ".join(waiting)}')
      break
  # A preview or plan may try options that differ from the study's.
  showing = {name for name in stages if COMMANDS[name].only_shows}
  if part is None and not (showing and {*stages} <= {'pool', *showing}):
    store.write_json(workdir.config, config.to_dict())
  console.say('done', f'in {time.monotonic() - start:.1f} s')


def _replace_rejected(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> None:
  """Extends the orders, and asks for the new picks."""
  STAGES['select'].load().run(config, workdir)
  # The delivery has been read.
  config = ml_collections.ConfigDict(config.to_dict())
  config.annotation.answers_path = ''
  STAGES['annotate'].load().run(config, workdir)


def _picks_missing(workdir: store.Workdir) -> bool:
  """Whether picks were rejected, and not replaced yet."""
  return store.Manifest(workdir).counts('annotate')['unreplaced'] > 0


def _no_cell_is_complete(workdir: store.Workdir) -> bool:
  return store.Manifest(workdir).counts('annotate')['complete_cells'] == 0
