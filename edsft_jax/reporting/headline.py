"""Template variables about the headline metric, and the other ones."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from edsft_jax.reporting import (
  comparison,
  conclusions,
  money,
  plots,
  results,
  savings,
  wording,
)
from edsft_jax.reporting.material import Material
from edsft_jax.strategies import registry


def variables(material: Material) -> dict[str, Any]:
  """The conclusions and tables of the headline metric."""
  found, metric = material.found, material.metric
  confidence, prices = material.confidence, material.prices
  of_metric = material.compared[metric]
  return {
    'metric': found.metrics[metric],
    'compared_any': any(one.curves for one in material.compared.values()),
    'conclusions': conclusions.conclusions(found, metric, of_metric, prices),
    'other_conclusions': [
      *conclusions.about_lists(found),
      *conclusions.at_budgets(of_metric),
      *conclusions.other_metrics(found, material.compared, metric),
    ],
    'verdict_rows': verdict_rows(of_metric, found.budgets, prices),
    'control': of_metric.control,
    'control_name': registry.LENGTH_MATCHED,
    'about_savings': conclusions.about_savings(of_metric, confidence),
    'has_money': bool(prices),
    'reference_budget': savings.reference_budget(found.budgets),
    'num_items': _num_items(found, found.metrics[metric].task),
    'items': _items(found.metrics[metric].task),
    'rows': [
      (
        strategy,
        [
          of_metric.interval(strategy, budget, confidence)
          for budget in found.budgets
        ],
      )
      for strategy in found.strategies
    ],
    'references': [
      (
        plots.REFERENCES[name].label,
        budget,
        found.reference(name, budget, metric),
      )
      for name, budget in found.references(metric)
    ],
  }


@dataclasses.dataclass(frozen=True)
class VerdictRow:
  """A strategy in the table of verdicts; texts are '' if there are none.

  Attributes:
    curve: its whole curve compared with random.
    detectable: the differences that would have been found, as text.
    answers: answers that it needs for what random reaches, as text.
    saving: the share of answers saved, as text.
    money: what it saves, as text.
  """

  curve: comparison.Comparison
  detectable: str = ''
  answers: str = ''
  saving: str = ''
  money: str = ''


def verdict_rows(
  compared: comparison.Comparisons,
  budgets: Sequence[int],
  prices: Mapping[str, float],
) -> list[VerdictRow]:
  """A row per strategy that was compared with random."""
  return [
    _verdict_row(strategy, compared, budgets, prices)
    for strategy in compared.curves
  ]


def _verdict_row(
  strategy: str,
  compared: comparison.Comparisons,
  budgets: Sequence[int],
  prices: Mapping[str, float],
) -> VerdictRow:
  curve, saving = compared.curves[strategy], compared.savings.get(strategy)
  detectable = ''
  if curve.verdict is comparison.Verdict.SAME:
    detectable = wording.detectable(curve.detectable)
  if saving is None:
    return VerdictRow(curve, detectable)
  saved = money.saved(saving, strategy, prices)
  return VerdictRow(
    curve,
    detectable,
    wording.answers_interval(saving, budgets),
    wording.saving_interval(saving, budgets),
    wording.money_interval(saving, budgets, saved) if saved else '',
  )


def _num_items(found: results.Results, task: str) -> str:
  """Number of items of a task; a range if cells differ."""
  sizes = sorted(
    {
      evaluation.num_items[task]
      for evaluation in found.evaluations.values()
      if task in evaluation.num_items
    }
  )
  if len(sizes) == 1:
    return f'{sizes[0]:,}'
  return f'{sizes[0]:,} to {sizes[-1]:,}'


def _items(task: str) -> str:
  """What the items of a task are called."""
  return 'held-out prompts' if task == results.HELDOUT else f'items of {task}'
