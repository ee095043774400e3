"""Renders results and exhibits as one HTML page."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import importlib.resources
import json
from typing import Any

import jinja2
import ml_collections

from edsft_jax import store, study
from edsft_jax.reporting import (
  comparison,
  exhibits,
  plots,
  results,
  statistics,
  timing,
  training,
  wording,
)
from edsft_jax.strategies import registry

COMPARISON_COLUMNS = (
  'metric',
  'strategy',
  'budget',
  'difference',
  'low',
  'high',
  'corrected_p',
  'verdict',
  'random_needs',
)


@dataclasses.dataclass(frozen=True)
class Page:
  """The page and the data of its files.

  Attributes:
    html: the page's HTML.
    exhibits: its plots with their data.
    comparison_rows: every comparison with random, in COMPARISON_COLUMNS.
  """

  html: str
  exhibits: list[exhibits.Exhibit]
  comparison_rows: list[tuple[Any, ...]]


def make(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  found: results.Results,
) -> Page:
  """Reads the selections, makes the plots and renders the page."""
  confidence, headline = config.report.confidence, config.report.metric
  # The headline metric comes first.
  names = sorted(found.metrics, key=lambda name: name != headline)
  compared = {
    name: comparison.compare(found, name, confidence) for name in names
  }
  timings = timing.read_timing(manifest.stages)
  drawn = _draw(config, workdir, found, names, timings)
  html = _template().render(
    **_about(config, workdir, manifest, found),
    **_headline(found, headline, confidence, compared),
    **drawn.others,
    efficiency=[
      (
        found.metrics[name],
        drawn.efficiency[name],
        list(compared[name].values()),
      )
      for name in names
    ],
    timings=timings,
    strategies=registry.STRATEGIES,
    verdicts=comparison.Verdict,
    contamination=_contamination(workdir),
  )
  return Page(
    html=html,
    exhibits=[
      exhibit
      for exhibit in (*drawn.efficiency.values(), *drawn.others.values())
      if exhibit is not None
    ],
    comparison_rows=[
      _comparison_row(name, one)
      for name in names
      for one in compared[name].values()
    ],
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
  names: Sequence[str],
  timings: timing.Timing,
) -> _Drawn:
  selections = results.read_selections(config, workdir)
  pool = store.read_prompts(workdir.pool)
  widths = None
  if workdir.gains_curves.exists():
    widths = exhibits.gains_by_width(store.read_json(workdir.gains_curves))
  return _Drawn(
    {
      name: exhibits.label_efficiency(found, name, config.report.confidence)
      for name in names
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
    'model': config.model.path,
    'pool_path': config.pool.path,
    'found': found,
    'confidence': confidence,
    'cells_text': wording.over_seeds(len(found.seeds), confidence),
    'threshold': 1 - confidence,
    'budgets_text': wording.listed([f'{b:,}' for b in found.budgets]),
    'certificates': results.certificates(config, workdir),
    'has_tasks': store.read_prompts(workdir.pool).tasks is not None,
    'found_tasks': results.found_tasks(config, workdir),
    'num_runs': sum(
      cell.strategy != study.NO_FINETUNING for cell in found.evaluations
    ),
    'coverage': _coverage(config, found),
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
  compared: Mapping[str, Mapping[tuple[str, int], comparison.Comparison]],
) -> dict[str, Any]:
  """Template variables about the headline metric."""
  return {
    'metric': found.metrics[metric],
    'compared_any': any(compared.values()),
    'conclusions': comparison.conclusions(
      compared[metric], comparison.RANDOM in found.strategies
    ),
    'other_conclusions': _other_metrics(found, compared, metric),
    'num_items': _num_items(found, found.metrics[metric].task),
    'items': _items(found.metrics[metric].task),
    'rows': [
      _row(found, strategy, metric, confidence, compared[metric])
      for strategy in found.strategies
    ],
    'references': [
      (
        plots.REFERENCES[name][2],
        budget,
        _cell(found, name, budget, metric, confidence),
      )
      for name, budget in found.references(metric)
    ],
  }


@dataclasses.dataclass(frozen=True)
class _Cell:
  """A cell of the headline table, and its comparison with random."""

  interval: statistics.Interval | None
  compared: comparison.Comparison | None = None


def _cell(
  found: results.Results,
  strategy: str,
  budget: int,
  metric: str,
  confidence: float,
  compared: comparison.Comparison | None = None,
) -> _Cell:
  values = found.values(strategy, budget, metric)
  if not values:
    return _Cell(None)
  return _Cell(statistics.mean_interval(values, confidence), compared)


def _row(
  found: results.Results,
  strategy: str,
  metric: str,
  confidence: float,
  compared: Mapping[tuple[str, int], comparison.Comparison],
) -> tuple[str, list[_Cell]]:
  return strategy, [
    _cell(
      found,
      strategy,
      budget,
      metric,
      confidence,
      compared.get((strategy, budget)),
    )
    for budget in found.budgets
  ]


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


def _other_metrics(
  found: results.Results,
  compared: Mapping[str, Mapping[tuple[str, int], comparison.Comparison]],
  headline: str,
) -> list[str]:
  """A sentence per further metric: how many comparisons are better or worse."""
  sentences = []
  for name, comparisons in compared.items():
    tested = [c for c in comparisons.values() if c.p_value is not None]
    if name == headline or not tested:
      continue
    better = sum(c.verdict is comparison.Verdict.BETTER for c in tested)
    worse = sum(c.verdict is comparison.Verdict.WORSE for c in tested)
    sentences.append(
      f'By {found.metrics[name].label}, {better} of {len(tested)} '
      f'comparisons are better than random and {worse} worse.'
    )
  return sentences


def _coverage(
  config: ml_collections.ConfigDict, found: results.Results
) -> list[str]:
  """Sentences on the sources of variation that the intervals cover."""
  if len(found.seeds) == 1:
    return [
      'Only one seed was run, so intervals cannot be computed, and differences '
      'may be due to chance. Set study.seeds to two or more.'
    ]
  drawn = [
    row.name for row in registry.rows(found.strategies) if row.is_seeded(config)
  ]
  fixed = [strategy for strategy in found.strategies if strategy not in drawn]
  sentences = []
  if drawn:
    sentences.append(
      f'For {wording.listed(drawn)}, they cover the random choice of prompts, '
      'the initialisation and the data order.'
    )
  if fixed:
    sentences.append(
      f'For {wording.listed(fixed)}, they only cover the initialisation and '
      'the data order: the same prompts are chosen for every seed.'
    )
  return [
    *sentences,
    'They do not cover the choice of evaluation items, pool or model.',
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


def _comparison_row(metric: str, one: comparison.Comparison) -> tuple[Any, ...]:
  difference = one.difference
  return (
    metric,
    one.strategy,
    one.budget,
    difference.mean if difference else None,
    difference.low if difference else None,
    difference.high if difference else None,
    one.p_value,
    one.verdict.value,
    one.needed,
  )


def _template() -> jinja2.Template:
  source = (
    importlib.resources.files('edsft_jax.reporting')
    .joinpath('page.html.jinja')
    .read_text(encoding='utf-8')
  )
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'number': lambda value: f'{value:,}',
    'quality': lambda value: f'{value:.3f}',
    'signed': lambda value: f'{value:+.3f}'.replace('-', '−'),
    'probability': lambda p: '< 0.001' if p < 0.001 else f'{p:.3f}',
    'coverage': lambda share: f'{100 * share:g}%',
    'base64': lambda data: base64.b64encode(data).decode('ascii'),
  }
  return environment.from_string(source)
