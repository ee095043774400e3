"""The select stage: each strategy by name, pool and scores -> selections/.

A strategy is a row of `_CHOOSERS`: a function from what it may see to a
`selection.Selection`. To add one, write that function and name it in
study.py; see WORKSPACE.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from edsft_jax import artifacts, console, errors, selection, study
from edsft_jax import mesh as mesh_lib

# Widths that the gains curves are drawn for, in units of the pool's mean
# squared distance: from every item alone to everything alike.
WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# Curves need the shape of the decay, not the last prompt: past this many
# prompts they are drawn on an even sample with the budget cut in proportion.
CURVE_PROMPTS = 4000

# Tasks found at most in a pool without labels, unless the config says how many.
MOST_CLUSTERS = 100


@dataclasses.dataclass(frozen=True)
class View:
  """All that a strategy may look at: no answers, no held-out prompts."""

  pool: artifacts.Prompts
  tasks: Sequence[str] | None
  scores: Mapping[str, np.ndarray]
  features: np.ndarray | None
  similarity: Any
  task_confidence: str
  k_center_first: str
  memory_limit: int | None
  mesh: jax.sharding.Mesh


def _random(view: View, budget: int, seed: int) -> selection.Selection:
  return selection.random(len(view.pool), budget, seed)


def _top(
  view: View, budget: int, seed: int, *, column: str, largest: bool
) -> selection.Selection:
  values = _complete(view.scores, view.pool.ids, column)
  return selection.top(values, budget, largest=largest)


def _complete(
  scores: Mapping[str, np.ndarray], ids: Sequence[str], column: str
) -> np.ndarray:
  """A score that every prompt has.

  Raises:
    InputError: the column or some of its values are absent.
  """
  remedy = 'score with scoring.generate=True in a new --workdir'
  if column.startswith('prompt_'):
    remedy = 'score with scoring.prompt_scores=True in a new --workdir'
  if column not in scores:
    raise errors.InputError(f'scores.parquet has no {column}: {remedy}')
  values = scores[column]
  if absent := np.flatnonzero(np.isnan(values)).tolist():
    if column.startswith('prompt_'):
      remedy = 'prompts of one token have none, leave the strategy out'
    raise errors.InputError(
      f'scores.parquet has no {column} for '
      f'{console.count(len(absent), "prompt")}, first for '
      f'{ids[absent[0]]!r}: {remedy}'
    )
  return values


def _k_center(view: View, budget: int, seed: int) -> selection.Selection:
  first = {
    'zero': lambda: 0,
    'random': lambda: int(selection.random(len(view.pool), 1, seed).indices[0]),
    'medoid': lambda: _medoid(view.features),
  }[view.k_center_first]()
  return selection.k_center(view.features, budget, first=first, mesh=view.mesh)


def _medoid(features: np.ndarray) -> int:
  """The row with the least sum of squared distances: nearest to the mean."""
  mean_D = features.mean(axis=0, dtype=np.float64)
  return int(np.argmin(((features - mean_D) ** 2).sum(axis=1)))


def _facility_location(
  view: View, budget: int, seed: int
) -> selection.Selection:
  return selection.facility_location(
    view.features,
    budget,
    similarity=view.similarity,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
  )


def _log_determinant(view: View, budget: int, seed: int) -> selection.Selection:
  return selection.log_determinant(
    view.features,
    budget,
    similarity=view.similarity,
    mesh=view.mesh,
    memory_limit=view.memory_limit,
  )


def _task_diversity(
  view: View, budget: int, seed: int, *, weighted: bool
) -> selection.Selection:
  return selection.task_diversity(
    view.tasks,
    budget,
    confidence=_confidence(
      view.scores, view.pool.ids, view.tasks, view.task_confidence
    )
    if weighted
    else None,
    seed=seed,
  )


def _confidence(
  scores: Mapping[str, np.ndarray],
  ids: Sequence[str],
  tasks: Sequence[str],
  column: str,
) -> np.ndarray:
  """Each prompt's confidence: its task's, where only a sample was generated.

  Raises:
    InputError: a task has none.
  """
  if column == 'sequence_probability' and 'log_probability' in scores:
    # Of long continuations it is below what float32 holds, at times float64.
    probability = np.exp(scores['log_probability'].astype(np.float64))
    tiny = np.finfo(np.float64).tiny
    scores = {**scores, column: np.maximum(probability, tiny)}
  if _SAMPLE not in scores or column not in scores:
    return _complete(scores, ids, column)
  values = scores[column].astype(np.float64)
  samples: dict[str, list[float]] = {task: [] for task in tasks}
  for i in np.flatnonzero(scores[_SAMPLE] & np.isfinite(values)):
    samples[tasks[i]].append(values[i])
  if empty := [task for task, sample in samples.items() if not sample]:
    raise errors.InputError(
      f'scores.parquet has no {column} for any prompt of task {empty[0]!r}: '
      'score with scoring.generate=True in a new --workdir'
    )
  means = {task: np.mean(sample) for task, sample in samples.items()}
  return np.array([means[task] for task in tasks])


# The score column that tells which prompts a task's confidence comes from.
_SAMPLE = 'confidence_sample'

_CHOOSERS: dict[str, Callable[[View, int, int], selection.Selection]] = {
  'random': _random,
  **{
    name: functools.partial(_top, column=name, largest=largest)
    for name, largest in study.SCORE_STRATEGIES.items()
  },
  'k_center': _k_center,
  'facility_location': _facility_location,
  'log_determinant': _log_determinant,
  'task_diversity': functools.partial(_task_diversity, weighted=False),
  'weighted_task_diversity': functools.partial(_task_diversity, weighted=True),
}


def is_random(strategy: str, k_center_first: str = 'zero') -> bool:
  """Whether the seed changes what the strategy picks."""
  return strategy in study.RANDOM_STRATEGIES or (
    strategy == 'k_center' and k_center_first == 'random'
  )


def check(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses unknown strategies, impossible budgets and bad kernels.

  Raises:
    InputError: naming the option or the file.
  """
  study.check(config)
  mesh_lib.make_mesh(**config.mesh)
  kernel = config.selection.kernel
  _check_choice(
    'selection.kernel.similarity', kernel.similarity, ('rbf', 'cosine')
  )
  _check_choice('selection.kernel.transform', kernel.transform, _TRANSFORMS)
  _check_choice(
    'selection.k_center_first', config.selection.k_center_first, _FIRSTS
  )
  _check_choice(
    'selection.task_confidence',
    config.selection.task_confidence,
    (
      'mean_confidence',
      'first_token_confidence',
      'min_confidence',
      'sequence_probability',
    ),
  )
  for name in ('width', 'gamma'):
    if not 0.0 <= kernel[name] < np.inf:
      raise errors.InputError(
        f'selection.kernel.{name} is {kernel[name]}: a positive number, or '
        '0.0 to leave it unset'
      )
  if kernel.width and kernel.gamma:
    raise errors.InputError(
      'selection.kernel.width and selection.kernel.gamma are both set: '
      'set one of them back to 0.0'
    )
  if not 0.0 <= config.selection.memory_limit < np.inf:
    raise errors.InputError(
      f'selection.memory_limit is {config.selection.memory_limit}: GiB of at '
      'least 0.0'
    )
  if 'score' in planned:
    _check_scored(config)
  clusters = config.selection.task_clusters
  if clusters < 0:
    raise errors.InputError(
      f'selection.task_clusters is {clusters}: a number of tasks, or 0 for as '
      'many as the pool suggests'
    )
  for stage, path, there in (
    ('pool', workdir.pool, workdir.pool.exists()),
    ('score', workdir.scores, workdir.scores.exists()),
    ('score', workdir.features, artifacts.feature_files(workdir)),
  ):
    needed = stage == 'pool' or _needs_scores(config.selection.strategies)
    if needed and stage not in planned and not there:
      raise errors.InputError(
        f'{path} is not there: run the {stage} stage first'
      )
  if 'pool' not in planned:
    pool = artifacts.read_prompts(workdir.pool)
    largest = max(config.study.budgets)
    if largest > len(pool):
      raise errors.InputError(
        f'study.budgets has {largest}, which exceeds the pool: '
        f'{len(pool)} prompts'
      )
    if _clusters_tasks(pool, config.selection.strategies):
      if 'score' not in planned and not artifacts.feature_files(workdir):
        raise errors.InputError(
          'task strategies need task labels and this pool has none: name the '
          'column by pool.task_column, or run the score stage first, whose '
          'features give tasks by k-means'
        )
      if clusters > len(pool):
        raise errors.InputError(
          f'selection.task_clusters is {clusters}, which exceeds the pool: '
          f'{len(pool)} prompts'
        )
    scored = _needs_scores(config.selection.strategies)
    if scored and 'score' not in planned:
      _check_scores(config, _scores(workdir, pool.ids), pool)


