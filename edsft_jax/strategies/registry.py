"""The table of strategies: what each reads, how it chooses, how it is plotted.

study, pipeline and reporting read this table too, so importing it must be fast:
a chooser imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import operator
import typing

import ml_collections
import numpy as np

if typing.TYPE_CHECKING:
  from edsft_jax.selection import Selection
  from edsft_jax.strategies.view import View


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
  """A row of the registry.

  Attributes:
    name: its name in configs, files and reports.
    choose: (view, budget, seed) -> Selection. Every prefix of the order must be
      the selection for that smaller budget.
    colour: its colour on the page, '#rrggbb'.
    marker: its matplotlib marker on the page.
    reads: the inputs that it needs besides the pool, some of 'scores',
      'features', 'kernel' (over the features), 'tasks' and 'picks' (those of
      the strategy that it is matched to); the view has them.
    column: the score that it ranks by, which its picks list; '' for none.
    options: further options that it reads, by dotted name.
    seeded: whether the seed changes its picks.
    seeded_if: option -> the value with which the seed changes its picks.
  """

  name: str
  choose: Callable[[View, int, int], Selection]
  colour: str
  marker: str
  reads: frozenset[str] = frozenset()
  column: str = ''
  options: tuple[str, ...] = ()
  seeded: bool = False
  seeded_if: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def needs_scoring(self) -> bool:
    """Whether it needs the score stage, whatever the pool has."""
    return bool(self.reads & {'scores', 'features', 'kernel'})

  @property
  def reads_confidence(self) -> bool:
    """Whether it needs each task's confidence."""
    return 'selection.task_confidence' in self.options

  def is_seeded(self, config: ml_collections.ConfigDict) -> bool:
    """Whether the seed changes its picks under this config."""
    return self.seeded or any(
      operator.attrgetter(option)(config) == value
      for option, value in self.seeded_if.items()
    )


def _at_random(view: View, budget: int, seed: int) -> Selection:
  """A uniformly random order of the pool."""
  from edsft_jax import selection

  return selection.random(len(view.pool), budget, seed, initial=view.initial)


def _at_random_matched(view: View, budget: int, seed: int) -> Selection:
  """At random, with the lengths of the picks of another strategy."""
  from edsft_jax import selection

  assert view.picks is not None
  # Picks of earlier rounds take the places of the other strategy's first ones.
  start = len(view.initial)
  return selection.random_matched(
    [len(text) for text in view.pool.texts()],
    view.picks(start + budget)[start:],
    seed,
    initial=view.initial,
  )


def _by_score(
  view: View, budget: int, seed: int, *, column: str, largest: bool
) -> Selection:
  """The prompts with the largest or smallest scores.

  Raises:
    InputError: some prompt does not have this score.
  """
  from edsft_jax import selection
  from edsft_jax.strategies import scores as scores_lib

  values = scores_lib.complete(view.scores, view.pool.ids, column)
  return selection.top(values, budget, largest=largest, initial=view.initial)


def _k_center(view: View, budget: int, seed: int) -> Selection:
  """Greedy farthest-first traversal from the configured first centre."""
  from edsft_jax import selection

  assert view.features is not None
  features = view.features
  first = {
    'zero': lambda: 0,
    'random': lambda: int(selection.random(len(view.pool), 1, seed).indices[0]),
    'medoid': lambda: _medoid(features),
  }[view.k_center_first]()
  return selection.k_center(
    features,
    budget,
    initial=view.initial,
    first=first,
    mesh=view.mesh,
    progress=view.progress,
  )


def _medoid(features: np.ndarray) -> int:
  """The row nearest to the mean, so of the least sum of squared distances."""
  mean_D = features.mean(axis=0, dtype=np.float64)
  return int(np.argmin(((features - mean_D) ** 2).sum(axis=1)))


def _facility_location(view: View, budget: int, seed: int) -> Selection:
  """Prompts that together are similar to the whole pool."""
  from edsft_jax import selection

  assert view.features is not None
  assert view.similarity is not None
  return selection.facility_location(
    view.features,
    budget,
    similarity=view.similarity,
    initial=view.initial,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
    progress=view.progress,
  )


