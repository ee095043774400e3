"""The select stage: runs strategies; pool/ and scores/ -> selections/."""

from collections.abc import Mapping, Sequence
import dataclasses
import operator
import time
from typing import Any

import ml_collections
import numpy as np
import tqdm

from edsft_jax import console, errors, parts, selection, store, study
from edsft_jax.strategies import choosing, derived, orders, registry
from edsft_jax.strategies import scores as scores_lib
from edsft_jax.strategies.checks import check, clusters_tasks
from edsft_jax.strategies.view import View

__all__ = ['check', 'run']

# What changes as the pool grows.
_GROWING = ('pool', 'scores', 'features')
_POOL_FRACTION = 'study.pool_fraction'


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Orders the pool by every strategy, up to the largest budget.

  Writes selections/NAME-seedS.jsonl, and NAME.json with the fingerprint, the
  objective and bounds. With study.pool_fraction, each seed chooses from its own
  part of the pool, by scores and features of the whole. Otherwise a strategy
  that does not depend on the seed is computed once, and its file is linked for
  the other seeds. A larger budget extends the order; the old picks stay first.

  Raises:
    InputError: a strategy's file was made from other inputs.
  """
  check(config, workdir, frozenset())
  # What reads the picks of another strategy comes after it.
  rows = sorted(registry.rows(config.selection.strategies), key=_reads_picks)
  budget = max(config.study.budgets)
  manifest = store.Manifest(workdir)
  manifest.begin('select', {})
  with manifest.timed('select'):
    pool = store.read_prompts(workdir.pool)
    inputs = _Inputs.of(workdir, pool, rows)
    rounds = store.earlier_rounds(manifest)
    found = [
      _pending(config, workdir, row, len(pool), inputs, rounds) for row in rows
    ]
    todo = [pending for pending in found if pending]
    for row, pending in zip(rows, found, strict=True):
      for seed in study.seeds(config, row.name) if not pending else ():
        orders.refresh(workdir, row.name, seed)
    if not todo:
      console.say('select', 'already done')
      return
    strategies = [pending.row for pending in todo]
    if any(map(_reads_picks, strategies)):
      strategies.append(_matched_to(config))
    split = parts.read(config, workdir, len(pool), rounds)
    parts.write(workdir, split)
    _say_small_parts(split, len(pool), budget)
    try:
      view = _view(
        config, workdir, pool, inputs, strategies, bool(rounds), split.first()
      )
    except selection.SelectionError as e:
      raise errors.InputError(f'{workdir.features}: {e}') from e
    manifest.record_versions('select')
    num_picks = (p.budget * p.num_lists(config) for p in todo)
    with console.bar('select', sum(num_picks), 'picks') as bar:
      for pending in todo:
        bar.set_postfix_str(pending.row.name)
        _select(config, workdir, pending, view, split, bar)
  manifest.finish('select', {'strategies': len(rows), 'budget': budget})
  names = ', '.join(pending.row.name for pending in todo)
  console.say(
    'select',
    f'{budget:,} of {console.count(len(pool), "prompt")} by {names} -> '
    f'{workdir.selections}',
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
    options.append(_POOL_FRACTION)
    if _reads_picks(row):
      read |= self.fingerprint(config, _matched_to(config))
    return {
      **read,
      **{option: operator.attrgetter(option)(config) for option in options},
    }


def _reads_picks(row: registry.Strategy) -> bool:
  return 'picks' in row.reads


def _matched_to(config: ml_collections.ConfigDict) -> registry.Strategy:
  return registry.STRATEGIES[config.selection.length_matched_to]


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A strategy whose orders are to be made or extended.

  Attributes:
    row: the strategy.
    fingerprint: of its inputs and options.
    budget: the largest one so far.
    num_scale_prompts: number of prompts that the scale of the kernel comes
      from: the first ones of the pool.
    settled: if the pool grew since, ids that are asked for or answered.
  """

  row: registry.Strategy
  fingerprint: dict[str, Any]
  budget: int
  num_scale_prompts: int
  settled: frozenset[str] | None = None

  def num_lists(self, config: ml_collections.ConfigDict) -> int:
    """How many orders are computed."""
    if not study.lists_differ(config, self.row):
      return 1
    return len(study.seeds(config, self.row.name))


def _pending(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  row: registry.Strategy,
  num_prompts: int,
  inputs: _Inputs,
  rounds: Sequence[store.Round],
) -> _Pending | None:
  """What is left to do for a strategy, or None if all files exist.

  Raises:
    InputError: its files were made from other inputs.
  """
  fingerprint = inputs.fingerprint(config, row)
  budget = max(config.study.budgets)
  path = workdir.selection_record(row.name)
  if not path.exists():
    return _Pending(row, fingerprint, budget, num_prompts)
  record = store.read_json(path)
  # Older workdirs did not record that every seed has the whole pool.
  known = {_POOL_FRACTION: 1.0, **record['fingerprint']}
  before = next((r for r in rounds if r.hash == known['pool']), None)
  grown = _GROWING if before else ()
  store.refuse_change(
    f'the selection {row.name} in this workdir',
    {name: value for name, value in known.items() if name not in grown},
    {name: value for name, value in fingerprint.items() if name not in grown},
    'set it back or use another --workdir',
  )
  pending = _Pending(
    row,
    fingerprint,
    max(budget, record['budget']),
    record.get('num_scale_prompts', before.prompts if before else num_prompts),
    orders.settled_ids(workdir) if before else None,
  )
  # The record may be from a command with a larger budget but other seeds.
  lengths = [
    len(study.selected_ids(workdir, row.name, seed))
    if workdir.selection(row.name, seed).exists()
    else 0
    for seed in study.seeds(config, row.name)
  ]
  return None if not before and min(lengths) >= budget else pending


