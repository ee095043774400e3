"""The paths of a study's files, and the lock on its folder."""

from collections.abc import Iterator, Set
import contextlib
import dataclasses
import fcntl
import pathlib
import re

from edsft_jax import errors, processes


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The paths of a study's files; opens nothing."""

  root: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    """The resolved config of the last command."""
    return self.root / 'config.json'

  @property
  def manifest(self) -> pathlib.Path:
    """What each stage was made from; see `store.Manifest`."""
    return self.root / 'manifest.json'

  @property
  def pool(self) -> pathlib.Path:
    """The prompts to choose from, without answers."""
    return self.root / 'pool' / 'pool.parquet'

  @property
  def quarantine(self) -> pathlib.Path:
    """Rejected rows of the pool."""
    return self.root / 'pool' / 'quarantine.jsonl'

  @property
  def duplicates(self) -> pathlib.Path:
    """Rows of the pool's file merged into another, or near to one."""
    return self.root / 'pool' / 'duplicates.jsonl'

  @property
  def heldout(self) -> pathlib.Path:
    """Prompts with reference answers to evaluate on."""
    return self.root / 'heldout' / 'heldout.parquet'

  @property
  def pool_responses(self) -> pathlib.Path:
    """Answers that came with the pool; only annotate reads them."""
    return self.root / 'annotations' / 'pool_responses.parquet'

  @property
  def responses(self) -> pathlib.Path:
    """Answers by id that finetuning may use."""
    return self.root / 'annotations' / 'responses.parquet'

  @property
  def asked(self) -> pathlib.Path:
    """The ids in every todo."""
    return self.root / 'annotations' / 'asked.json'

  @property
  def contamination(self) -> pathlib.Path:
    """How many evaluation items share text with the pool, by task."""
    return self.root / 'contamination.json'

  @property
  def rejected(self) -> pathlib.Path:
    """Prompts that annotators rejected; no cell uses them."""
    return self.root / 'annotations' / 'rejected.jsonl'

  @property
  def amended(self) -> pathlib.Path:
    """Answers and rejections that a later delivery changed."""
    return self.root / 'annotations' / 'amended.jsonl'

  @property
  def todo(self) -> pathlib.Path:
    """Prompts that still need an answer; todo.csv is next to it."""
    return self.root / 'annotations' / 'todo.jsonl'

  @property
  def scores(self) -> pathlib.Path:
    """One row per prompt, in pool order."""
    return self.root / 'scores' / 'scores.parquet'

  @property
  def features(self) -> pathlib.Path:
    """Features written by a single process; see `store.feature_files`."""
    return self.root / 'scores' / 'features.npy'

  def features_part(self, index: int, count: int) -> pathlib.Path:
    """Features of the index-th of `count` ranges of the pool."""
    name = f'features-{index:05d}-of-{count:05d}.npy'
    return self.features.with_name(name)

  @property
  def score_shards(self) -> pathlib.Path:
    """Shards scored so far; removed when scoring is complete."""
    return self.root / 'scores' / 'shards'

  @property
  def selections(self) -> pathlib.Path:
    """The picks of all strategies."""
    return self.root / 'selections'

  @property
  def gains_curves(self) -> pathlib.Path:
    """The gains curves that the kernel width was chosen from."""
    return self.selections / 'gains_curves.json'

  @property
  def parts(self) -> pathlib.Path:
    """Which part of the pool each seed has; only with study.pool_fraction."""
    return self.selections / 'parts.json'

  def selection(self, strategy: str, seed: int) -> pathlib.Path:
    """A strategy's picks in order, for one seed."""
    return self.selections / f'{strategy}-seed{seed}.jsonl'

  def selection_record(self, strategy: str) -> pathlib.Path:
    """The fingerprint and bounds of a strategy's picks."""
    return self.selections / f'{strategy}.json'

  @property
  def judge_answers(self) -> pathlib.Path:
    """What the judge of alpaca_eval answered, by the content of questions."""
    return self.root / 'judge' / 'answers.jsonl'

  @property
  def locks(self) -> pathlib.Path:
    """Files without content; see `locked`."""
    return self.root / '.locks'

  @property
  def runs(self) -> pathlib.Path:
    """One folder per cell of the study."""
    return self.root / 'runs'

  def run(self, cell: str) -> 'Run':
    """The files of one cell."""
    return Run(self.runs / cell)

  @property
  def plan(self) -> pathlib.Path:
    """The page of the plan command."""
    return self.root / 'plan' / 'index.html'

  @property
  def report(self) -> pathlib.Path:
    """The report page; its plots and tables are next to it."""
    return self.root / 'report' / 'index.html'


