"""The time of each stage, and the share spent on selection."""

from collections.abc import Mapping, Sequence
import dataclasses

from edsft_jax import store
from edsft_jax.reporting import wording

# All stages before the report, in order.
STAGES = (
  'pool',
  'heldout',
  'score',
  'select',
  'annotate',
  'finetune',
  'evaluate',
)
# The stages that make up the cost of choosing prompts.
CHOOSING = ('score', 'select')


@dataclasses.dataclass(frozen=True)
class Timing:
  """Wall seconds by stage, for the stages that recorded any.

  Attributes:
    seconds: stage -> wall seconds.
  """

  seconds: dict[str, float]

  @property
  def total(self) -> float:
    """Seconds of all stages."""
    return sum(self.seconds.values())

  @property
  def choosing(self) -> float:
    """Seconds of score and select."""
    return sum(self.seconds.get(stage, 0.0) for stage in CHOOSING)

  @property
  def select(self) -> float:
    """Seconds of select."""
    return self.seconds.get('select', 0.0)

  def sentence(self, price_per_hour: float = 0.0) -> str:
    """Selection's share of the total time, as a sentence, and its price."""
    if not self.total:
      return 'No stage has recorded its time.'
    scoring = self.choosing - self.select
    sentence = (
      f'Selection took {wording.duration(self.choosing)} of '
      f'{wording.duration(self.total)}, {self.choosing / self.total:.1%} of '
      f'the total time: {wording.duration(scoring)} to score the pool and '
      f'{wording.duration(self.select)} to choose.'
    )
    if not price_per_hour:
      return sentence
    price = self.choosing / 3600 * price_per_hour
    return (
      f'{sentence} At {wording.amount(price_per_hour)} per hour, that is '
      f'{wording.amount(price)}.'
    )


def read_timing(
  stages: Mapping[str, store.StageRecord], runs: Sequence[store.Run] = ()
) -> Timing:
  """The seconds of each stage.

  manifest.json lacks the time of killed commands, and the records of cells lack
  the time to load models and to judge, so the larger of the two is taken.

  Args:
    stages: the records of manifest.json.
    runs: the cells.
  """
  seconds = {
    stage: stages[stage].seconds for stage in STAGES if stage in stages
  }
  for stage, of_cell in _OF_CELLS.items():
    known = sum(of_cell(run) or 0.0 for run in runs)
    if known > seconds.get(stage, 0.0):
      seconds[stage] = round(known, 3)
  return Timing({stage: seconds[stage] for stage in STAGES if stage in seconds})


def finetuning_seconds(run: store.Run) -> float | None:
  """Seconds to finetune a cell; None if they are not recorded.

  A cell without finetuning took none.
  """
  if not run.cell.exists():
    return 0.0
  if not run.model.exists() or not run.timing.exists():
    return None
  lines = store.read_jsonl(run.timing)
  return float(lines[-1]['seconds']) if lines else None


def evaluation_seconds(run: store.Run) -> float | None:
  """Seconds to evaluate a cell on all tasks; None if any are not recorded."""
  folders = [path.parent for path in run.evaluations.glob('*/eval.json')]
  paths = [folder / 'timing.json' for folder in folders]
  if not all(path.exists() for path in paths):
    return None
  return sum((store.read_json(path)['seconds'] for path in paths), 0.0)


_OF_CELLS = {'finetune': finetuning_seconds, 'evaluate': evaluation_seconds}
