"""The time of each stage, and the share spent on selection."""

from collections.abc import Mapping
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

  def sentence(self) -> str:
    """Selection's share of the total time, as a sentence."""
    if not self.total:
      return 'No stage has recorded its time.'
    return (
      f'Selection took {wording.duration(self.choosing)} of '
      f'{wording.duration(self.total)}, {self.choosing / self.total:.1%} of '
      'the total time (scoring the pool and choosing); choosing alone took '
      f'{wording.duration(self.select)}, {self.select / self.total:.1%}.'
    )


def read_timing(stages: Mapping[str, store.StageRecord]) -> Timing:
  """Reads the seconds from the records of manifest.json."""
  return Timing(
    {stage: stages[stage].seconds for stage in STAGES if stage in stages}
  )
