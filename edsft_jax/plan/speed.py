"""How long scoring and selection take: recorded, or measured on a sample."""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import TypeVar

import ml_collections
import numpy as np

from edsft_jax import models, parts, selection, store, study
from edsft_jax.plan.section import Section
from edsft_jax.reporting import account, wording
from edsft_jax.scoring import encoding, loading
from edsft_jax.strategies import choosing, derived, registry
from edsft_jax.strategies.view import View

T = TypeVar('T')
# What is done, how its seconds are known, and these.
_Time = tuple[str, str, float]

# Prompts that selection is measured on; more are extrapolated to.
_MOST_PROMPTS = 2000
# A usual width of the kernel, unless one is set.
_WIDTH = 0.1


def section(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
) -> Section:
  """Seconds of scoring and of every strategy that computes with features."""
  manifest = store.Manifest(workdir)
  measure = config.plan.sample_prompts > 0
  lines: list[str] = []
  rows: list[_Time] = []
  feature_NxD = None
  if store.feature_files(workdir):
    feature_NxD = store.read_features(workdir)
  if manifest.is_done('score'):
    rows.append(('scoring', 'recorded', manifest.stages['score'].seconds))
  elif measure:
    sample = _score_sample(config, pool)
    rows.append(('scoring', 'estimated', sample.total))
    lines.append(sample.sentence())
    feature_NxD = _like(sample.features, len(pool))
  recorded = account.seconds_to_choose(config, workdir)
  for row in registry.rows(config.selection.strategies):
    if row.name in recorded:
      rows.append((row.name, 'recorded', recorded[row.name]))
    elif measure and 'features' in row.reads and feature_NxD is not None:
      seconds, note = _selection(config, pool, row, feature_NxD)
      rows.append((row.name, 'estimated', seconds))
      lines.append(note)
  price = config.report.price_per_hour
  if not rows:
    lines.append('Not measured: set plan.sample_prompts above 0.')
  elif not price:
    lines.append('Set report.price_per_hour to see what this machine costs.')
  return Section(
    'Time of scoring and choosing, all seeds',
    lines,
    ['work', 'how known', 'time', *(['price'] if price else [])],
    [
      [
        work,
        how,
        wording.duration(seconds),
        *([f'{price * seconds / 3600:,.2f}'] if price else []),
      ]
      for work, how, seconds in rows
    ],
    num_text=2,
  )


@dataclasses.dataclass(frozen=True)
class _Sample:
  """What scoring some prompts took.

  Attributes:
    size: how many.
    num_prompts: of the pool.
    loading: seconds to load the model and compile, once.
    scoring: seconds to score them after that.
    features: [size, D].
  """

  size: int
  num_prompts: int
  loading: float
  scoring: float
  features: np.ndarray

  @property
  def total(self) -> float:
    """Seconds for the whole pool."""
    return self.loading + self.scoring * self.num_prompts / self.size

  def sentence(self) -> str:
    """How the estimate was made."""
    return (
      f'Scoring: {self.size:,} prompts of all lengths took '
      f'{wording.duration(self.scoring)} after '
      f'{wording.duration(self.loading)} to load and compile, extrapolated to '
      f'{self.num_prompts:,}. Larger batches are faster: it should take less.'
    )


def _score_sample(
  config: ml_collections.ConfigDict, pool: store.Prompts
) -> _Sample:
  """Scores some prompts twice: the first time, programs are compiled."""
  c = config.scoring
  start = time.monotonic()
  size = min(config.plan.sample_prompts, len(pool))
  lengths = [len(text) for text in pool.texts()]
  # Evenly spaced in the order of lengths, without the ends.
  ranks = ((np.arange(size) + 0.5) * len(pool) / size).astype(int)
  place_S = np.sort(np.argsort(lengths, kind='stable')[ranks])
  chosen = np.zeros(len(pool), bool)
  chosen[place_S] = True
  generate_N, _ = encoding.to_generate(c, pool.tasks, len(pool))
  path = models.resolve(config.model.path)
  prompt_format = models.load_prompt_format(path, **config.prompt)
  loaded = loading.load(
    config, path, prompt_format, pool.where(chosen.tolist()), max_rows=size
  )
  scorer = loaded.scorer_of(c.batch_tokens)
  tokens, generate_S = loaded.encoded.tokens, generate_N[place_S]
  scorer(tokens, generate_S)
  scores, warm = _timed(lambda: scorer(tokens, generate_S))
  cold = max(time.monotonic() - start - 2 * warm, 0.0)
  return _Sample(size, len(pool), cold, warm, scores.features)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
  start = time.monotonic()
  result = work()
  return result, time.monotonic() - start


def _like(feature_SxD: np.ndarray, count: int) -> np.ndarray:
  """Rows like those of a sample: each is one of them, moved a little."""
  rng = np.random.default_rng(0)
  count = min(count, _MOST_PROMPTS)
  row_NxD = feature_SxD[rng.integers(len(feature_SxD), size=count)]
  noise_NxD = rng.normal(size=row_NxD.shape) * feature_SxD.std(0)
  return (row_NxD + 0.5 * noise_NxD).astype(np.float32)


def _selection(
  config: ml_collections.ConfigDict,
  pool: store.Prompts,
  row: registry.Strategy,
  feature_NxD: np.ndarray,
) -> tuple[float, str]:
  """Seconds for all lists of a strategy, and how they were measured."""
  num_prompts = parts.num_prompts(config.study.pool_fraction, len(pool))
  size = min(num_prompts, len(feature_NxD), _MOST_PROMPTS)
  budget = max(config.study.budgets)
  lists = 1
  if study.lists_differ(config, row):
    lists = len(study.seeds(config, row.name))
  work = functools.partial(
    _choose,
    config,
    pool,
    row,
    feature_NxD[:size],
    max(1, budget * size // num_prompts),
  )
  _, cold = _timed(work)
  _, warm = _timed(work)
  note = f'{row.name}: measured with {size:,} prompts'
  if size < num_prompts:
    note += f', taken to grow with their square to {num_prompts:,}'
  if 'kernel' in row.reads and not derived.configured(config.selection.kernel):
    note += ', without the search for a kernel width'
  seconds = max(cold - warm, 0.0) + lists * warm * (num_prompts / size) ** 2
  return seconds, f'{note}; {lists} x {budget:,} picks.'


def _choose(
  config: ml_collections.ConfigDict,
  pool: store.Prompts,
  row: registry.Strategy,
  feature_NxD: np.ndarray,
  budget: int,
) -> selection.Selection:
  """Has a strategy choose from such prompts."""
  kernel = config.selection.kernel
  view = View.of(
    config,
    pool.first(len(feature_NxD)),
    features=feature_NxD,
    similarity=derived.configured(kernel) or selection.Rbf(width=_WIDTH),
  )
  return choosing.choose(row, view, budget, config.study.seeds[0])