def _check_scored(config: ml_collections.ConfigDict) -> None:
  """Refuses strategies that need scores which will not be there."""
  if not config.scoring.prompt_scores:
    for name in config.selection.strategies:
      if name.startswith('prompt_'):
        raise errors.InputError(
          f'{name} needs scores of prompts, and scoring.prompt_scores is '
          'False: set it to True, or leave the strategy out'
        )
  if config.scoring.generate:
    return
  needing = set(study.CONTINUATION_SCORES)
  if not config.scoring.confidence_prompts_per_task:
    needing.add('weighted_task_diversity')
  for name in config.selection.strategies:
    if name in needing:
      raise errors.InputError(
        f'{name} needs continuations, and scoring.generate is False: set it to '
        'True, or leave the strategy out (prompt_ scores need none)'
      )


def _check_scores(
  config: ml_collections.ConfigDict,
  scores: Mapping[str, np.ndarray],
  pool: artifacts.Prompts,
) -> None:
  """Refuses strategies whose scores were not computed."""
  for name in config.selection.strategies:
    if name in study.SCORE_STRATEGIES:
      _complete(scores, pool.ids, name)
    elif name == 'weighted_task_diversity' and pool.tasks is not None:
      column = config.selection.task_confidence
      _confidence(scores, pool.ids, pool.tasks, column)


