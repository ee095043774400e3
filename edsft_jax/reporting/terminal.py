"""The summary of a study in the terminal: a table and conclusions."""

import ml_collections

from edsft_jax import console, store, study
from edsft_jax.reporting import (
  account,
  comparison,
  conclusions,
  money,
  plots,
  results,
  statistics,
  timing,
  wording,
)


def summary(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  found: results.Results | None = None,
) -> str:
  """The headline table, conclusions, time and the path of the page.

  Args:
    config: the study and the headline metric.
    workdir: has the evaluations.
    found: these, if they were read before.
  """
  found = found or results.read_results(config, workdir)
  metric, confidence = config.report.metric, config.report.confidence
  about = found.metrics[metric]
  compared = comparison.compare(found, metric, confidence)
  lengths = account.lengths(
    store.read_prompts(workdir.pool),
    store.read_responses(workdir.responses),
    results.read_selections(config, workdir),
    found.budgets,
  )
  prices = money.prices(config, lengths)
  lines = [
    f'{about.label}: {wording.over_seeds(found.num_seeds, confidence)}; '
    f'{about.direction}',
    '',
    *console.aligned(_table(found, metric, compared, confidence)),
    '',
    *conclusions.conclusions(found, metric, compared, prices),
  ]
  if rejected := len(study.rejected_ids(workdir)):
    lines.append(
      f'{console.count(rejected, "prompt")} rejected by annotators: the next '
      'picks of each strategy took their places'
    )
  lines += [
    f'Not evaluated yet: {line}' for line in results.absent_lines(found.absent)
  ]
  lines += [
    timing.read_timing(
      store.Manifest(workdir).stages,
      [workdir.run(cell.name) for cell in found.evaluations],
    ).sentence(config.report.price_per_hour),
    f'Report: {workdir.report}',
  ]
  return '\n'.join(lines)


def _table(
  found: results.Results,
  metric: str,
  compared: comparison.Comparisons,
  confidence: float,
) -> list[list[str]]:
  """The means of each strategy by budget, and of the references."""
  texts = {
    (strategy, budget): _mean_text(
      compared.interval(strategy, budget, confidence)
    )
    for strategy in found.strategies
    for budget in found.budgets
  }
  # Aligns the means, even if some have no interval.
  width = max(map(len, texts.values()))
  rows = [['strategy', *(f'{budget:,} answers' for budget in found.budgets)]]
  for strategy in found.strategies:
    means = (texts[strategy, b].ljust(width) for b in found.budgets)
    rows.append([strategy, *means])
  for name, budget in found.references(metric):
    label = plots.REFERENCES[name].label
    if budget:
      label += f' ({budget:,} answers)'
    mean = _mean_text(found.reference(name, budget, metric)).ljust(width)
    rows.append([label, mean, *([''] * (len(found.budgets) - 1))])
  return rows


def _mean_text(interval: statistics.Interval | None) -> str:
  """0.412 ± 0.021; 0.412 without an interval; a dash without results."""
  if interval is None:
    return '–'
  if interval.half_width is None:
    return f'{interval.mean:.3f}'
  return f'{interval.mean:.3f} ± {interval.half_width:.3f}'
