"""Checks of the select stage, before anything is computed."""

from collections.abc import Sequence
import operator

import ml_collections
import numpy as np

from edsft_jax import errors, parts, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.strategies import registry
from edsft_jax.strategies import scores as scores_lib

_CHOICES = {
  'selection.kernel.similarity': ('rbf', 'cosine'),
  'selection.kernel.transform': ('shift', 'clip'),
  'selection.k_center_first': ('zero', 'random', 'medoid'),
  'selection.task_confidence': (
    'mean_confidence',
    'first_token_confidence',
    'min_confidence',
    'sequence_probability',
  ),
}


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects unknown strategies, impossible budgets and bad kernels.

  Raises:
    InputError: naming the option or the file.
  """
  study.check(config)
  _check_options(config)
  mesh_lib.make_mesh(**config.mesh)
  rows = registry.rows(config.selection.strategies)
  if 'score' in planned:
    _check_scoring(config, rows)
  store.require(workdir.pool, 'pool', planned)
  if any(row.needs_scoring for row in rows):
    store.require(workdir.scores, 'score', planned)
    if not store.feature_files(workdir):
      store.require(workdir.features, 'score', planned)
  if 'pool' not in planned:
    _check_pool(config, workdir, rows, scored='score' not in planned)


def _check_options(config: ml_collections.ConfigDict) -> None:
  for option, choices in _CHOICES.items():
    value = operator.attrgetter(option)(config)
    if value not in choices:
      raise errors.unknown(f'{option} {value!r}', value, choices)
  kernel = config.selection.kernel
  for name in ('width', 'gamma'):
    if not 0.0 <= kernel[name] < np.inf:
      raise errors.InputError(
        f'selection.kernel.{name} is {kernel[name]}: give a positive number, '
        'or 0.0 to leave it unset'
      )
  if kernel.width and kernel.gamma:
    raise errors.InputError(
      'selection.kernel.width and selection.kernel.gamma are both set: '
      'set one of them back to 0.0'
    )
  if not 0.0 <= config.selection.memory_limit < np.inf:
    raise errors.InputError(
      f'selection.memory_limit is {config.selection.memory_limit}: must be at '
      'least 0.0'
    )
  if config.selection.task_clusters < 0:
    raise errors.InputError(
      f'selection.task_clusters is {config.selection.task_clusters}: give a '
      'number of tasks, or 0 to derive it from the size of the pool'
    )


def _check_scoring(
  config: ml_collections.ConfigDict, rows: Sequence[registry.Strategy]
) -> None:
  """Rejects strategies that need scores which scoring will not compute."""
  c = config.scoring
  options = {row: scores_lib.needed_option(row.column) for row in rows}
  for row in rows:
    needs_prompt_scores = row.column and options[row] == 'prompt_scores'
    if needs_prompt_scores and not c.prompt_scores:
      raise errors.InputError(
        f'{row.name} needs scores of prompts, and scoring.prompt_scores is '
        'False: set it to True, or leave the strategy out'
      )
  for row in rows:
    ranks_continuations = row.column and options[row] == 'generate'
    sampled = c.confidence_prompts_per_task
    needs_more = row.reads_confidence and not sampled
    if (ranks_continuations or needs_more) and not c.generate:
      raise errors.InputError(
        f'{row.name} needs continuations, and scoring.generate is False: set '
        'it to True, or leave the strategy out (prompt_ scores need none)'
      )


def _check_pool(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  rows: Sequence[registry.Strategy],
  scored: bool,
) -> None:
  """Rejects options that do not fit the pool, and missing scores."""
  pool = store.read_prompts(workdir.pool)
  largest, fraction = max(config.study.budgets), config.study.pool_fraction
  size = parts.num_prompts(fraction, len(pool))
  if largest > size:
    raise errors.InputError(
      f'study.budgets has {largest}, which exceeds the pool: '
      f'{len(pool)} prompts'
      if fraction == 1
      else f'study.budgets has {largest}, which exceeds the part of the pool '
      f'that each seed has: {size} of {len(pool)} prompts '
      f'(study.pool_fraction is {fraction:g})'
    )
  if clusters_tasks(pool, rows):
    if scored and not store.feature_files(workdir):
      raise errors.InputError(
        'task strategies need task labels and this pool has none: name the '
        'column by pool.task_column, or run the score stage first, to find '
        'tasks by k-means on its features'
      )
    if config.selection.task_clusters > len(pool):
      raise errors.InputError(
        f'selection.task_clusters is {config.selection.task_clusters}, which '
        f'exceeds the pool: {len(pool)} prompts'
      )
  if scored and any(row.needs_scoring for row in rows):
    scores = scores_lib.read_scores(workdir, pool.ids)
    for row in rows:
      if row.column:
        scores_lib.complete(scores, pool.ids, row.column)
      elif row.reads_confidence and pool.tasks is not None:
        scores_lib.confidence(
          scores, pool.ids, pool.tasks, config.selection.task_confidence
        )


def clusters_tasks(
  pool: store.Prompts, rows: Sequence[registry.Strategy]
) -> bool:
  """Whether tasks are found by k-means: needed, but the pool has none."""
  return pool.tasks is None and any('tasks' in row.reads for row in rows)