def _scores(
  workdir: artifacts.Workdir, ids: Sequence[str]
) -> dict[str, np.ndarray]:
  """Reads scores.parquet, null as NaN."""
  table = artifacts.read_parquet(workdir.scores)
  if table['id'].to_pylist() != list(ids):
    raise errors.InputError(
      f'{workdir.scores} and {workdir.pool} list other prompts: score this '
      'pool again in a new --workdir'
    )
  return {
    column: table[column].to_numpy()
    for column in table.column_names
    if column not in ('id', 'generation')
  }


_TRANSFORMS = ('shift', 'clip')
_FIRSTS = ('zero', 'random', 'medoid')


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise errors.InputError(
      f'{option} {value!r} is unknown: one of {", ".join(choices)}'
    )


def _needs_scores(strategies: tuple[str, ...]) -> bool:
  return any(s not in ('random', 'task_diversity') for s in strategies)


def _clusters_tasks(pool: artifacts.Prompts, strategies: Iterable[str]) -> bool:
  """Whether tasks are found by k-means: a strategy needs them, and none are."""
  return pool.tasks is None and any(
    name in study.TASK_STRATEGIES for name in strategies
  )


def run(config: ml_collections.ConfigDict, workdir: artifacts.Workdir) -> None:
  """Orders the pool by every strategy, up to the largest budget.

  Writes selections/NAME-seedS.jsonl and NAME.json beside it (what it was made
  from, objective and bounds). A strategy without randomness is computed once
  and linked to each seed's file. A larger budget extends an order, whose old
  picks stay the first ones.

  Raises:
    InputError: a strategy's file was made from other inputs.
  """
  check(config, workdir, frozenset())
  c = config.selection
  budget = max(config.study.budgets)
  manifest = artifacts.Manifest(workdir)
  manifest.begin('select', {})
  with manifest.timed('select'):
    pool = artifacts.read_prompts(workdir.pool)
    clustered = _clusters_tasks(pool, c.strategies)
    scored = _needs_scores(c.strategies)
    hashes = {'pool': artifacts.hash_file(workdir.pool)}
    if scored:
      hashes['scores'] = artifacts.hash_file(workdir.scores)
    if scored or clustered:
      hashes['features'] = artifacts.hash_features(workdir)
    todo = {
      name: record
      for name in c.strategies
      if (record := _pending(config, workdir, name, budget, hashes, clustered))
    }
    if not todo:
      console.say('select', 'done before')
      return
    view = _view(config, workdir, pool, budget, hashes, todo)
    for name in console.bar(
      'select', len(todo), 'strategies', iterable=list(todo)
    ):
      _select(
        workdir,
        name,
        todo[name],
        view,
        config.study.budgets,
        config.study.seeds,
      )
  manifest.finish('select', {'strategies': len(c.strategies), 'budget': budget})
  console.say(
    'select',
    f'{budget:,} of {console.count(len(view.pool), "prompt")} by '
    f'{", ".join(todo)} -> {workdir.selections}',
  )


