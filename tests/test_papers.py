"""The papers' studies, with a small model and a cut pool."""

import gzip
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

from places import REPOSITORY, run
import pytest

from edsft_jax import store, study

NAMES = ('bhatt2024_flan', 'arabelly2025_flan', 'arabelly2025_dolly')


def _config(name: str):
  return importlib.import_module(f'configs.{name}').get_config()


@pytest.mark.parametrize('name', NAMES)
def test_finetuning_is_that_of_open_instruct(name):
  ours, preset = _config(name), _config('open_instruct')
  differing = {
    option
    for option, value in ours.finetuning.items()
    if value != preset.finetuning[option]
  }
  assert differing == {'remat'}  # Which does not change results.
  assert ours.prompt.to_dict() == preset.prompt.to_dict()
  study.check(ours)


def _first(path: pathlib.Path, count: int) -> list[dict[str, str]]:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    return [json.loads(next(file)) for _ in range(count)]


def _write(path: pathlib.Path, rows) -> pathlib.Path:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _flan(folder: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
  """A pool that prepare_flan_v2.py makes of rows in FLAN V2's form."""
  rows = _first(data / 'sni_pool.jsonl.gz', 4000)[::40]
  source = _write(
    folder / 'flan.jsonl',
    [
      {
        'inputs': row['prompt'],
        'targets': row['response'],
        'task_name': row['task'],
      }
      for row in rows
    ],
  )
  script = REPOSITORY / 'scripts' / 'prepare_flan_v2.py'
  subprocess.run(
    [sys.executable, script, source, f'--folder={folder}'], check=True
  )
  return folder / 'flan_v2_100k.jsonl'


def _options(
  folder: pathlib.Path, shared: pathlib.Path, pool: pathlib.Path
) -> list[str]:
  """What makes a study small enough for a test."""
  data, model = shared / 'data', shared / 'models' / 'stories260K'
  alpaca = folder / 'alpaca_eval.json'
  alpaca.write_text(
    json.dumps(
      [
        {'instruction': row['prompt'], 'dataset': 'test'}
        for row in _first(data / 'dolly15k.jsonl.gz', 3)
      ]
    )
  )
  values = {
    'pool.path': pool,
    'pool.limit': 100,
    'model.path': model,
    'scoring.max_new_tokens': 4,
    'scoring.batch_tokens': 4096,
    'study.budgets': (5, 10),
    'study.seeds': (0, 1),
    'finetuning.epochs': 1,
    'finetuning.batch_size': 16,
    'finetuning.max_length': 256,
    'evaluation.mmlu.path': data / 'mmlu_test.jsonl.gz',
    'evaluation.mmlu.shots_path': data / 'mmlu_dev.jsonl.gz',
    'evaluation.mmlu.limit': 1,
    'evaluation.bbh.path': data / 'bbh.jsonl.gz',
    'evaluation.bbh.shots_path': data / 'bbh_cot_prompts.json',
    'evaluation.bbh.limit': 1,
    'evaluation.bbh.max_new_tokens': 4,
    'evaluation.alpaca_eval.path': alpaca,
    'evaluation.alpaca_eval.max_new_tokens': 4,
    'evaluation.alpaca_eval.judge': model,
  }
  return [f'--config.{name}={value}' for name, value in values.items()]


def _run(*arguments, **environment) -> str:
  """The output of a script."""
  result = subprocess.run(
    ['bash', *map(str, arguments)],
    cwd=REPOSITORY,
    env={**os.environ, **environment, 'VENV': sys.prefix},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_every_stage_runs_with_a_small_model(name, tmp_path, shared):
  paper, pool = name.split('_')
  path = (
    _flan(tmp_path, shared / 'data')
    if pool == 'flan'
    else shared / 'data' / 'dolly15k.jsonl.gz'
  )
  script = f'scripts/reproduce_{paper}.sh'
  which = [pool] if paper == 'arabelly2025' else []
  root = tmp_path / 'workdir'
  command = [script, *which, root, *_options(tmp_path, shared, path)]
  assert 'TIME OF SCORING' in _run(*command)
  workdir = store.Workdir(root)
  assert not workdir.scores.exists()
  assert 'win rate' in _run(*command, STAGES='all').lower()
  config = study.read_config(workdir)
  cells = [
    *study.cells(config),
    *study.full_pool_cells(config, 100),
    study.no_finetuning_cell(),
  ]
  assert {p.name for p in workdir.runs.iterdir()} == {c.name for c in cells}
  missing = {
    (cell.strategy, task)
    for cell in cells
    for task in config.evaluation.tasks
    if not workdir.run(cell.name).evaluation(task).exists()
  }
  # Random has no model with as many answers as these.
  assert missing == {
    (study.FULL_POOL, 'alpaca_eval'),
    (study.NO_FINETUNING, 'alpaca_eval'),
  }
  assert workdir.report.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('config', 'script', 'rows'),
  [
    ('bhatt2024_flan', 'reproduce_bhatt2024.sh', slice(0, 3)),
    ('arabelly2025_flan', 'reproduce_arabelly2025.sh', slice(0, 3)),
    ('arabelly2025_dolly', 'reproduce_arabelly2025.sh', slice(3, 6)),
  ],
)
def test_a_script_names_the_hours_that_are_counted(
  tmp_path, config, script, rows
):
  scripts = REPOSITORY / 'scripts'
  result = subprocess.run(
    [sys.executable, scripts / 'count_hours.py', config],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  hours_and_memory = re.compile(r'[\d.]+ (?:h|GB)')
  lines = (scripts / script).read_text(encoding='utf-8').splitlines()
  named = [found for line in lines if (found := hours_and_memory.findall(line))]
  counted = hours_and_memory.findall(result.stdout)
  assert counted == [number for row in named[rows] for number in row]


def test_stages_run_one_after_the_other_by_the_launcher(tmp_path):
  """Plan first, here and without measuring; then a command for each stage."""
  log = tmp_path / 'log'
  (tmp_path / 'bin').mkdir()
  python = tmp_path / 'bin' / 'python'
  python.write_text(f'#!/bin/sh\necho "$JAX_PLATFORMS" "$@" >> {log}\n')
  launcher = tmp_path / 'launcher'
  launcher.write_text(f'#!/bin/sh\necho launched "$@" >> {log}\n')
  for path in (python, launcher):
    path.chmod(0o755)
  subprocess.run(
    ['bash', 'scripts/reproduce_bhatt2024.sh', 'runs/x', '--config.a=(1, 2)'],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'VENV': str(tmp_path),
      'STAGES': 'score select',
      'LAUNCH': f'{launcher} host --',
    },
    check=True,
  )
  options = '--config=configs/bhatt2024_flan.py --workdir=runs/x'
  assert log.read_text().splitlines() == [
    f'cpu -m edsft_jax.main plan {options} --config.a=(1, 2) '
    '--config.plan.sample_prompts=0',
    f'launched host -- score {options} --config.a=(1, 2)',
    f'launched host -- select {options} --config.a=(1, 2)',
  ]


def test_a_paper_needs_its_pool_named():
  result = run('bash', 'scripts/reproduce_arabelly2025.sh', 'runs/x')
  assert result.returncode == 2
  assert 'flan|dolly WORKDIR' in result.stderr
