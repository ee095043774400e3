"""The report stage: evaluations and selections -> report/."""

import pathlib
import re
from typing import Any

import ml_collections

from edsft_jax import console, errors, store
from edsft_jax.reporting import results, tables
from edsft_jax.reporting.terminal import summary

STAGE = 'report'


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad report options, and a study with nothing to report on.

  Raises:
    InputError: naming the option, or the stage to run first.
  """
  if not 0.0 < config.report.confidence < 1.0:
    raise errors.InputError(
      f'report.confidence is {config.report.confidence}: give a number between '
      '0 and 1, such as 0.95'
    )
  errors.refuse_below(
    'report.price_per_hour', config.report.price_per_hour, 0.0
  )
  store.require(workdir.pool, 'pool', planned)
  if 'evaluate' not in planned:
    found = results.read_results(config, workdir)
    if not found.evaluations:
      raise errors.InputError(
        f'{workdir.runs} has no eval.json for this study: '
        'run the evaluate stage first'
      )
    results.find_metric(config.report.metric, found.metrics)


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes report/index.html and the PNG and csv of every plot next to it.

  The page is only made again if something that it shows has changed, according
  to the hashes in report/inputs.json.

  Raises:
    InputError: as in check; or a file is damaged.
  """
  check(config, workdir, frozenset())
  folder = workdir.report.parent
  manifest = store.Manifest(workdir)
  inputs = _inputs(config, workdir, manifest)
  record = folder / 'inputs.json'
  before = store.read_json(record) if record.exists() else {}
  if before.get('inputs') == inputs and all(
    (folder / name).exists() for name in before['files']
  ):
    console.say(STAGE, f'{workdir.report} is up to date')
    print(summary(config, workdir))
    return
  with manifest.timed(STAGE):
    from edsft_jax.reporting import page

    found = results.read_results(config, workdir)
    report = page.make(config, workdir, manifest, found)
    files = []
    for exhibit in report.exhibits:
      _write_bytes(folder / f'{exhibit.name}.png', exhibit.png)
      _write_csv(folder / f'{exhibit.name}.csv', exhibit.columns, exhibit.rows)
      files += [f'{exhibit.name}.png', f'{exhibit.name}.csv']
    for name, table in report.tables.items():
      _write_csv(folder / name, *table)
    store.write_text(workdir.report, report.html)
    files += [*report.tables, workdir.report.name]
    # Removes plots that are no longer part of the study.
    for name in before.get('files', []):
      if name not in files:
        (folder / name).unlink(missing_ok=True)
    store.write_json(record, {'inputs': inputs, 'files': files})
  manifest.finish(
    STAGE,
    {
      'evaluations': len(found.evaluations),
      'absent': len(found.absent),
      'plots': len(report.exhibits),
    },
  )
  for line in results.absent_lines(found.absent):
    console.say(STAGE, f'not evaluated yet: {line}')
  console.say(STAGE, f'wrote {workdir.report}')
  print(summary(config, workdir, found))


def _inputs(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
) -> dict[str, str]:
  """Name -> hash, for everything that the page depends on.

  Seconds are left out: they also change when a stage finds its work done, and
  if it did any work, other files have changed.
  """
  stages = {
    stage: {'counts': record.counts, 'fingerprint': record.fingerprint}
    for stage, record in manifest.stages.items()
    if stage != STAGE
  }
  code = pathlib.Path(__file__).parent
  return {
    'config': store.hash_json(config.to_dict()),
    'workdir': workdir.root.resolve().name,
    'stages': store.hash_json(stages),
    'versions': store.hash_json(store.versions()),
    'report code': store.hash_files(
      [*code.rglob('*.py'), *code.glob('*.jinja'), *code.glob('*.css')]
    ),
    **{
      str(path.relative_to(workdir.root)): store.hash_file(path)
      for path in results.input_files(config, workdir)
    },
  }


def _write_bytes(path: pathlib.Path, content: bytes) -> None:
  with store.replacing(path) as partial:
    partial.write_bytes(content)


def differences(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """Files of the report that its inputs do not give, without writing any.

  Seconds are not compared: they grow when a stage finds its work done.

  Raises:
    InputError: an input is damaged.
  """
  if not workdir.report.exists():
    return []
  from edsft_jax.reporting import page

  manifest = store.Manifest(workdir)
  found = results.read_results(config, workdir)
  made = page.make(config, workdir, manifest, found)
  folder = workdir.report.parent
  expected = {
    **{f'{e.name}.csv': (e.columns, e.rows) for e in made.exhibits},
    **made.tables,
  }
  expected.pop('stage_seconds.csv', None)
  lines = [
    f'{folder / name} is not what the items and selections give'
    for name, table in expected.items()
    if not (folder / name).exists()
    or (folder / name).read_text('utf-8') != tables.csv_text(*table)
  ]
  if _numbers(workdir.report.read_text('utf-8')) != _numbers(made.html):
    lines.append(
      f'{workdir.report} is not what the items and selections give: run the '
      'report stage to see what it should be'
    )
  return lines


def _numbers(html: str) -> str:
  """The page without plots, seconds and the counts of stages.

  A later command that was refused may have counted again.
  """
  html = re.sub('base64,[^"]*"', '', html)
  html = re.sub('(?s)<table id="counts">.*?</table>', '', html)
  return re.sub('(?s)<h2 id="time">.*?(?=<h2)', '', html)


def _write_csv(
  path: pathlib.Path,
  columns: tuple[str, ...],
  rows: list[tuple[Any, ...]],
) -> None:
  store.write_text(path, tables.csv_text(columns, rows))