def _fingerprint(
  config: ml_collections.ConfigDict,
  name: str,
  hashes: Mapping[str, str],
  clustered: bool,
) -> dict[str, Any]:
  """Only what this strategy reads."""
  kernel = config.selection.kernel
  read = {'pool': hashes['pool']}
  if name in study.SCORE_STRATEGIES:
    read['scores'] = hashes['scores']
  if name in study.FEATURE_STRATEGIES:
    read['features'] = hashes['features']
  if name in study.KERNEL_STRATEGIES:
    read['selection.kernel.similarity'] = kernel.similarity
    if kernel.similarity == 'cosine':
      read['selection.kernel.transform'] = kernel.transform
    else:
      read['selection.kernel.width'] = kernel.width
      read['selection.kernel.gamma'] = kernel.gamma
  if name == 'k_center':
    read['selection.k_center_first'] = config.selection.k_center_first
  if name == 'weighted_task_diversity':
    read['scores'] = hashes['scores']
    read['selection.task_confidence'] = config.selection.task_confidence
  if clustered and name in study.TASK_STRATEGIES:
    read['features'] = hashes['features']
    read['selection.task_clusters'] = config.selection.task_clusters
  return read


def _pending(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  name: str,
  budget: int,
  hashes: Mapping[str, str],
  clustered: bool,
) -> dict[str, Any] | None:
  """The record to complete, or None when all the files are there."""
  fingerprint = _fingerprint(config, name, hashes, clustered)
  path = workdir.selection_record(name)
  record = {'fingerprint': fingerprint, 'budget': 0}
  if path.exists():
    record = artifacts.read_json(path)
    artifacts.refuse_change(
      f'the selection {name} in this workdir',
      record['fingerprint'],
      fingerprint,
      'set it back or use another --workdir',
    )
  # A budget may have grown while the command named other seeds.
  lengths = [
    len(study.selected_ids(workdir, name, seed))
    if workdir.selection(name, seed).exists()
    else 0
    for seed in config.study.seeds
  ]
  return None if min(lengths) >= budget else record


def _view(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  pool: artifacts.Prompts,
  budget: int,
  hashes: Mapping[str, str],
  names: Mapping[str, Any],
) -> View:
  c = config.selection
  scores = _scores(workdir, pool.ids) if workdir.scores.exists() else {}
  clustered = _clusters_tasks(pool, names)
  features = None
  if clustered or any(name in study.FEATURE_STRATEGIES for name in names):
    features = artifacts.read_features(workdir)
  similarity = None
  if c.kernel.similarity == 'cosine':
    similarity = selection.Cosine(transform=c.kernel.transform)
  elif c.kernel.gamma:
    similarity = selection.Rbf(gamma=c.kernel.gamma)
  elif c.kernel.width:
    similarity = selection.Rbf(width=c.kernel.width)
  elif names.keys() & set(study.KERNEL_STRATEGIES):
    similarity = selection.Rbf(
      width=_suggested_width(workdir, features, budget, hashes['features'])
    )
  mesh = mesh_lib.model_mesh(**config.mesh)
  if mesh.is_multi_process:
    mesh = mesh_lib.make_mesh(devices=jax.local_devices())
  return View(
    pool=pool,
    tasks=_found_tasks(features, c.task_clusters) if clustered else pool.tasks,
    scores=scores,
    features=features,
    similarity=similarity,
    task_confidence=c.task_confidence,
    k_center_first=c.k_center_first,
    memory_limit=int(c.memory_limit * 2**30) or None,
    mesh=mesh,
  )


def _found_tasks(features: np.ndarray, num_clusters: int) -> list[str]:
  """Tasks by k-means, named in the order in which the pool shows them."""
  suggested = min(max(round(np.sqrt(len(features) / 2)), 1), MOST_CLUSTERS)
  labels = selection.cluster_tasks(features, num_clusters or suggested)
  console.say(
    'select',
    'the pool has no task labels: '
    f'{console.count(labels.max() + 1, "task")} by k-means on the features',
  )
  return [f'cluster {label}' for label in labels]


