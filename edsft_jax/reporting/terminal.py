"""The summary of a study in the terminal: a table and conclusions."""

import ml_collections

from edsft_jax import console, store, study
from edsft_jax.reporting import (
  comparison,
  results,
  statistics,
  timing,
  wording,
)

# Marks of conclusive comparisons in the table.
_MARKS = {
  comparison.Verdict.BETTER: '+',
  comparison.Verdict.WORSE: '-',
}


def summary(config: ml_collections.ConfigDict, workdir: store.Workdir) -> str:
  """The headline table, conclusions, time and the path of the page."""
  found = results.read_results(config, workdir)
  metric, confidence = config.report.metric, config.report.confidence
  about = found.metrics[metric]
  comparisons = comparison.compare(found, metric, confidence)
  texts = {
    (strategy, budget): mean_text(
      found.values(strategy, budget, metric), confidence
    )
    for strategy in found.strategies
    for budget in found.budgets
  }
  marks = {key: _MARKS.get(c.verdict, ' ') for key, c in comparisons.items()}
  # Aligns the means, even if some have no interval.
  width = max(map(len, texts.values()))
  table = [
    ['strategy', *(f'{budget:,} answers  ' for budget in found.budgets)],
    *(
      [
        strategy,
        *(
          f'{texts[strategy, b].ljust(width)} {marks.get((strategy, b), " ")}'
          for b in found.budgets
        ),
      ]
      for strategy in found.strategies
    ),
  ]
  references = [
    [name, mean_text(found.values(*line, metric), confidence)]
    for line, name in reference_names(found, metric).items()
  ]
  lines = [
    f'{about.label}: {wording.over_seeds(len(found.seeds), confidence)}; '
    f'{about.direction}',
    '',
    *_align(table, references),
    '',
  ]
  if any(c.verdict in _MARKS for c in comparisons.values()):
    lines.append('+ better than random, - worse than random')
  lines += comparison.conclusions(
    comparisons, comparison.RANDOM in found.strategies
  )
  if rejected := len(study.rejected_ids(workdir)):
    lines.append(
      f'{console.count(rejected, "prompt")} rejected by annotators: the next '
      'picks of each strategy took their places'
    )
  lines += [
    f'Not evaluated yet: {line}' for line in results.absent_lines(found.absent)
  ]
  lines += [
    timing.read_timing(store.Manifest(workdir).stages).sentence(),
    f'Report: {workdir.report}',
  ]
  return '\n'.join(lines)


def mean_text(values: list[float], confidence: float) -> str:
  """0.412 ± 0.021; 0.412 for a single seed; a dash for none."""
  if not values:
    return '–'
  interval = statistics.mean_interval(values, confidence)
  if interval.half_width is None:
    return f'{interval.mean:.3f}'
  return f'{interval.mean:.3f} ± {interval.half_width:.3f}'


def reference_names(
  found: results.Results, metric: str
) -> dict[tuple[str, int], str]:
  """(name, budget) of the evaluated reference cells -> their label."""
  names = {
    study.FULL_POOL: f'full pool ({found.pool_size:,} answers)',
    study.NO_FINETUNING: 'no finetuning',
  }
  return {line: names[line[0]] for line in found.references(metric)}


def _align(table: list[list[str]], references: list[list[str]]) -> list[str]:
  """Aligns names left and cells right; reference rows have a single cell."""
  names = max(len(row[0]) for row in [*table, *references])
  cells = [
    max(map(len, column)) for column in list(zip(*table, strict=True))[1:]
  ]
  return [
    '  '.join([row[0].ljust(names), *map(str.rjust, row[1:], cells)]).rstrip()
    for row in table
  ] + [f'{name.ljust(names)}  {text}' for name, text in references]
