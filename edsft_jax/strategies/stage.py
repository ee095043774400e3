"""The select stage: runs strategies; pool/ and scores/ -> selections/."""

from collections.abc import Mapping, Sequence
import dataclasses
import operator
import os
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from edsft_jax import console, errors, selection, store, study
from edsft_jax import mesh as mesh_lib
from edsft_jax.strategies import derived, registry
from edsft_jax.strategies import scores as scores_lib
from edsft_jax.strategies.checks import check, clusters_tasks
from edsft_jax.strategies.view import View

__all__ = ['check', 'run']


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Orders the pool by every strategy, up to the largest budget.

  Writes selections/NAME-seedS.jsonl, and NAME.json with the fingerprint, the
  objective and bounds. A strategy that does not depend on the seed is computed
  once, and its file is linked for the other seeds. A larger budget extends the
  order; the old picks stay first.

  Raises:
    InputError: a strategy's file was made from other inputs.
  """
  check(config, workdir, frozenset())
  rows = registry.rows(config.selection.strategies)
  budget = max(config.study.budgets)
  manifest = store.Manifest(workdir)
  manifest.begin('select', {})
  with manifest.timed('select'):
    pool = store.read_prompts(workdir.pool)
    inputs = _Inputs.of(workdir, pool, rows)
    todo = {
      row: record
      for row in rows
      if (record := _pending(config, workdir, row, budget, inputs))
    }
    if not todo:
      console.say('select', 'already done')
      return
    try:
      view = _view(config, workdir, pool, budget, inputs, list(todo))
    except selection.SelectionError as e:
      raise errors.InputError(f'{workdir.features}: {e}') from e
    num_picks = sum(
      max(budget, record['budget'])
      * (len(config.study.seeds) if row.is_seeded(config) else 1)
      for row, record in todo.items()
    )
    with console.bar('select', num_picks, 'picks') as bar:
      for row in todo:
        bar.set_postfix_str(row.name)
        _select(config, workdir, row, todo[row], view, bar)
  manifest.finish('select', {'strategies': len(rows), 'budget': budget})
  console.say(
    'select',
    f'{budget:,} of {console.count(len(view.pool), "prompt")} by '
    f'{", ".join(row.name for row in todo)} -> {workdir.selections}',
  )


@dataclasses.dataclass(frozen=True)
class _Inputs:
  """Hashes of the strategies' inputs, and whether tasks are clusters."""

  hashes: Mapping[str, str]
  clustered: bool

  @classmethod
  def of(
    cls,
    workdir: store.Workdir,
    pool: store.Prompts,
    rows: Sequence[registry.Strategy],
  ) -> '_Inputs':
    clustered = clusters_tasks(pool, rows)
    scored = any(row.needs_scoring for row in rows)
    hashes = {'pool': store.hash_file(workdir.pool)}
    if scored:
      hashes['scores'] = store.hash_file(workdir.scores)
    if scored or clustered:
      hashes['features'] = store.hash_features(workdir)
    return cls(hashes, clustered)

  def fingerprint(
    self, config: ml_collections.ConfigDict, row: registry.Strategy
  ) -> dict[str, Any]:
    """The inputs and options that this strategy reads."""
    read = {'pool': self.hashes['pool']}
    options = list(row.options)
    for part in ('scores', 'features'):
      if part in row.reads:
        read[part] = self.hashes[part]
    if 'kernel' in row.reads:
      similarity = config.selection.kernel.similarity
      shape = ('transform',) if similarity == 'cosine' else ('width', 'gamma')
      options += [f'selection.kernel.{n}' for n in ('similarity', *shape)]
    if self.clustered and 'tasks' in row.reads:
      read['features'] = self.hashes['features']
      options.append('selection.task_clusters')
    return {
      **read,
      **{option: operator.attrgetter(option)(config) for option in options},
    }


def _pending(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  row: registry.Strategy,
  budget: int,
  inputs: _Inputs,
) -> dict[str, Any] | None:
  """The record to complete, or None if all files exist."""
  fingerprint = inputs.fingerprint(config, row)
  path = workdir.selection_record(row.name)
  record = {'fingerprint': fingerprint, 'budget': 0}
  if path.exists():
    record = store.read_json(path)
    store.refuse_change(
      f'the selection {row.name} in this workdir',
      record['fingerprint'],
      fingerprint,
      'set it back or use another --workdir',
    )
  # The record may be from a command with a larger budget but other seeds.
  lengths = [
    len(study.selected_ids(workdir, row.name, seed))
    if workdir.selection(row.name, seed).exists()
    else 0
    for seed in config.study.seeds
  ]
  return None if min(lengths) >= budget else record


