"""Where the files of a study lie, and the lock on the folder of all."""

from collections.abc import Iterator, Set
import contextlib
import dataclasses
import fcntl
import pathlib
import re

from edsft_jax import errors


@dataclasses.dataclass(frozen=True)
class Workdir:
  """Where everything of one study lies; paths only, nothing is opened."""

  root: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    """The resolved config of the last command."""
    return self.root / 'config.json'

  @property
  def manifest(self) -> pathlib.Path:
    """What each stage was made from, see `store.Manifest`."""
    return self.root / 'manifest.json'

  @property
  def pool(self) -> pathlib.Path:
    """The prompts to choose from; never an answer."""
    return self.root / 'pool' / 'pool.parquet'

  @property
  def quarantine(self) -> pathlib.Path:
    """Rows of the pool that were refused."""
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
  def todo(self) -> pathlib.Path:
    """Prompts whose answers are still to be bought; todo.csv next to it."""
    return self.root / 'annotations' / 'todo.jsonl'

  @property
  def scores(self) -> pathlib.Path:
    """One row per prompt, in pool order."""
    return self.root / 'scores' / 'scores.parquet'

  @property
  def features(self) -> pathlib.Path:
    """As one process writes it; see `store.feature_files`."""
    return self.root / 'scores' / 'features.npy'

  def features_part(self, index: int, count: int) -> pathlib.Path:
    """Features of the index-th of `count` ranges of the pool."""
    name = f'features-{index:05d}-of-{count:05d}.npy'
    return self.features.with_name(name)

  @property
  def score_shards(self) -> pathlib.Path:
    """What is scored so far; gone once everything is."""
    return self.root / 'scores' / 'shards'

  @property
  def selections(self) -> pathlib.Path:
    """The orders of all strategies."""
    return self.root / 'selections'

  @property
  def gains_curves(self) -> pathlib.Path:
    """What the kernel width was read from."""
    return self.selections / 'gains_curves.json'

  def selection(self, strategy: str, seed: int) -> pathlib.Path:
    """A strategy's picks in order, for one seed."""
    return self.selections / f'{strategy}-seed{seed}.jsonl'

  def selection_record(self, strategy: str) -> pathlib.Path:
    """What a strategy's orders were made from, and how good they can be."""
    return self.selections / f'{strategy}.json'

  @property
  def runs(self) -> pathlib.Path:
    """One folder per cell of the study."""
    return self.root / 'runs'

  def run(self, cell: str) -> 'Run':
    """The files of one cell."""
    return Run(self.runs / cell)

  @property
  def report(self) -> pathlib.Path:
    """The page; its plots and tables lie next to it."""
    return self.root / 'report' / 'index.html'


@dataclasses.dataclass(frozen=True)
class Run:
  """Where everything of one cell lies; paths only, nothing is opened."""

  root: pathlib.Path

  @property
  def cell(self) -> pathlib.Path:
    """What the cell is made from, written when it begins."""
    return self.root / 'cell.json'

  @property
  def model(self) -> pathlib.Path:
    """A PEFT adapter or a Hugging Face model; there when finetuning is done."""
    return self.root / 'model'

  @property
  def metrics(self) -> pathlib.Path:
    """Loss and rate of finetuning by step."""
    return self.root / 'metrics.jsonl'

  @property
  def tensorboard(self) -> pathlib.Path:
    """The same as TensorBoard events."""
    return self.root / 'tensorboard'

  @property
  def checkpoints(self) -> pathlib.Path:
    """There only while the cell is being finetuned."""
    return self.root / 'checkpoints'

  @property
  def evaluations(self) -> pathlib.Path:
    """One folder per evaluation task."""
    return self.root / 'evaluations'

  def evaluation(self, task: str) -> pathlib.Path:
    """Metrics of a task; there when the cell is evaluated on it."""
    return self.evaluations / task / 'eval.json'

  def items(self, task: str) -> pathlib.Path:
    """One row per item of a task."""
    return self.evaluations / task / 'items.jsonl'

  @property
  def old_evaluation(self) -> tuple[pathlib.Path, pathlib.Path]:
    """Where evaluations lay before there were tasks; nothing writes these."""
    return self.root / 'eval.json', self.root / 'predictions.jsonl'


_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+://')


def has_scheme(path: str) -> bool:
  """Whether a path names another storage than this machine's, as gs://."""
  return _SCHEME.match(path) is not None


def open_workdir(path: str) -> Workdir:
  """The workdir that a person named.

  Raises:
    InputError: it is not a folder of a file system.
  """
  if has_scheme(path):
    raise errors.InputError(
      f'--workdir={path} is not in a file system, and a workdir is locked and '
      'its files renamed: name a folder, and copy it there when it is done'
    )
  return Workdir(pathlib.Path(path))


def require(path: pathlib.Path, stage: str, planned: Set[str]) -> None:
  """Refuses to go on without a stage's file, unless that stage runs before.

  Raises:
    InputError: naming the file and the stage that makes it.
  """
  if stage not in planned and not path.exists():
    raise errors.InputError(
      f'{path} does not exist: run the {stage} stage first'
    )


@contextlib.contextmanager
def claimed(workdir: Workdir) -> Iterator[None]:
  """Holds a workdir against other commands; leaves no empty folder behind.

  Raises:
    InputError: another command is at work there, or it cannot be written to.
  """
  lock = workdir.root / '.lock'
  try:
    workdir.root.mkdir(parents=True, exist_ok=True)
    file = lock.open('a')
  except OSError as e:
    raise errors.InputError(
      f'--workdir={workdir.root} cannot be written to ({e.strerror}): name a '
      'folder that can'
    ) from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise errors.InputError(
        f'another command is at work in {workdir.root}: wait for it, or name '
        'another --workdir'
      ) from None
    try:
      yield
    finally:
      if [p.name for p in workdir.root.iterdir()] == [lock.name]:
        lock.unlink()
        workdir.root.rmdir()
