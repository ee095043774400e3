"""Checks files, selections, evaluations and the report of a workdir.

Every file is compared with its hash in manifest.json, every selection is made
again from scores and features, every mean of an evaluation from its items, and
every number of the report from these. Nothing is written.
"""

from collections.abc import Callable, Iterator
import contextlib
import math
import pathlib
import shutil
import tempfile

import ml_collections

from edsft_jax import console, errors, store, study

_NAME = 'verify'


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Requires a workdir in which some stage has been run.

  Raises:
    InputError: there is none.
  """
  store.require(workdir.manifest, 'pool', frozenset())


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Prints a line for everything that differs.

  Args:
    config: ignored: the study is the one in the workdir's config.json.
    workdir: the study's folder.

  Raises:
    InputError: something differs.
  """
  config = study.read_config(workdir)
  parts: dict[str, Callable[[], list[str]]] = {
    'files': lambda: store.checksum_differences(workdir),
    'selections': lambda: _selections(config, workdir),
    'evaluations': lambda: _evaluations(workdir),
    'report': lambda: _report(config, workdir),
  }
  found = []
  for name, differences in parts.items():
    try:
      lines = differences()
    except errors.InputError as error:
      lines = [str(error)]
    for line in lines:
      console.say(_NAME, f'differs: {line}')
    if not lines:
      console.say(_NAME, f'{name}: as recorded')
    found += lines
  if unknown := store.unknown_files(workdir):
    console.say(
      _NAME,
      f'{console.count(len(unknown), "file")} not made by a finished command: '
      f'{", ".join(unknown[:5])}{" ..." if len(unknown) > 5 else ""}',
    )
  if found:
    raise errors.InputError(
      f'{workdir.root} does not match its records: '
      f'{console.count(len(found), "difference")}, listed above; if a command '
      'was interrupted, run it again first'
    )


@contextlib.contextmanager
def _copy(workdir: store.Workdir) -> Iterator[store.Workdir]:
  """A temporary workdir with the inputs of selections, but without any."""
  with tempfile.TemporaryDirectory() as folder:
    copy = store.Workdir(pathlib.Path(folder))
    for name in ('pool', 'scores'):
      if (workdir.root / name).exists():
        (copy.root / name).symlink_to((workdir.root / name).resolve())
    for path in (
      workdir.manifest,
      workdir.parts,
      workdir.gains_curves,
      workdir.rejected,
    ):
      if path.exists():
        target = copy.root / path.relative_to(workdir.root)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    yield copy


def _selections(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """Selections that scores and features do not give."""
  from edsft_jax.strategies import stage

  places = [
    (strategy, seed)
    for strategy in config.selection.strategies
    for seed in study.seeds(config, strategy)
    if workdir.selection(strategy, seed).exists()
  ]
  if not places:
    return []
  if store.earlier_rounds(store.Manifest(workdir)):
    console.say(
      _NAME,
      'selections are not checked: prompts were appended to the pool, and '
      'selections depend on what had been answered before',
    )
    return []
  found = []
  with _copy(workdir) as copy:
    stage.run(config, copy)
    for place in places:
      path = workdir.selection(*place)
      old, new = (
        [row['id'] for row in store.read_jsonl(p)]
        for p in (path, copy.selection(*place))
      )
      # An order may be longer than the present budgets need.
      for rank, (was, would) in enumerate(zip(old, new, strict=False)):
        if was != would:
          found.append(f'{path} has {was!r} at rank {rank}, not {would!r}')
          break
      else:
        if len(old) < len(new):
          found.append(f'{path} has {len(old)} picks, not {len(new)}')
  return found


def _evaluations(workdir: store.Workdir) -> list[str]:
  """Means in eval.json that the items do not give."""
  from edsft_jax.evaluation import metrics
  from edsft_jax.evaluation.tasks import SUFFIX, TASKS

  found = []
  for path in sorted(workdir.runs.glob('*/evaluations/*/eval.json')):
    contents = store.read_evaluation(path)
    rows = store.read_jsonl(path.with_name('items.jsonl'))
    task = TASKS.get(contents['task'].removesuffix(SUFFIX))
    if task is None:
      continue
    described = task.metrics
    expected = {('metrics', ''): metrics.aggregate(rows, described)}
    shown = {('metrics', ''): contents['metrics']}
    for column in ('task', 'category'):
      name = f'by_{column}'
      shown |= {(name, g): v for g, v in contents.get(name, {}).items()}
      expected |= {
        (name, group): metrics.aggregate(some, described)
        for group, some in metrics.group_by(rows, column).items()
      }
    if shown.keys() != expected.keys():
      found.append(f'{path} has other groups than its items')
      continue
    found += [
      f'{path} has {key} {shown[place][name][key]} of {name}'
      f'{f" in {place[1]!r}" if place[1] else ""}, its items give {value}'
      for place, means in expected.items()
      for name, mean in means.items()
      for key, value in mean.items()
      # Older evaluations have fewer statistics.
      if key in shown[place][name]
      and not _equal(value, shown[place][name][key])
    ]
  return found


def _equal(value: float | None, other: float | None) -> bool:
  if value is None or other is None:
    return value is other
  return math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12)


def _report(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """Tables of the report, and its page, that are not what its inputs give."""
  from edsft_jax import reporting

  return reporting.differences(config, workdir)