def _view(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pool: store.Prompts,
  inputs: _Inputs,
  rows: Sequence[registry.Strategy],
  grown: bool,
  part: np.ndarray | None,
) -> View:
  """What the strategies read of the whole pool.

  The kernel's width is that of a part of the pool, if there are parts.
  """
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
      similarity = derived.configured(c.kernel) or selection.Rbf(
        width=derived.kernel_width(
          workdir,
          features if part is None else features[part],
          max(config.study.budgets),
          inputs.hashes['features'],
          grown,
          of='the pool' if part is None else 'the first part of the pool',
        )
      )
  return View.of(
    config,
    pool,
    tasks,
    scores_lib.read_scores(workdir, pool.ids)
    if workdir.scores.exists()
    else {},
    features,
    similarity,
  )


def _select(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  pending: _Pending,
  whole: View,
  split: parts.Parts,
  bar: tqdm.tqdm,
) -> None:
  """Writes one strategy's files; the record last, since it marks completion."""
  start = time.monotonic()
  row = pending.row
  budgets = sorted({*config.study.budgets, pending.budget})
  bounds = []
  seeds = study.seeds(config, row.name)
  for i, seed in enumerate(seeds):
    if i > 0 and not study.lists_differ(config, row):
      source = workdir.selection(row.name, seeds[0])
      orders.link(source, workdir.selection(row.name, seed))
      continue
    part, number = split.of_seed(seed), len(split.sizes) - 1
    view = choosing.of_part(whole, part, row, pending.num_scale_prompts)
    if _reads_picks(row):
      picks = choosing.picks_of(
        _matched_to(config), workdir, whole, part, number, seed
      )
      view = dataclasses.replace(view, picks=picks)
    order, chosen = _extend(workdir, pending, view, number, seed, bar)
    bounds += [
      {'seed': seed, **bound} for bound in orders.bounds(chosen, order, budgets)
    ]
  of_tasks = 'tasks' in row.reads
  store.write_json(
    workdir.selection_record(row.name),
    {
      'fingerprint': pending.fingerprint,
      'budget': pending.budget,
      'similarity': str(view.similarity) if 'kernel' in row.reads else None,
      'num_scale_prompts': pending.num_scale_prompts,
      'task_clusters': len(set(whole.tasks or ()))
      if of_tasks and whole.pool.tasks is None
      else None,
      'bounds': bounds,
      'seconds': round(time.monotonic() - start, 3),
    },
  )
  if of_tasks and view.tasks:
    _say_tasks_left_out(row.name, view.tasks, order)


def _extend(
  workdir: store.Workdir,
  pending: _Pending,
  view: View,
  number: int,
  seed: int,
  bar: tqdm.tqdm,
) -> tuple[orders.Rows, selection.Selection | None]:
  """Makes or extends the order of one seed; also returns its new picks."""
  name = pending.row.name
  extended = orders.extension(
    workdir, name, seed, pending.budget, number, pending.settled
  )
  before = bar.n
  chosen = None
  if count := extended.num_new(view.pool.ids):
    place = {prompt_id: i for i, prompt_id in enumerate(view.pool.ids)}
    initial = [place[pick['id']] for pick in extended.initial]

    def progress(picks: int, _: int) -> None:
      done = min(len(initial) + picks, pending.budget)
      bar.update(before + done - bar.n)

    chosen = choosing.choose(
      pending.row,
      dataclasses.replace(view, initial=initial, progress=progress),
      count,
      seed,
    )
  bar.update(before + pending.budget - bar.n)
  if chosen is not None and chosen.memory_use is not None:
    _say_memory(name, chosen.memory_use, view.memory_limit is None)
  order = orders.extend(view, pending.row, chosen, extended, number)
  orders.write(workdir.selection(name, seed), order, extended)
  return order, chosen


def _say_small_parts(split: parts.Parts, pool_size: int, budget: int) -> None:
  """Says if parts leave the strategies little to choose from."""
  size = parts.num_prompts(split.fraction, pool_size)
  if split.fraction < 1 and budget > size / 5:
    console.say(
      'select',
      f'each seed chooses {budget:,} from its {size:,} prompts: with more than '
      'a fifth, strategies differ less than they could; lower study.budgets or '
      'add prompts to the pool',
    )


def _say_memory(name: str, use: selection.MemoryUse, by_default: bool) -> None:
  """Says what the memory limit is, and what it cost."""
  limit = f'{name}: memory limit {use.limit / 2**30:.2f} GiB'
  if by_default:
    limit += ' (from the free memory; selection.memory_limit sets it)'
  if use.enough:
    console.say('select', f'{limit}: enough')
    return
  console.say(
    'select',
    f'{limit}: the first {console.count(use.picks, "pick")} took up to '
    f'{use.seconds:.1f} s longer than with about {use.wanted / 2**30:.2f} GiB',
  )


def _say_tasks_left_out(
  name: str, tasks: Sequence[str], order: orders.Rows
) -> None:
  picked = {pick['task'] for pick in order}
  if left := sorted(set(tasks) - picked):
    console.say(
      'select',
      f'{name}: {len(left)} tasks get no prompt at budget '
      f'{len(order)}: '
      f'{", ".join(left[:10])}{" ..." if len(left) > 10 else ""}',
    )
