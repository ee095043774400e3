"""Template variables about the study: what was run, and how."""

from collections.abc import Mapping
import json
from typing import Any

import ml_collections

from edsft_jax import store, study
from edsft_jax.reporting import (
  account,
  results,
  timing,
  training,
  unfinished,
  wording,
)
from edsft_jax.reporting.material import Material

# Rows of a table on the page; its csv has all.
MAX_ROWS = 100


def variables(material: Material) -> dict[str, Any]:
  """What was run, what is missing, and how long it took."""
  config, workdir = material.config, material.workdir
  found, manifest = material.found, material.manifest
  confidence = material.confidence
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
    'has_tasks': material.pool.tasks is not None,
    'found_tasks': results.found_tasks(config, workdir),
    'num_runs': sum(
      cell.strategy != study.NO_FINETUNING for cell in found.evaluations
    ),
    'interval_notes': _interval_notes(config, found),
    'seeds_text': _seeds_text(found),
    'choice_text': _choice_text(config),
    'unfinished': unfinished.groups(config, workdir, found.absent),
    'rising': training.rising_losses(workdir, found.evaluations),
    'rejected': len(study.rejected_ids(workdir)),
    'replaced': material.replaced[:MAX_ROWS],
    'num_replaced': len(material.replaced),
    'contamination': _contamination(workdir),
    'time_text': material.timings.sentence(config.report.price_per_hour),
    'choosing': account.choosing(config, workdir, material.timings),
    'counts': {
      stage: _flat(manifest.counts(stage))
      for stage in timing.STAGES
      if stage in manifest.stages
    },
    'made_with': _made_with(manifest),
    'config_text': json.dumps(config.to_dict(), indent=2, ensure_ascii=False),
  }


def _made_with(manifest: store.Manifest) -> list[tuple[str, str]]:
  """Versions and devices, and the stages that ran with them."""
  stages: dict[str, list[str]] = {}
  for stage in timing.STAGES:
    if stage in manifest.stages:
      for used in manifest.stages[stage].made_with:
        text = ', '.join(f'{name} {version}' for name, version in used.items())
        stages.setdefault(text, []).append(stage)
  return [(text, ', '.join(names)) for text, names in stages.items()]


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


def _interval_notes(
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
  not_covered = (
    'Tests also cover the choice of evaluation items; the intervals of single '
    'means do not. Neither covers the choice of pool or model.'
  )
  fraction = config.study.pool_fraction
  if fraction < 1:
    return [
      pooled,
      f'Each seed has its own part of the pool ({fraction:.0%}), the same for '
      'all strategies; parts are disjoint. Intervals cover the choice of '
      'prompts, the initialisation and the data order.',
      not_covered,
    ]
  sentences = [pooled]
  if drawn := [s for s in found.strategies if s not in found.fixed]:
    sentences.append(
      f'For {wording.listed(drawn)}, intervals cover the random choice of '
      'prompts, the initialisation and the data order.'
    )
  if fixed := [s for s in found.strategies if s in found.fixed]:
    sentences.append(
      f'For {wording.listed(fixed)}, this is the result of a single list of '
      'prompts: all seeds had the whole pool, so the list is always the same. '
      'Intervals and tests add the variance between picks, estimated from '
      'random, which more seeds do not reduce; study.pool_fraction gives each '
      'seed its own part of the pool.'
    )
  return [*sentences, not_covered]


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


def _contamination(workdir: store.Workdir) -> dict[str, dict[str, Any]]:
  """Task -> its counts of items that share text with the pool.

  `worst` names the cell whose selection shares most; '' if none shares any.
  """
  path = workdir.contamination
  found = store.read_json(path) if path.exists() else {}
  for counts in found.values():
    cells = counts['selections']
    worst = max(cells, key=lambda name: cells[name], default='')
    counts['worst'] = worst if worst and cells[worst] else ''
  return found
