"""Where the time went, and how much of it was spent on choosing."""

from collections.abc import Mapping
import dataclasses

from edsft_jax import store
from edsft_jax.reporting import wording

# Everything before the report, in order.
STAGES = (
  'pool',
  'heldout',
  'score',
  'select',
  'annotate',
  'finetune',
  'evaluate',
)
# What choosing prompts costs beyond what every study pays.
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
    """All stages together."""
    return sum(self.seconds.values())

  @property
  def choosing(self) -> float:
    """Score and select together."""
    return sum(self.seconds.get(stage, 0.0) for stage in CHOOSING)

  @property
  def select(self) -> float:
    """Choosing alone."""
    return self.seconds.get('select', 0.0)

  def sentence(self) -> str:
    """The share of selection in the total time."""
    if not self.total:
      return 'No stage has recorded its time.'
    return (
      f'Selection took {wording.duration(self.choosing)} of '
      f'{wording.duration(self.total)}, {self.choosing / self.total:.1%} of '
      'the total time (scoring the pool and choosing); choosing alone took '
      f'{wording.duration(self.select)}, {self.select / self.total:.1%}.'
    )


def read_timing(stages: Mapping[str, store.StageRecord]) -> Timing:
  """From the records of manifest.json."""
  return Timing(
    {stage: stages[stage].seconds for stage in STAGES if stage in stages}
  )