def _log_determinant(view: View, budget: int, seed: int) -> Selection:
  """Prompts that are unlike each other."""
  from edsft_jax import selection

  assert view.features is not None
  assert view.similarity is not None
  return selection.log_determinant(
    view.features,
    budget,
    similarity=view.similarity,
    initial=view.initial,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
    progress=view.progress,
  )


def _task_diversity(
  view: View, budget: int, seed: int, *, weighted: bool
) -> Selection:
  """Equal numbers from every task, or weighted by inverse confidence.

  Raises:
    InputError: a task has no confidence.
  """
  from edsft_jax import selection
  from edsft_jax.strategies import scores as scores_lib

  assert view.tasks is not None
  confidence = None
  if weighted:
    confidence = scores_lib.confidence(
      view.scores, view.pool.ids, view.tasks, view.task_confidence
    )
  return selection.task_diversity(
    view.tasks,
    budget,
    confidence=confidence,
    seed=seed,
    initial=view.initial,
  )


def _ranking(
  name: str, largest: bool, marker: str, colour: str, prompt_colour: str
) -> list[Strategy]:
  """The strategies that rank by a score, of the continuation or the prompt."""
  return [
    Strategy(
      name=column,
      choose=functools.partial(_by_score, column=column, largest=largest),
      colour=hue,
      marker=marker,
      reads=frozenset({'scores'}),
      column=column,
    )
    for column, hue in ((name, colour), (f'prompt_{name}', prompt_colour))
  ]


# Colours from Okabe & Ito and from Tol's muted scheme, distinguishable with all
# common forms of colour blindness; in print, markers distinguish them. Scores
# over the prompt have lighter colours than those over the continuation.
_ROWS = [
  Strategy('random', _at_random, '#7d828c', 'o', seeded=True),
  *_ranking('mean_entropy', True, 'X', '#882255', '#b87a99'),
  *_ranking('max_entropy', True, '<', '#aa4499', '#cc8fc2'),
  *_ranking('least_confidence', True, '>', '#117733', '#70ad84'),
  *_ranking('min_confidence', False, 'p', '#999933', '#c2c285'),
  *_ranking('mean_margin', False, 'P', '#cc79a7', '#e0afca'),
  *_ranking('min_margin', False, 's', '#009e73', '#66c5ab'),
  Strategy(
    'k_center',
    _k_center,
    '#56b4e9',
    '^',
    reads=frozenset({'features'}),
    options=('selection.k_center_first',),
    seeded_if={'selection.k_center_first': 'random'},
  ),
  Strategy(
    'facility_location',
    _facility_location,
    '#0072b2',
    'o',
    reads=frozenset({'features', 'kernel'}),
  ),
  Strategy(
    'log_determinant',
    _log_determinant,
    '#332288',
    'h',
    reads=frozenset({'features', 'kernel'}),
  ),
  Strategy(
    'task_diversity',
    functools.partial(_task_diversity, weighted=False),
    '#e69f00',
    'v',
    reads=frozenset({'tasks'}),
    seeded=True,
  ),
  Strategy(
    'weighted_task_diversity',
    functools.partial(_task_diversity, weighted=True),
    '#d55e00',
    'D',
    reads=frozenset({'tasks', 'scores'}),
    options=('selection.task_confidence',),
    seeded=True,
  ),
  Strategy(
    'random_length_matched',
    _at_random_matched,
    '#3d4450',
    '*',
    reads=frozenset({'picks'}),
    options=('selection.length_matched_to',),
    seeded=True,
  ),
]

# A script may add rows of its own before it runs a study.
STRATEGIES: dict[str, Strategy] = {row.name: row for row in _ROWS}
RANDOM = 'random'
# Random with the lengths of another strategy's picks: shows what these do.
LENGTH_MATCHED = 'random_length_matched'


def rows(names: Iterable[str]) -> list[Strategy]:
  """The rows of these strategies."""
  return [STRATEGIES[name] for name in names]
