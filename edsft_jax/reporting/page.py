"""Renders results and exhibits as one HTML page."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

import ml_collections

from edsft_jax import store, study
from edsft_jax.reporting import (
  account,
  comparison,
  conclusions,
  exhibits,
  html,
  money,
  plots,
  results,
  savings,
  tables,
  timing,
  training,
  wording,
)
from edsft_jax.strategies import registry


@dataclasses.dataclass(frozen=True)
class Page:
  """The page and the data of its files.

  Attributes:
    html: the page's HTML.
    exhibits: its plots with their data.
    tables: file name -> header and rows of a csv.
  """

  html: str
  exhibits: list[exhibits.Exhibit]
  tables: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]


def make(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  found: results.Results,
) -> Page:
  """Reads the selections, makes the plots and renders the page."""
  confidence, headline = config.report.confidence, config.report.metric
  compared = comparison.compare_all(found, headline, confidence)
  timings = timing.read_timing(manifest.stages)
  selections = results.read_selections(config, workdir)
  pool = store.read_prompts(workdir.pool)
  lengths = account.lengths(workdir, pool, selections, found.budgets)
  prices = money.prices(config, lengths)
  drawn = _draw(config, workdir, found, compared, selections, pool, timings)
  text = html.template('edsft_jax.reporting', 'page.html.jinja').render(
    **_about(config, workdir, manifest, found),
    **_headline(found, headline, confidence, compared, prices),
    **drawn.others,
    efficiency=[
      (
        found.metrics[name],
        drawn.efficiency[name],
        [*compared[name].curves.values(), *compared[name].budgets.values()],
      )
      for name in compared
    ],
    lengths=lengths,
    time_text=timings.sentence(config.report.price_per_hour),
    choosing=account.choosing(config, workdir, timings),
    strategies=registry.STRATEGIES,
    verdicts=comparison.Verdict,
    contamination=_contamination(workdir),
  )
  return Page(
    html=text,
    exhibits=[
      exhibit
      for exhibit in (*drawn.efficiency.values(), *drawn.others.values())
      if exhibit is not None
    ],
    tables={
      'comparisons.csv': (
        tables.COMPARISON_COLUMNS,
        tables.comparison_rows(compared),
      ),
      'savings.csv': (tables.SAVINGS_COLUMNS, tables.savings_rows(compared)),
      'lengths.csv': (tables.LENGTH_COLUMNS, tables.length_rows(lengths)),
    },
  )


def _contamination(workdir: store.Workdir) -> dict[str, Any]:
  """Task -> its counts of items that share text with the pool."""
  path = workdir.contamination
  return store.read_json(path) if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """The exhibits: one per metric, and others by their name in the template."""

  efficiency: dict[str, exhibits.Exhibit | None]
  others: dict[str, exhibits.Exhibit | None]


def _draw(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  found: results.Results,
  compared: Mapping[str, comparison.Comparisons],
  selections: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
  pool: store.Prompts,
  timings: timing.Timing,
) -> _Drawn:
  widths = None
  if workdir.gains_curves.exists():
    widths = exhibits.gains_by_width(store.read_json(workdir.gains_curves))
  return _Drawn(
    {
      name: exhibits.label_efficiency(
        found, name, comparisons, config.report.confidence
      )
      for name, comparisons in compared.items()
    },
    {
      'widths': widths,
      'gains': exhibits.selection_gains(selections),
      'allocation': exhibits.task_allocation(found, pool, selections),
      'quality': exhibits.task_quality(found, config.report.metric),
      'seconds': exhibits.stage_seconds(timings),
    },
  )


def _about(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  found: results.Results,
) -> dict[str, Any]:
  """Template variables about the study and its settings."""
  confidence = config.report.confidence
  return {
    'title': config.report.title or workdir.root.resolve().name,
    'note': config.report.note,
    'model': config.model.path,
    'pool_path': config.pool.path,
    'found': found,
    'confidence': confidence,
    'cells_text': wording.over_seeds(found.num_seeds, confidence),
    'threshold': 1 - confidence,
    'budgets_text': wording.listed([f'{b:,}' for b in found.budgets]),
    'certificates': results.certificates(config, workdir),
    'has_tasks': store.read_prompts(workdir.pool).tasks is not None,
    'found_tasks': results.found_tasks(config, workdir),
    'num_runs': sum(
      cell.strategy != study.NO_FINETUNING for cell in found.evaluations
    ),
    'coverage': _coverage(config, found),
    'seeds_text': _seeds_text(found),
    'choice_text': _choice_text(config),
    'absent': results.absent_lines(found.absent),
    'rising': training.rising_losses(workdir, found.evaluations),
    'rejected': len(study.rejected_ids(workdir)),
    'counts': {
      stage: _flat(manifest.counts(stage))
      for stage in timing.STAGES
      if stage in manifest.stages
    },
    'versions': manifest.facts.get('versions', {}),
    'config_text': json.dumps(config.to_dict(), indent=2, ensure_ascii=False),
  }


def _headline(
  found: results.Results,
  metric: str,
  confidence: float,
  compared: Mapping[str, comparison.Comparisons],
  prices: Mapping[str, float],
) -> dict[str, Any]:
  """Template variables about the headline metric."""
  of_metric = compared[metric]
  return {
    'metric': found.metrics[metric],
    'compared_any': any(one.curves for one in compared.values()),
    'conclusions': conclusions.conclusions(found, metric, of_metric, prices),
    'other_conclusions': [
      *conclusions.at_budgets(of_metric),
      *conclusions.other_metrics(found, compared, metric),
    ],
    'verdict_rows': [
      _verdict_row(strategy, of_metric, found.budgets, prices)
      for strategy in of_metric.curves
    ],
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
        plots.REFERENCES[name][2],
        budget,
        found.reference(name, budget, metric),
      )
      for name, budget in found.references(metric)
    ],
  }


@dataclasses.dataclass(frozen=True)
class _VerdictRow:
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


def _verdict_row(
  strategy: str,
  compared: comparison.Comparisons,
  budgets: Sequence[int],
  prices: Mapping[str, float],
) -> _VerdictRow:
  curve, saving = compared.curves[strategy], compared.savings.get(strategy)
  detectable = ''
  if curve.verdict is comparison.Verdict.SAME:
    detectable = wording.detectable(curve.detectable)
  if saving is None:
    return _VerdictRow(curve, detectable)
  amounts = money.saved(saving, strategy, prices)
  return _VerdictRow(
    curve,
    detectable,
    wording.answers_interval(saving, budgets),
    wording.saving_interval(saving, budgets),
    wording.money_interval(amounts) if amounts else '',
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


def _seeds_text(found: results.Results) -> list[tuple[str, str]]:
  """Seeds, and the strategies that have them."""
  groups: dict[str, list[str]] = {}
  for strategy in found.strategies:
    seeds = ', '.join(map(str, found.seeds[strategy]))
    groups.setdefault(seeds, []).append(strategy)
  return [(seeds, ', '.join(names)) for seeds, names in groups.items()]


def _choice_text(config: ml_collections.ConfigDict) -> str:
  """What each seed chose from."""
  fraction = config.study.pool_fraction
  if fraction == 1:
    return 'the whole pool, for every seed'
  return f'{fraction:.0%} of the pool for each seed, without overlap'


def _coverage(
  config: ml_collections.ConfigDict, found: results.Results
) -> list[str]:
  """Sentences on the sources of variation that the intervals cover."""
  if found.num_seeds == 1:
    return [
      'Only one seed was run, so intervals cannot be computed, and differences '
      'may be due to chance. Set study.seeds to two or more.'
    ]
  pooled = (
    'The variance over seeds is pooled over all strategies of a budget, so '
    'intervals differ only by the number of seeds.'
  )
  fraction = config.study.pool_fraction
  if fraction < 1:
    return [
      pooled,
      f'Each seed has its own part of the pool ({fraction:.0%}), the same for '
      'all strategies; parts are disjoint. Intervals cover the choice of '
      'prompts, the initialisation and the data order.',
      'Tests also cover the choice of evaluation items; the intervals of '
      'single means do not. Neither covers the choice of pool or model.',
    ]
  sentences = [pooled]
  if drawn := [s for s in found.strategies if s not in found.fixed]:
    sentences.append(
      f'For {wording.listed(drawn)}, intervals cover the random choice of '
      'prompts, the initialisation and the data order.'
    )
  if fixed := [s for s in found.strategies if s in found.fixed]:
    sentences.append(
      f'For {wording.listed(fixed)}, this is the result of this list of '
      'prompts only: all seeds had the whole pool, so the list is always the '
      'same. Intervals and tests add the variance of picks that random shows, '
      'which more seeds do not reduce; study.pool_fraction gives each seed its '
      'own part of the pool.'
    )
  return [
    *sentences,
    'Tests also cover the choice of evaluation items; the intervals of single '
    'means do not. Neither covers the choice of pool or model.',
  ]


def _flat(counts: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested counts; names get spaces instead of underscores.

  Lists become text; empty ones and lists of records are left out.
  """
  flat: dict[str, Any] = {}
  for name, value in counts.items():
    label = f'{prefix}{name}'.replace('_', ' ')
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{label}: ')
    elif isinstance(value, list):
      if value and not isinstance(value[0], Mapping):
        flat[label] = '; '.join(map(str, value))
    else:
      flat[label] = value
  return flat
