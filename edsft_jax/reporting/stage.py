"""The report stage: evaluations and selections -> report/."""

import pathlib

import ml_collections

from edsft_jax import console, errors, store
from edsft_jax.reporting import inputs, results, tables
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
  _check_options(config, workdir, planned)
  if 'evaluate' not in planned:
    _read_results(config, workdir)


def _check_options(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  if not 0.0 < config.report.confidence < 1.0:
    raise errors.InputError(
      f'report.confidence is {config.report.confidence}: give a number between '
      '0 and 1, such as 0.95'
    )
  errors.refuse_below(
    'report.price_per_hour', config.report.price_per_hour, 0.0
  )
  store.require(workdir.pool, 'pool', planned)


def _read_results(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> results.Results:
  """Reads the evaluations; requires some, with the headline metric."""
  found = results.read_results(config, workdir)
  if not found.evaluations:
    raise errors.InputError(
      f'{workdir.runs} has no eval.json for this study: '
      'run the evaluate stage first'
    )
  results.find_metric(config.report.metric, found.metrics)
  return found


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Writes report/index.html, and next to it images and csv of every plot.

  The page is rendered again only if something that it shows has changed,
  according to the hashes in report/inputs.json.

  Raises:
    InputError: as in check; or a file is damaged.
  """
  _check_options(config, workdir, frozenset())
  found = _read_results(config, workdir)
  folder = workdir.report.parent
  manifest = store.Manifest(workdir)
  made_from = _made_from(config, workdir, manifest)
  record = folder / 'inputs.json'
  before = store.read_json(record) if record.exists() else {}
  if before.get('inputs') == made_from and all(
    (folder / name).exists() for name in before['files']
  ):
    console.say(STAGE, f'{workdir.report} is up to date')
    print(summary(config, workdir, found))
    return
  with manifest.timed(STAGE):
    from edsft_jax.reporting import captions, page

    report = page.make(config, workdir, manifest, found)
    contents: dict[str, str | bytes] = {
      f'{e.name}.csv': tables.csv_text((e.columns, e.rows))
      for e in report.exhibits
    }
    for name, images in report.images.items():
      contents[f'{name}.svg'] = images.svg
      contents[f'{name}.pdf'] = images.pdf
      contents[f'{name}.png'] = images.png
    for name, table in report.tables.items():
      contents[name] = tables.csv_text(table)
    contents['figures.tex'] = captions.latex(report.exhibits)
    contents[workdir.report.name] = report.html
    for name, content in contents.items():
      _write(folder / name, content)
    files = list(contents)
    # Removes plots that the study had before and lacks now.
    for name in before.get('files', []):
      if name not in files:
        (folder / name).unlink(missing_ok=True)
    store.write_json(record, {'inputs': made_from, 'files': files})
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


def _made_from(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
) -> dict[str, str]:
  """Name -> hash, for everything that the page depends on.

  Seconds are left out: they also change when a stage finds its work done, and
  if it did any work, other files have changed.
  """
  stages = {
    stage: {
      'counts': record.counts,
      'fingerprint': record.fingerprint,
      'made with': record.made_with,
    }
    for stage, record in manifest.stages.items()
    if stage != STAGE
  }
  code = pathlib.Path(__file__).parent
  return {
    'config': store.hash_json(config.to_dict()),
    'workdir': workdir.root.resolve().name,
    'stages': store.hash_json(stages),
    'report code': store.hash_files(
      [
        path
        for pattern in ('*.py', '*.jinja', '*.css', '*.js')
        for path in code.rglob(pattern)
      ]
    ),
    **{
      str(path.relative_to(workdir.root)): store.hash_file(path)
      for path in inputs.input_files(config, workdir)
    },
  }


def _write(path: pathlib.Path, content: str | bytes) -> None:
  if isinstance(content, str):
    content = content.encode('utf-8')
  with store.replacing(path) as partial:
    partial.write_bytes(content)