def _view(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  budget: int,
  inputs: _Inputs,
  rows: Sequence[registry.Strategy],
) -> View:
  c = config.selection
  clustered = clusters_tasks(pool, rows)
  reads = frozenset().union(*(row.reads for row in rows))
  features = similarity = None
  tasks = pool.tasks
  if clustered or 'features' in reads:
    features = store.read_features(workdir)
    if clustered:
      tasks = derived.tasks(features, c.task_clusters)
    if 'kernel' in reads:
      similarity = _similarity(c.kernel) or selection.Rbf(
        width=derived.kernel_width(
          workdir, features, budget, inputs.hashes['features']
        )
      )
  mesh = mesh_lib.model_mesh(**config.mesh)
  if mesh.is_multi_process:
    mesh = mesh_lib.make_mesh(devices=jax.local_devices())
  return View(
    pool=pool,
    tasks=tasks,
    scores=scores_lib.read_scores(workdir, pool.ids)
    if workdir.scores.exists()
    else {},
    features=features,
    similarity=similarity,
    task_confidence=c.task_confidence,
    k_center_first=c.k_center_first,
    memory_limit=int(c.memory_limit * 2**30) or None,
    mesh=mesh,
  )


def _similarity(
  kernel: ml_collections.ConfigDict,
) -> selection.Similarity | None:
  """The kernel of the config, or None if its width is still to be chosen."""
  if kernel.similarity == 'cosine':
    return selection.Cosine(transform=kernel.transform)
  if kernel.gamma:
    return selection.Rbf(gamma=kernel.gamma)
  return selection.Rbf(width=kernel.width) if kernel.width else None


def _select(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  row: registry.Strategy,
  record: dict[str, Any],
  view: View,
  bar: tqdm.tqdm,
) -> None:
  """Writes one strategy's files; the record last, since it marks completion."""
  start = time.monotonic()
  budgets = config.study.budgets
  budget = max(*budgets, record['budget'])

  first, *others = config.study.seeds
  chosen = _choose(workdir, row, view, budget, first, bar)
  for seed in others:
    if row.is_seeded(config):
      chosen = _choose(workdir, row, view, budget, seed, bar)
    else:
      source = workdir.selection(row.name, first)
      _link(source, workdir.selection(row.name, seed))
  of_tasks = 'tasks' in row.reads
  store.write_json(
    workdir.selection_record(row.name),
    {
      'fingerprint': record['fingerprint'],
      'budget': budget,
      'similarity': str(view.similarity) if 'kernel' in row.reads else None,
      'task_clusters': len(set(view.tasks or ()))
      if of_tasks and view.pool.tasks is None
      else None,
      'bounds': _bounds(chosen, sorted({*budgets, budget})),
      'seconds': round(time.monotonic() - start, 3),
    },
  )
  if of_tasks and view.tasks:
    _say_tasks_left_out(row.name, view.tasks, chosen)


def _choose(
  workdir: store.Workdir,
  row: registry.Strategy,
  view: View,
  budget: int,
  seed: int,
  bar: tqdm.tqdm,
) -> selection.Selection:
  """Chooses prompts for one seed and writes the picks."""
  before = bar.n

  def progress(picks: int, _: int) -> None:
    bar.update(before + picks - bar.n)

  try:
    chosen = row.choose(
      dataclasses.replace(view, progress=progress), budget, seed
    )
    progress(budget, budget)
  except selection.SelectionError as e:
    raise errors.InputError(f'strategy {row.name}: {e}') from e
  distinct = set(chosen.indices.tolist())
  if not len(distinct) == len(chosen.indices) == budget or not distinct <= set(
    range(len(view.pool))
  ):
    raise RuntimeError(
      f'strategy {row.name} chose {len(distinct)} different prompts in '
      f'{len(chosen.indices)} picks instead of {budget}'
    )
  path = workdir.selection(row.name, seed)
  picks = _picks(view, row, chosen)
  _refuse_other_picks(path, picks)
  store.write_jsonl(path, picks)
  return chosen


def _say_tasks_left_out(
  name: str, tasks: Sequence[str], chosen: selection.Selection
) -> None:
  picked = {tasks[i] for i in chosen.indices}
  if left := sorted(set(tasks) - picked):
    console.say(
      'select',
      f'{name}: {len(left)} tasks get no prompt at budget '
      f'{len(chosen.indices)}: '
      f'{", ".join(left[:10])}{" ..." if len(left) > 10 else ""}',
    )


def _bounds(
  chosen: selection.Selection, budgets: list[int]
) -> list[dict[str, Any]]:
  """Objective at each budget, and the upper bound for sets of that size."""
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
  """The number, or None if it is not finite: JSON has no NaN."""
  return float(x) if np.isfinite(x) else None


def _picks(
  view: View, row: registry.Strategy, chosen: selection.Selection
) -> list[dict[str, Any]]:
  scores = view.scores[row.column] if row.column else None
  tasks = view.tasks if 'tasks' in row.reads else view.pool.tasks
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


def _refuse_other_picks(
  path: pathlib.Path, picks: list[dict[str, Any]]
) -> None:
  """An order may be extended, but not changed: answers may be bought."""
  if path.exists():
    old = [pick['id'] for pick in store.read_jsonl(path)]
    if old != [pick['id'] for pick in picks[: len(old)]]:
      raise errors.InputError(
        f'{path} has picks that differ from what its inputs give now: keep it '
        'and use another --workdir, or remove it'
      )


def _link(source: pathlib.Path, path: pathlib.Path) -> None:
  """Hard-links a file, or copies it if the file system cannot link."""
  with store.replacing(path) as partial:
    try:
      os.link(source, partial)
    except OSError:
      partial.write_bytes(source.read_bytes())
