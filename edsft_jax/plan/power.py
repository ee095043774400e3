"""What a study could find: from variances, before it is run."""

import dataclasses
import math
import pathlib

import ml_collections
import numpy as np

from edsft_jax import console, errors, store, study
from edsft_jax.plan.section import Section
from edsft_jax.reporting import comparison, results, statistics
from edsft_jax.strategies import registry

# Numbers of seeds that are tried for a wished gain.
_MOST_SEEDS = 100


@dataclasses.dataclass(frozen=True)
class Variances:
  """Variances of a metric, averaged over budgets.

  Attributes:
    source: where they come from.
    drawn: over seeds, of a strategy whose list differs from seed to seed.
    fixed: over seeds, of a strategy that has the same list for every seed.
    items: over items, of a strategy's difference from random.
    num_items: how many items an evaluation has; 0: unknown, and items is 0.
    against_random: whether the metric is relative to random for the same seed.
  """

  source: str
  drawn: float
  fixed: float
  items: float
  num_items: int
  against_random: bool = False


@dataclasses.dataclass(frozen=True)
class Design:
  """What the power of a study depends on, besides its seeds and items.

  Attributes:
    num_drawn: strategies whose list differs from seed to seed, random included.
    num_fixed: the other strategies.
    num_tests: strategies that are compared with random.
    random_seeds: the least number of seeds of random.
    alpha: the level of all tests together.
  """

  num_drawn: int
  num_fixed: int
  num_tests: int
  random_seeds: int
  alpha: float

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> 'Design':
    """The design of a study."""
    rows = registry.rows(config.selection.strategies)
    num_fixed = sum(not study.lists_differ(config, row) for row in rows)
    return cls(
      len(rows) - num_fixed,
      num_fixed,
      sum(row.name != registry.RANDOM for row in rows),
      len(config.study.random_seeds),
      1 - config.report.confidence,
    )

  def detectable(
    self, variances: Variances, seeds: int, num_items: int, is_fixed: bool
  ) -> float:
    """The smallest difference that four of five studies find; NaN for none."""
    num_drawn: float = self.num_drawn
    random_seeds: int | None = max(seeds, self.random_seeds)
    if variances.against_random:
      num_drawn = statistics.num_independent(self.num_tests)
      random_seeds = None
    noise = statistics.Noise(
      statistics.Variance(variances.drawn, 0),
      num_drawn,
      statistics.Variance(variances.fixed, 0),
      self.num_fixed,
    ).with_seeds(seeds)
    error = noise.error(
      seeds,
      random_seeds,
      variances.items / max(num_items, 1),
      is_fixed,
    )
    return float(statistics.detectable(error, self.alpha, self.num_tests))

  def seeds_for(
    self, gain: float, variances: Variances, is_fixed: bool
  ) -> int | None:
    """The number of seeds for a difference; None if 100 are too few."""
    for seeds in range(2, _MOST_SEEDS + 1):
      size = self.detectable(variances, seeds, variances.num_items, is_fixed)
      if size <= gain:
        return seeds
    return None

  def items_for(
    self, gain: float, variances: Variances, seeds: int, is_fixed: bool
  ) -> int | None:
    """The number of items for a difference; None if no number is enough."""
    exact = dataclasses.replace(variances, items=0.0)
    size = self.detectable(variances, seeds, 1, is_fixed)
    floor = self.detectable(exact, seeds, 1, is_fixed)
    if not floor < gain:
      return None
    # The square of the detectable difference is a line in 1 / items.
    return max(1, math.ceil((size**2 - floor**2) / (gain**2 - floor**2)))


def check(config: ml_collections.ConfigDict) -> None:
  """Rejects bad options of the plan, and a pilot that is none.

  Raises:
    InputError: naming the option.
  """
  c = config.plan
  for name in ('seed_sd', 'item_sd', 'gain'):
    errors.refuse_below(f'plan.{name}', c[name], 0.0)
  if c.item_sd and not c.seed_sd:
    raise errors.InputError(
      'plan.item_sd is set without plan.seed_sd: give both, or only seed_sd'
    )
  if c.pilot and c.seed_sd:
    raise errors.InputError(
      'plan.pilot and plan.seed_sd are both set: variances come from one of '
      'them'
    )
  if c.pilot and not store.Workdir(pathlib.Path(c.pilot)).config.exists():
    raise errors.InputError(
      f'plan.pilot={c.pilot} has no config.json: name the workdir of a study '
      'that was evaluated'
    )


