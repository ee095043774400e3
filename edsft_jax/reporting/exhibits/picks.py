"""What was picked: coverage, lengths, overlap, and where in the pool."""

from collections.abc import Mapping, Sequence
import functools

import numpy as np

from edsft_jax import store
from edsft_jax.reporting import coverage as coverage_lib
from edsft_jax.reporting import picks, plots, projection, wording
from edsft_jax.reporting.exhibits.exhibit import Exhibit
from edsft_jax.reporting.plots import palette
from edsft_jax.strategies.registry import RANDOM, STRATEGIES

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_POOL = 'pool'


def coverage(
  found: Mapping[str, coverage_lib.Coverage],
  orders: picks.Orders,
  budgets: Sequence[int],
) -> Exhibit | None:
  """How well picks cover the pool, by budget; None without features."""
  if not found:
    return None
  shared: dict[str, list[float | None]] = {
    name: [picks.overlap(orders, name, RANDOM, b) for b in budgets]
    for name in found
    if name != RANDOM and RANDOM in orders
  }
  panels: dict[str, dict[str, Sequence[float]]] = {
    'Radius': {name: one.radius for name, one in found.items()},
    'Near duplicates, %': {
      name: [100 * x for x in one.near_duplicates]
      for name, one in found.items()
    },
  }
  known: dict[str, Sequence[float]] = {
    name: [100 * x for x in row if x is not None]
    for name, row in shared.items()
    if None not in row
  }
  if known:
    panels["Also random's picks, %"] = known
  rows = [
    (
      *(name, budget, one.radius[i], one.mean[i], one.near_duplicates[i]),
      shared[name][i] if name in shared else None,
    )
    for name, one in found.items()
    for i, budget in enumerate(budgets)
  ]
  last = len(budgets) - 1
  listed = '; '.join(
    f'{name}: radius {one.radius[last]:.3g}, near duplicates '
    f'{one.near_duplicates[last]:.0%}'
    for name, one in found.items()
  )
  return Exhibit(
    name='coverage',
    caption='How well the picks cover the prompts that they were chosen from, '
    'mean over seeds. Radius: the largest distance of features from any prompt '
    'to its nearest pick. Near duplicates: picks as near to an earlier one as '
    'the nearest 5% of the prompts are to their neighbours.'
    + (' Last panel: picks that random takes as well.' if known else ''),
    alt=f'Coverage with {budgets[-1]:,} answers. {listed}.',
    draw=functools.partial(plots.by_budget, panels, budgets),
    columns=(
      *('strategy', 'budget', 'radius', 'mean_distance', 'near_duplicates'),
      'shared_with_random',
    ),
    rows=rows,
  )


def lengths(
  pool: store.Prompts,
  answers: Mapping[str, str],
  orders: picks.Orders,
  budget: int,
) -> Exhibit | None:
  """How long the picks are, compared with the pool; None without picks."""
  if not orders:
    return None
  words = {'Prompts': dict(zip(pool.ids, pool.num_words(), strict=True))}
  if answers:
    words['Answers'] = {i: len(text.split()) for i, text in answers.items()}
  groups = {_POOL: pool.ids} | {
    name: [i for order in by_seed.values() for i in order[:budget]]
    for name, by_seed in orders.items()
  }
  panels: dict[str, dict[str, plots.Spread]] = {}
  for kind, known in words.items():
    for group, ids in groups.items():
      if values := [known[i] for i in ids if i in known]:
        panels.setdefault(kind, {})[group] = plots.Spread(
          float(np.mean(values)), np.quantile(values, _QUANTILES).tolist()
        )
  colours = {_POOL: palette.SPINE}
  colours |= {name: STRATEGIES[name].colour for name in orders}
  listed = '; '.join(
    f'{group}: '
    + ', '.join(
      f'{kind.lower()} {panels[kind][group].mean:.0f}'
      for kind in panels
      if group in panels[kind]
    )
    for group in groups
  )
  return Exhibit(
    name='lengths_of_picks',
    caption=f'Words of the first {budget:,} picks of each strategy, over all '
    'seeds, and of the pool: median, middle half and middle nine tenths; the '
    'diamond is the mean. Long prompts and answers cost more.',
    alt=f'Mean words of the first {budget:,} picks. {listed}.',
    draw=functools.partial(plots.lengths, panels, colours),
    columns=(
      *('text', 'picks_of', 'mean'),
      *(f'quantile_{100 * q:.0f}' for q in _QUANTILES),
    ),
    rows=[
      (kind.lower(), group, spread.mean, *spread.quantiles)
      for kind, spreads in panels.items()
      for group, spread in spreads.items()
    ],
  )


def overlap(
  orders: picks.Orders, budget: int, expected: float
) -> Exhibit | None:
  """Picks that strategies have in common; None for a single strategy.

  Args:
    orders: strategy -> seed -> ids in order.
    budget: how many picks.
    expected: the share that two random choices have in common.
  """
  names = list(orders)
  if len(names) < 2:
    return None
  shares = {
    (one, other): picks.overlap(orders, one, other, budget)
    for one in names
    for other in names
  }
  matrix = np.array([[shares[a, b] for b in names] for a in names], dtype=float)
  listed = '; '.join(
    f'{a} and {b} {shares[a, b]:.0%}'
    for i, a in enumerate(names)
    for b in names[i + 1 :]
    if shares[a, b] is not None
  )
  return Exhibit(
    name='overlap',
    caption=f'Share of the first {budget:,} picks that two strategies have in '
    'common for the same seed, in percent, mean over seeds. Two independent '
    f'random choices share {expected:.0%}.',
    note=_about_tasks(names),
    alt=f'Picks in common: {listed}.',
    draw=functools.partial(plots.overlap, names, matrix),
    columns=('strategy', 'other', 'share'),
    rows=[(*pair, share) for pair, share in shares.items()],
  )


def _about_tasks(names: Sequence[str]) -> str:
  """Why strategies that draw within tasks have more in common with random."""
  of_tasks = [name for name in names if 'tasks' in STRATEGIES[name].reads]
  if not of_tasks or RANDOM not in names:
    return ''
  verb = 'takes' if len(of_tasks) == 1 else 'take'
  return (
    f'Within a task, {wording.listed(of_tasks)} {verb} prompts in the order of '
    'random with the same seed.'
  )


def pool_map(
  pool: store.Prompts,
  projected: projection.Projection | None,
  orders: picks.Orders,
  budget: int,
) -> Exhibit | None:
  """Where the picks are among the prompts; None without features."""
  if projected is None or not orders:
    return None
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  first = {
    name: np.array([place[i] for i in next(iter(by_seed.values()))[:budget]])
    for name, by_seed in orders.items()
  }
  name, points = list(projected.points.items())[-1]
  columns = [
    f'{kind.lower()}_{axis}' for kind in projected.points for axis in 'xy'
  ]
  values = np.concatenate(list(projected.points.values()), axis=1).tolist()
  return Exhibit(
    name='map',
    caption=f'The pool by {name} of its features (grey), and the first '
    f'{budget:,} picks of each strategy for its first seed. '
    f'{projected.notes[name]}',
    alt=f'A map of {len(pool):,} prompts with the picks of '
    f'{", ".join(first)}. {projected.notes[name]}',
    draw=functools.partial(plots.pool_map, points, first, name),
    columns=('id', *columns),
    rows=[(i, *row) for i, row in zip(pool.ids, values, strict=True)],
  )