@dataclasses.dataclass(frozen=True)
class Run:
  """The paths of a cell's files; opens nothing."""

  root: pathlib.Path

  @property
  def cell(self) -> pathlib.Path:
    """The fingerprint of the cell, written when finetuning begins."""
    return self.root / 'cell.json'

  @property
  def model(self) -> pathlib.Path:
    """A PEFT adapter or Hugging Face model; exists once finetuning is done."""
    return self.root / 'model'

  @property
  def metrics(self) -> pathlib.Path:
    """Loss and learning rate by step."""
    return self.root / 'metrics.jsonl'

  @property
  def timing(self) -> pathlib.Path:
    """Seconds, speed and memory by step."""
    return self.root / 'timing.jsonl'

  @property
  def tensorboard(self) -> pathlib.Path:
    """Both as TensorBoard events."""
    return self.root / 'tensorboard'

  @property
  def checkpoints(self) -> pathlib.Path:
    """Exists only while the cell is being finetuned."""
    return self.root / 'checkpoints'

  @property
  def best_checkpoint(self) -> pathlib.Path:
    """The state with the lowest held-out loss; exists as long as those."""
    return self.root / 'best_checkpoint'

  @property
  def merged(self) -> pathlib.Path:
    """A Hugging Face model, next to an adapter if both are exported."""
    return self.root / 'merged'

  @property
  def evaluations(self) -> pathlib.Path:
    """One folder per evaluation task."""
    return self.root / 'evaluations'

  def evaluation(self, task: str) -> pathlib.Path:
    """Metrics of a task; exists once the cell is evaluated on it."""
    return self._evaluation_folder(task) / 'eval.json'

  def items(self, task: str) -> pathlib.Path:
    """One row per item of a task."""
    return self._evaluation_folder(task) / 'items.jsonl'

  def evaluation_shards(self, task: str) -> pathlib.Path:
    """Items evaluated so far; removed when the cell is done on the task."""
    return self._evaluation_folder(task) / 'shards'

  def evaluation_timing(self, task: str) -> pathlib.Path:
    """Seconds of the command that finished the cell on the task."""
    return self._evaluation_folder(task) / 'timing.json'

  def outputs(self, task: str) -> pathlib.Path:
    """The outputs of a task with a judge, in AlpacaEval's form."""
    return self._evaluation_folder(task) / 'outputs.json'

  def generation(self, task: str) -> pathlib.Path:
    """What the outputs were made from; exists once they are complete."""
    return self._evaluation_folder(task) / 'generation.json'

  def annotations(self, task: str) -> pathlib.Path:
    """What a judge preferred, in AlpacaEval's form."""
    return self._evaluation_folder(task) / 'annotations.json'

  def _evaluation_folder(self, task: str) -> pathlib.Path:
    # Not every file system takes the colon of lm_eval:NAME.
    return self.evaluations / task.replace(':', '-')

  @property
  def old_evaluation(self) -> tuple[pathlib.Path, pathlib.Path]:
    """Files of evaluations that older versions wrote."""
    return self.root / 'eval.json', self.root / 'predictions.jsonl'


_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+://')


def has_scheme(path: str) -> bool:
  """Whether a path has a scheme, such as gs://, and so is not local."""
  return _SCHEME.match(path) is not None


def open_workdir(path: str) -> Workdir:
  """The workdir at a path.

  Raises:
    InputError: the path is not in a file system.
  """
  # With a single slash, it is a slip of the pen, and no folder gs: is meant.
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', path):
    raise errors.InputError(
      f'--workdir={path} is not in a file system, which a workdir needs to '
      'lock and rename files: name a local folder, and copy it there when done'
    )
  return Workdir(pathlib.Path(path))


def require(path: pathlib.Path, stage: str, planned: Set[str]) -> None:
  """Requires a stage's file, unless that stage runs before.

  Raises:
    InputError: naming the file and the stage that makes it.
  """
  if stage not in planned and not path.exists():
    raise errors.InputError(
      f'{path} does not exist: run the {stage} stage first'
    )


@contextlib.contextmanager
def claimed(workdir: Workdir, shared: bool = False) -> Iterator[None]:
  """Locks a workdir; removes it and parents made for it if it stays empty.

  Args:
    workdir: the workdir.
    shared: whether other commands may share it, which then lock what they
      write by `locked`.

  Raises:
    InputError: another command is using it, or it cannot be written to.
  """
  lock = workdir.root / '.lock'
  made = [p for p in (workdir.root, *workdir.root.parents) if not p.exists()]
  try:
    workdir.root.mkdir(parents=True, exist_ok=True)
    file = lock.open('a')
  except OSError as e:
    raise errors.InputError(
      f'--workdir={workdir.root} cannot be written to ({e.strerror}): name '
      'another folder'
    ) from None
  with file:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
      fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
      raise errors.InputError(
        f'another command is using {workdir.root}: wait for it, or name '
        'another --workdir'
      ) from None
    try:
      yield
    finally:
      if [p.name for p in workdir.root.iterdir()] == [lock.name]:
        lock.unlink()
        workdir.root.rmdir()
        for parent in made[1:]:
          parent.rmdir()


@contextlib.contextmanager
def locked(workdir: Workdir, name: str, wait: bool = False) -> Iterator[bool]:
  """Locks a part of a workdir, such as a cell, against other commands.

  The system frees the lock of a process that dies.

  Args:
    workdir: the workdir.
    name: the part.
    wait: whether to wait until it is free.

  Yields:
    Whether the part was free.
  """
  path = workdir.locks / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True


@contextlib.contextmanager
def locked_together(workdir: Workdir, name: str) -> Iterator[bool]:
  """`locked` by the first process, for all processes of this command."""
  with contextlib.ExitStack() as locks:
    yield processes.from_first(
      f'lock of {name}', lambda: locks.enter_context(locked(workdir, name))
    )
