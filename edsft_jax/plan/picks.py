"""What strategies picked: tasks, overlap, coverage, bounds and examples."""

import collections
from collections.abc import Mapping, Sequence

import ml_collections

from edsft_jax import parts, store
from edsft_jax.plan import coverage
from edsft_jax.plan.orders import Orders
from edsft_jax.plan.section import Section
from edsft_jax.reporting import results
from edsft_jax.reporting.picks import overlap, shown
from edsft_jax.strategies.registry import RANDOM

# Tasks with a row of their own.
MAX_TASKS = 10
NO_TASK = '(no task)'
# Picks shown of each strategy.
NUM_SHOWN = 3


def sections(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> list[Section]:
  """All that selections show; empty if there are none."""
  if not orders.ids:
    return []
  return [
    *_tasks(pool, orders),
    *_overlap(config, pool, orders),
    *_coverage(config, workdir, pool, orders),
    *_bounds(config, workdir),
    _examples(pool, orders),
  ]


def _tasks(pool: store.Prompts, orders: Orders) -> list[Section]:
  """The share of each task among the picks, next to its share of the pool."""
  if pool.tasks is None:
    return []
  labels = [NO_TASK if task is None else task for task in pool.tasks]
  of_id = dict(zip(pool.ids, labels, strict=True))
  shares = {'pool': _shares(labels)}
  for name, lists in orders.lists.items():
    shares[name] = _shares([of_id[i] for ids in lists for i in ids])
  ranked = [task for task, _ in collections.Counter(labels).most_common()]
  groups = {task[:30]: [task] for task in ranked[:MAX_TASKS]}
  if rest := ranked[MAX_TASKS:]:
    groups[f'{len(rest)} smaller tasks'] = rest
  rows = [
    [
      label,
      *(
        f'{sum(share.get(task, 0.0) for task in members):.1%}'
        for share in shares.values()
      ),
    ]
    for label, members in groups.items()
  ]
  distances = [
    sum(abs(share.get(t, 0.0) - shares['pool'][t]) for t in ranked) / 2
    for share in shares.values()
  ]
  rows += [
    ['tasks with a pick', *(f'{len(share):,}' for share in shares.values())],
    ['share that would have to move', *(f'{d:.1%}' for d in distances)],
  ]
  return [
    Section(
      f'Tasks of the first {orders.largest:,} picks',
      [
        f'Strategies: {_numbered(orders)}. The last row is the share of picks '
        "that would have to be in another task for the pool's proportions."
      ],
      ['task', 'pool', *_numbers(orders)],
      rows,
      ['task', 'pool', *orders.ids],
    )
  ]


def _shares(tasks: Sequence[str]) -> dict[str, float]:
  counts = collections.Counter(tasks)
  return {task: count / len(tasks) for task, count in counts.items()}


def _numbers(orders: Orders) -> list[str]:
  return [str(i) for i, _ in enumerate(orders.ids, start=1)]


def _numbered(orders: Orders) -> str:
  """What the numbers of columns stand for."""
  return ', '.join(f'{i} {name}' for i, name in enumerate(orders.ids, start=1))


def _overlap(
  config: ml_collections.ConfigDict, pool: store.Prompts, orders: Orders
) -> list[Section]:
  """The share of picks that two strategies have in common, for one seed."""
  if len(orders.ids) < 2:
    return []

  def shared(one: str, other: str) -> str:
    share = overlap(orders.ids, one, other, orders.largest)
    return '–' if share is None else f'{share:.0%}'

  part = parts.num_prompts(config.study.pool_fraction, len(pool))
  return [
    Section(
      f'Picks in common among the first {orders.largest:,}',
      [
        'Of the same seed, mean over seeds. Two random choices share '
        f'{orders.largest / part:.0%}.'
      ],
      ['strategy', *_numbers(orders)],
      [
        [f'{i} {one}', *(shared(one, other) for other in orders.ids)]
        for i, one in enumerate(orders.ids, start=1)
      ],
      ['strategy', *orders.ids],
    )
  ]


def _coverage(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  orders: Orders,
) -> list[Section]:
  """Distances from the pool's prompts to their nearest picks."""
  if not store.feature_files(workdir):
    return []
  found = coverage.measure(config, workdir, pool, orders)
  columns = ['strategy', *(f'{b:,} answers' for b in orders.budgets)]

  def table(values: Mapping[str, Sequence[float]]) -> list[list[str]]:
    return [
      [
        name,
        *(
          f'{value:.3g} ({value / base:.0%})' if base else f'{value:.3g}'
          for value, base in zip(row, values[RANDOM], strict=True)
        ),
      ]
      for name, row in values.items()
    ]

  drawn = '' if RANDOM in orders.ids else ' (drawn for this plan)'
  return [
    Section(
      'Coverage: radius',
      [
        'The largest distance of features from any prompt to its nearest '
        'pick, mean over seeds; in parentheses, relative to '
        f'random{drawn} at the same budget: less is better.'
      ],
      columns,
      table({name: one.radius for name, one in found.items()}),
    ),
    Section(
      'Coverage: mean distance',
      ['The same, averaged over prompts.'],
      columns,
      table({name: one.mean for name, one in found.items()}),
    ),
  ]


def _bounds(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[Section]:
  lines = [f'{line}.' for line in results.certificates(config, workdir)]
  return [Section('Certified quality', lines)] if lines else []


def _examples(pool: store.Prompts, orders: Orders) -> Section:
  """The first picks of each strategy for the first seed."""
  texts = dict(zip(pool.ids, pool.texts(), strict=True))
  tasks = dict(zip(pool.ids, pool.tasks or [''] * len(pool), strict=True))
  return Section(
    f'The first {NUM_SHOWN} picks of each strategy',
    ['For its first seed.'],
    ['strategy', 'task', 'words', 'prompt'],
    [
      [
        name,
        tasks[i][:20],
        f'{len(texts[i].split()):,}',
        shown(texts[i]),
      ]
      for name, by_seed in orders.ids.items()
      for i in next(iter(by_seed.values()))[:NUM_SHOWN]
    ],
    num_text=4,
  )
