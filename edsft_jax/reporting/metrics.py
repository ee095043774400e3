"""The metrics of an evaluation: their names, and which way is better."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a metric of eval.json is read and shown.

  Attributes:
    label: its name in a heading.
    higher_is_better: False where a smaller value is the better one.
    meaning: what is measured, with the unit.
  """

  label: str
  higher_is_better: bool
  meaning: str

  @property
  def direction(self) -> str:
    return 'higher is better' if self.higher_is_better else 'lower is better'


METRICS = {
  'loss': Metric('Loss', False, 'nats per token of the reference answer'),
  'exact_match': Metric(
    'Exact match', True, 'share of answers equal to the reference'
  ),
  'rouge_l': Metric(
    'ROUGE-L',
    True,
    'word overlap in order with the reference, from 0 to 1',
  ),
}
