"""Every strategy, one row each: what it reads, who chooses, how it is drawn.

Below all stages: study, pipeline and reporting read it too. It imports nothing
heavy, and names choosers without importing them.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import importlib
import operator
from typing import Any

import ml_collections

_CHOOSERS = 'edsft_jax.strategies.choosers'


@dataclasses.dataclass(frozen=True, eq=False)
class Strategy:
  """A row of the registry.

  Attributes:
    name: in configs, files and reports.
    chooser: name in strategies/choosers.py of a function
      (view, budget, seed, **arguments) -> selection.Selection, each of whose
      prefixes is its answer for that smaller budget.
    colour: on the page, '#rrggbb'.
    marker: of matplotlib, on the page.
    reads: of 'scores', 'features', 'kernel' and 'tasks', what the choice
      depends on besides the pool; the kernel is one over the features.
    arguments: handed to the chooser; 'column' is the score it ranks by.
    options: further options that it reads, by dotted name.
    seeded: whether the seed changes its picks.
    seeded_if: options, and the values with which the seed does so.
  """

  name: str
  chooser: str
  colour: str
  marker: str
  reads: frozenset[str] = frozenset()
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  options: tuple[str, ...] = ()
  seeded: bool = False
  seeded_if: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def column(self) -> str:
    """The score that it ranks by; '' for none."""
    return self.arguments.get('column', '')

  @property
  def needs_scoring(self) -> bool:
    """Whether the score stage must have run, whatever the pool has."""
    return bool(self.reads & {'scores', 'features', 'kernel'})

  def is_seeded(self, config: ml_collections.ConfigDict) -> bool:
    """Whether the seed changes its picks under this config."""
    return self.seeded or any(
      operator.attrgetter(option)(config) == value
      for option, value in self.seeded_if.items()
    )

  def load(self) -> Callable[..., Any]:
    """The chooser with its arguments; imports jax."""
    chooser = getattr(importlib.import_module(_CHOOSERS), self.chooser)
    return functools.partial(chooser, **self.arguments)


def _by_score(
  name: str, largest: bool, marker: str, colour: str, prompt_colour: str
) -> list[Strategy]:
  """The strategies of a score: over the continuation and over the prompt."""
  return [
    Strategy(
      name=column,
      chooser='by_score',
      colour=hue,
      marker=marker,
      reads=frozenset({'scores'}),
      arguments={'column': column, 'largest': largest},
    )
    for column, hue in ((name, colour), (f'prompt_{name}', prompt_colour))
  ]


# Colours of Okabe & Ito and of Tol's muted scheme, told apart with every common
# colour blindness; the marker tells them apart in print. Scores over the prompt
# are lighter than the same ones over the continuation.
_ROWS = [
  Strategy('random', 'at_random', '#7d828c', 'o', seeded=True),
  *_by_score('mean_entropy', True, 'X', '#882255', '#b87a99'),
  *_by_score('max_entropy', True, '<', '#aa4499', '#cc8fc2'),
  *_by_score('least_confidence', True, '>', '#117733', '#70ad84'),
  *_by_score('min_confidence', False, 'p', '#999933', '#c2c285'),
  *_by_score('mean_margin', False, 'P', '#cc79a7', '#e0afca'),
  *_by_score('min_margin', False, 's', '#009e73', '#66c5ab'),
  Strategy(
    'k_center',
    'k_center',
    '#56b4e9',
    '^',
    reads=frozenset({'features'}),
    options=('selection.k_center_first',),
    seeded_if={'selection.k_center_first': 'random'},
  ),
  Strategy(
    'facility_location',
    'facility_location',
    '#0072b2',
    'o',
    reads=frozenset({'features', 'kernel'}),
  ),
  Strategy(
    'log_determinant',
    'log_determinant',
    '#332288',
    'h',
    reads=frozenset({'features', 'kernel'}),
  ),
  Strategy(
    'task_diversity',
    'task_diversity',
    '#e69f00',
    'v',
    reads=frozenset({'tasks'}),
    arguments={'weighted': False},
    seeded=True,
  ),
  Strategy(
    'weighted_task_diversity',
    'task_diversity',
    '#d55e00',
    'D',
    reads=frozenset({'tasks', 'scores'}),
    arguments={'weighted': True},
    options=('selection.task_confidence',),
    seeded=True,
  ),
]

STRATEGIES: Mapping[str, Strategy] = {row.name: row for row in _ROWS}
RANDOM = 'random'


def rows(names: Iterable[str]) -> list[Strategy]:
  """The rows of these strategies."""
  return [STRATEGIES[name] for name in names]


def any_reads(names: Iterable[str], what: str) -> bool:
  """Whether one of these strategies reads it."""
  return any(what in row.reads for row in rows(names))
