"""Keeps a finished study in a folder of the repository, and checks it there.

  python scripts/keep_study.py keep WORKDIR FOLDER --log=log.txt
  python scripts/keep_study.py verify FOLDER
  python scripts/keep_study.py benchmarks WORKDIR FILE

keep copies the page, plots, tables and config, and adds the value of every
item, the log of the study's commands and the output of `edsft-jax verify`.
verify makes the tables again from the items, as a test does for each folder
that is kept. benchmarks writes a csv table of the benchmarks that some models
were evaluated on; a study's own report only has those of its config.
"""

import contextlib
import io
import pathlib

import command_line

from edsft_jax import errors, pipeline, store, study
from edsft_jax.reporting import kept, tables

LOG, VERIFIED = 'log.txt', 'verify.txt'
BENCHMARK_COLUMNS = (
  'model',
  'benchmark',
  'metric',
  'value',
  'standard_error',
  'items',
)


def keep(
  workdir: store.Workdir, folder: pathlib.Path, log: pathlib.Path
) -> None:
  """Writes the folder.

  Raises:
    InputError: the study is not finished, or does not match its records.
  """
  kept.write(workdir, folder)
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    pipeline.run(study.read_config(workdir), workdir, ['verify'])
  command = f'$ edsft-jax verify --workdir={workdir.root}\n'
  store.write_text(folder / VERIFIED, command + output.getvalue())
  store.write_text(folder / LOG, without_bars(log.read_text('utf-8')))


def without_bars(text: str) -> str:
  """A log with only the last state of each progress bar."""
  lines = (line.rsplit('\r', 1)[-1].rstrip() for line in text.split('\n'))
  return '\n'.join(line for line in lines if line) + '\n'


def benchmark_rows(workdir: store.Workdir) -> list[tuple[str, ...]]:
  """A row per model, benchmark and metric, without the held-out prompts."""
  return [
    (
      path.parents[2].name,
      path.parent.name,
      name,
      *(
        '' if metric[field] is None else f'{metric[field]:.4f}'
        for field in ('value', 'standard_error')
      ),
      str(metric['n']),
    )
    for path in sorted(workdir.runs.glob('*/evaluations/*/eval.json'))
    if path.parent.name != 'heldout'
    for name, metric in store.read_json(path)['metrics'].items()
  ]


def main() -> None:
  """Keeps, verifies, or writes the table of benchmarks."""
  parser = command_line.parser(__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  keeping = commands.add_parser('keep')
  keeping.add_argument('workdir', type=command_line.existing_folder)
  keeping.add_argument('folder', type=pathlib.Path, help='to write')
  keeping.add_argument('--log', type=command_line.existing_file, required=True)
  verifying = commands.add_parser('verify')
  verifying.add_argument('folder', type=command_line.existing_folder)
  listing = commands.add_parser('benchmarks')
  listing.add_argument('workdir', type=command_line.existing_folder)
  listing.add_argument('file', type=pathlib.Path, help='to write')
  arguments = parser.parse_args()
  if arguments.command == 'benchmarks':
    rows = benchmark_rows(store.Workdir(arguments.workdir))
    if not rows:
      raise errors.InputError(
        f'{arguments.workdir} has no results of benchmarks: run the evaluate '
        'stage with configs/sni_benchmarks.py, or another config that has some'
      )
    table = tables.csv_text((BENCHMARK_COLUMNS, rows))
    store.write_text(arguments.file, table)
    print(f'{arguments.file}: {len(rows)} results')
    return
  if arguments.command == 'keep':
    workdir = store.Workdir(arguments.workdir)
    keep(workdir, arguments.folder, arguments.log)
  if different := kept.differences(arguments.folder):
    raise errors.InputError('; '.join(different))
  print(f'{arguments.folder}: its tables follow from its items')


if __name__ == '__main__':
  command_line.run(main)