def _suggested_width(
  workdir: artifacts.Workdir,
  features: np.ndarray,
  budget: int,
  features_hash: str,
) -> float:
  """Draws the gains curves once a workdir and keeps the width they suggest.

  A larger budget later keeps the first width: another one would give another
  order, and prompts already bought would drop out of it.
  """
  if workdir.gains_curves.exists():
    known = artifacts.read_json(workdir.gains_curves)
    if known['features'] == features_hash:
      return known['suggested']
  n = len(features)
  sample = np.unique(
    np.linspace(0, n - 1, min(n, CURVE_PROMPTS)).astype(np.int64)
  )
  sample_budget = max(1, budget * len(sample) // n)
  result = selection.gains_curves(features[sample], sample_budget, WIDTHS)
  artifacts.write_json(
    workdir.gains_curves,
    {
      'features': features_hash,
      'num_prompts': len(sample),
      'budget': sample_budget,
      'widths': [float(w) for w in WIDTHS],
      'curves': np.asarray(result.curves, np.float64).tolist(),
      'degenerate': [flag or None for flag in result.degenerate],
      'suggested': float(result.suggested),
      'width': float(result.suggested),
    },
  )
  console.say(
    'select',
    f'kernel width {result.suggested:g}, suggested by the gains curves of '
    f'{len(sample):,} prompts',
  )
  return float(result.suggested)


def _select(
  workdir: artifacts.Workdir,
  name: str,
  record: dict[str, Any],
  view: View,
  budgets: tuple[int, ...],
  seeds: tuple[int, ...],
) -> None:
  """Writes one strategy's files; the record last, as the mark of done."""
  start = time.monotonic()
  budget = max(*budgets, record['budget'])
  random = is_random(name, view.k_center_first)
  chosen = None
  for seed in seeds:
    path = workdir.selection(name, seed)
    if chosen is None or random:
      try:
        chosen = _CHOOSERS[name](view, budget, seed)
      except ValueError as e:
        raise errors.InputError(f'strategy {name}: {e}') from e
      rows = _rows(view, name, chosen)
      _refuse_other_picks(path, rows)
      artifacts.write_jsonl(path, rows)
      first = path
    else:
      _link(first, path)
  artifacts.write_json(
    workdir.selection_record(name),
    {
      'fingerprint': record['fingerprint'],
      'budget': budget,
      'similarity': str(view.similarity)
      if name in study.KERNEL_STRATEGIES
      else None,
      'task_clusters': len(set(view.tasks))
      if name in study.TASK_STRATEGIES and view.pool.tasks is None
      else None,
      'bounds': _bounds(chosen, sorted({*budgets, budget})),
      'seconds': round(time.monotonic() - start, 3),
    },
  )
  if name in study.TASK_STRATEGIES:
    picked = {view.tasks[i] for i in chosen.indices}
    if left := sorted(set(view.tasks) - picked):
      console.say(
        'select',
        f'{name}: {len(left)} tasks get no prompt at budget {budget}: '
        f'{", ".join(left[:10])}{" ..." if len(left) > 10 else ""}',
      )


def _bounds(
  chosen: selection.Selection, budgets: list[int]
) -> list[dict[str, Any]]:
  """What the first picks reach, and what no set of so many can exceed."""
  if chosen.upper_bound is None:
    return []
  return [
    {
      'budget': m,
      'objective': float(chosen.gains[:m].sum()),
      'upper_bound': chosen.upper_bound_at(m),
    }
    for m in budgets
  ]


def _number(x: float) -> float | None:
  """JSON has no NaN."""
  return float(x) if np.isfinite(x) else None


def _rows(
  view: View, name: str, chosen: selection.Selection
) -> list[dict[str, Any]]:
  scores = view.scores[name] if name in study.SCORE_STRATEGIES else None
  tasks = view.tasks if name in study.TASK_STRATEGIES else view.pool.tasks
  return [
    {
      'rank': rank,
      'id': view.pool.ids[i],
      'gain': _number(chosen.gains[rank]),
      'score': None if scores is None else _number(scores[i]),
      'task': tasks[i] if tasks else None,
    }
    for rank, i in enumerate(chosen.indices)
  ]


def _refuse_other_picks(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """An order may be extended, never rewritten: its answers may be bought."""
  if path.exists():
    old = [row['id'] for row in artifacts.read_jsonl(path)]
    if old != [row['id'] for row in rows[: len(old)]]:
      raise errors.InputError(
        f'{path} holds other picks than its inputs give now: keep it and use '
        'another --workdir, or remove it'
      )


def _link(source: pathlib.Path, path: pathlib.Path) -> None:
  """The same file under a second name, where the file system can."""
  with artifacts.replacing(path) as partial:
    try:
      os.link(source, partial)
    except OSError:
      partial.write_bytes(source.read_bytes())