def section(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> Section:
  """The detectable differences, and what a wished gain needs."""
  metric = config.report.metric
  title = f'What this study could find, by {metric}'
  if registry.RANDOM not in config.selection.strategies:
    line = 'Random is not among selection.strategies: nothing is compared.'
    return Section(title, [line])
  variances = _variances(config, workdir)
  if variances is None:
    return Section(
      title,
      [
        'Unknown without variances: give the workdir of an earlier study as '
        'plan.pilot, or plan.seed_sd, the standard deviation of '
        f'{metric} over seeds, and plan.item_sd, that of a difference over '
        'items.'
      ],
    )
  n = variances.num_items
  design = Design.of(config)
  planned = len(config.study.seeds)
  counts = list(dict.fromkeys([planned, *comparison.PLANNED_SEEDS]))
  kinds = _kinds(design)
  rows = []
  for seeds in counts:
    sizes = [
      design.detectable(variances, seeds, variances.num_items, is_fixed)
      for is_fixed in kinds.values()
    ]
    name = f'{seeds}, as configured' if seeds == planned else f'{seeds}'
    rows.append(
      [name, *(f'{s:.3f}' if math.isfinite(s) else '–' for s in sizes)]
    )
  tests = console.count(design.num_tests, 'strategy').replace('ys', 'ies')
  return Section(
    title,
    [
      'The smallest difference from random over the whole curve that four of '
      f'five studies find, with {tests} to compare'
      + (f' and {console.count(n, "item")}.' if n else '.'),
      f'Variances: {variances.source}.',
      *_needs(config, design, variances),
    ],
    ['seeds', *kinds],
    rows,
  )


def _kinds(design: Design) -> dict[str, bool]:
  """Column -> whether it is for strategies that have one list."""
  if not design.num_fixed:
    return {'detectable difference': False}
  kinds = {'lists differ by seed': False, 'the same list': True}
  # Only random differs by seed.
  return kinds if design.num_drawn > 1 else {'the same list': True}


def _needs(
  config: ml_collections.ConfigDict, design: Design, variances: Variances
) -> list[str]:
  """How many seeds, or how many items, a wished gain needs."""
  gain, seeds = config.plan.gain, len(config.study.seeds)
  if not gain:
    return [
      'Set plan.gain to the difference that matters, and the plan says how '
      'many seeds or items it needs.'
    ]
  lines = []
  for kind, is_fixed in _kinds(design).items():
    enough = design.seeds_for(gain, variances, is_fixed)
    items = design.items_for(gain, variances, seeds, is_fixed)
    by_seeds = f'{enough} seeds' if enough else f'more than {_MOST_SEEDS} seeds'
    of_kind = f' ({kind})' if len(_kinds(design)) > 1 else ''
    line = f'To find {gain:g}{of_kind}: {by_seeds}'
    if not variances.num_items:
      lines.append(f'{line}.')
      continue
    as_configured = console.count(seeds, 'seed')
    by_items = (
      f'{console.count(items, "item")} with {as_configured}'
      if items
      else f'no number of items is enough with {as_configured}'
    )
    present = console.count(variances.num_items, 'item')
    lines.append(f'{line} with {present}, or {by_items}.')
  return lines


def _variances(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> Variances | None:
  """From the pilot, the options, or the evaluations of this workdir."""
  c = config.plan
  if c.seed_sd:
    return _stated(config, workdir)
  if c.pilot:
    pilot = store.Workdir(pathlib.Path(c.pilot))
    return _of_study(config, workdir, pilot, f'of the pilot {c.pilot}')
  if any(workdir.runs.glob('*/evaluations/*/eval.json')):
    return _of_study(config, workdir, workdir, 'of the cells evaluated here')
  return None


def _stated(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> Variances:
  """The variances that the options state."""
  c = config.plan
  # Metrics of held-out prompts have no prefix.
  is_heldout = '.' not in config.report.metric
  num_items = _num_heldout(config, workdir) if is_heldout else 0
  source = f'stated, a standard deviation of {c.seed_sd:g} over seeds'
  if c.item_sd and num_items:
    source += f' (plan.seed_sd) and {c.item_sd:g} over items (plan.item_sd)'
  elif c.item_sd:
    source += '; plan.item_sd is left out, since the number of items is unknown'
  else:
    source += ' (plan.seed_sd), none over items (plan.item_sd)'
  return Variances(
    source,
    c.seed_sd**2,
    c.seed_sd**2,
    c.item_sd**2 if num_items else 0.0,
    num_items,
  )


def _of_study(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pilot: store.Workdir,
  source: str,
) -> Variances:
  """The variances that the evaluations of a study show.

  Raises:
    InputError: they do not show any.
  """
  made = study.read_config(pilot)
  found = results.read_results(made, pilot)
  if not found.evaluations:
    raise errors.InputError(
      f'plan.pilot={pilot.root} has no evaluations: run its evaluate stage'
    )
  metric = results.find_metric(config.report.metric, found.metrics)
  level = comparison.level_at(
    found, metric, found.budgets, config.report.confidence
  )
  if level is None or not level.tests or not level.noise.drawn.freedom:
    raise errors.InputError(
      f'{pilot.root} has too few results to estimate variances: it needs '
      'random and another strategy, with two seeds that have all budgets'
    )
  items = found.items[metric]
  num_items = len(items.weights)
  variance = np.mean([test.item_variance for test in level.tests.values()])
  planned = num_items
  if found.metrics[metric].task == results.HELDOUT:
    planned = _num_heldout(config, workdir) or num_items
  drawn, fixed = level.noise.drawn, level.noise.fixed
  about = (
    f'{source}: standard deviation {math.sqrt(drawn.value):.4f} over seeds '
    f'({drawn.freedom} degrees of freedom) and '
    f'{math.sqrt(variance * num_items):.3f} over its {num_items:,} items'
  )
  return Variances(
    about,
    float(drawn.value),
    float(fixed.value if fixed else drawn.value),
    float(variance * num_items),
    planned,
    found.metrics[metric].against_random,
  )


def _num_heldout(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> int:
  """Held-out prompts that will be evaluated; 0 if there are none yet."""
  if not workdir.heldout.exists():
    return 0
  count = len(store.read_prompts(workdir.heldout).answered())
  return min(count, config.evaluation.limit or count)
