"""All seven stages as a person runs them, on the demo and on real prompts."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
from places import REPOSITORY
import pyarrow.parquet as pq
import pytest
import tiny_study

from configs import default, quickstart
from edsft_jax import artifacts, errors, main, study

SMALL = {
  'pool.limit': 150,
  'scoring.max_new_tokens': 4,
  'study.budgets': (8, 16),
  'study.seeds': (0, 1),
  'finetuning.epochs': 1,
  'evaluation.max_new_tokens': 4,
  'evaluation.limit': 12,
}


def _command(workdir: pathlib.Path, num_devices: int, *stages: str):
  flags = [f'--config.{name}={value}' for name, value in SMALL.items()]
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'edsft_jax.main',
      *stages,
      '--config=configs/quickstart.py',
      f'--workdir={workdir}',
      *flags,
    ],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}',
    },
    capture_output=True,
    text=True,
    check=False,
  )


def _small(**options) -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.update_from_flattened_dict({**SMALL, **options})
  return config


def _stamps(root: pathlib.Path) -> dict[str, int]:
  """When each result was written; manifest.json keeps a clock of its own."""
  return {
    str(path.relative_to(root)): path.stat().st_mtime_ns
    for path in root.rglob('*')
    if path.is_file() and path.name not in ('manifest.json', 'config.json')
  }


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """The quickstart, cut small, on four devices."""
  root = tmp_path_factory.mktemp('demo')
  return root, _command(root, num_devices=4)


def test_demo_on_four_devices_leaves_every_file_of_the_contract(demo):
  root, result = demo
  assert result.returncode == 0, result.stderr
  workdir = artifacts.Workdir(root)
  config = _small()
  pool = artifacts.read_prompts(workdir.pool)
  scores = pq.read_table(workdir.scores)
  features = np.load(workdir.features)
  assert scores['id'].to_pylist() == pool.ids
  assert features.shape[0] == len(pool)
  assert np.isfinite(features).all()

  cells = [
    *study.cells(config),
    *study.full_pool_cells(config, len(pool)),
    study.no_finetuning_cell(),
  ]
  assert len(cells) == 4 * 2 * 2 + 2 + 1
  for cell in cells:
    evaluation = artifacts.read_json(workdir.runs / cell.name / 'eval.json')
    assert (
      evaluation['strategy'],
      evaluation['budget'],
      evaluation['seed'],
    ) == (cell.strategy, cell.budget, cell.seed)
    assert evaluation['num_prompts'] == 12
  assert {p.name for p in workdir.runs.iterdir()} == {c.name for c in cells}
  assert workdir.report.exists()
  manifest = artifacts.read_json(workdir.manifest)
  assert set(manifest['stages']) >= set(main.STAGES)
  assert len(manifest['devices']) == 4
  assert artifacts.read_json(workdir.config)['study']['budgets'] == [8, 16]


def test_demo_prints_the_table_and_the_way_to_the_report(demo):
  root, result = demo
  for word in (
    *quickstart.get_config().selection.strategies,
    '8 answers',
    '16 answers',
    'full pool',
    'no finetuning',
    'Selection took',
    str(root / 'report' / 'index.html'),
  ):
    assert word in result.stdout, word
  assert 'Traceback' not in result.stderr


def test_one_device_chooses_the_same_prompts(demo, tmp_path):
  root, _ = demo
  config = _small()
  result = _command(tmp_path, 1, 'pool', 'score', 'select')
  assert result.returncode == 0, result.stderr
  for strategy in config.selection.strategies:
    for seed in config.study.seeds:
      assert study.selected_ids(
        artifacts.Workdir(tmp_path), strategy, seed
      ) == study.selected_ids(artifacts.Workdir(root), strategy, seed)
  ours, theirs = (
    pq.read_table(artifacts.Workdir(r).scores) for r in (tmp_path, root)
  )
  assert ours['generation'].equals(theirs['generation'])
  np.testing.assert_allclose(
    ours['mean_margin'].to_numpy(), theirs['mean_margin'].to_numpy(), atol=1e-5
  )


def test_a_second_run_writes_nothing(demo):
  root, _ = demo
  before = _stamps(root)
  main.run(_small(), root)
  assert _stamps(root) == before


def test_more_cells_redo_nothing(demo):
  root, _ = demo
  before = _stamps(root)
  main.run(
    _small(
      **{
        'study.budgets': (8, 16, 20),
        'study.seeds': (0,),
        'selection.strategies': ('random', 'min_margin'),
      }
    ),
    root,
  )
  after = _stamps(root)
  new = {name.split('/')[1] for name in after.keys() - before.keys()}
  assert {'random-k20-seed0', 'min_margin-k20-seed0'} <= new
  for name, stamp in before.items():
    part = name.split('/')[0]
    if part in ('pool', 'heldout', 'scores', 'runs'):
      assert after[name] == stamp, name


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('pool.limit', 140),
    ('scoring.max_new_tokens', 5),
    ('finetuning.learning_rate', 5e-4),
    ('evaluation.limit', 11),
    ('prompt.separator', ' '),
  ],
)
def test_changed_inputs_are_refused_by_name(demo, option, value):
  root, _ = demo
  before = _stamps(root)
  config = artifacts.Workdir(root).config.read_bytes()
  with pytest.raises(errors.InputError, match=option.replace('.', r'\.')):
    main.run(_small(**{option: value}), root)
  assert _stamps(root) == before
  assert artifacts.Workdir(root).config.read_bytes() == config


# A pool whose answers can be told from everything else.


def _marked_rows(num_rows: int = 40) -> list[dict[str, str]]:
  return [
    {
      'id': f'q{i}',
      'prompt': f'Copy the word: thing{i}',
      'task': 'even' if i % 2 else 'odd',
      'response': f'SECRET{i}ANSWER',
      'note': f'the annotator wrote SECRET{i}ANSWER',
      'source': 'web',
    }
    for i in range(num_rows)
  ]


def _write_jsonl(path: pathlib.Path, rows) -> pathlib.Path:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _everything_in(folder: pathlib.Path) -> str:
  """The text of every file, parquet and numpy decoded."""
  parts = []
  for path in sorted(folder.rglob('*')):
    if path.suffix == '.parquet':
      parts.append(json.dumps(pq.read_table(path).to_pylist()))
    elif path.is_file():
      parts.append(path.read_bytes().decode('latin-1'))
  return '\n'.join(parts)


def test_no_answer_reaches_what_scores_and_selects(tmp_path):
  pool = _write_jsonl(tmp_path / 'pool.jsonl', _marked_rows())
  root = tmp_path / 'w'
  main.run(
    _small(**{'pool.path': str(pool), 'pool.limit': 0}),
    root,
    ('pool', 'score', 'select'),
  )
  for part in ('pool', 'scores', 'selections'):
    text = _everything_in(root / part)
    assert 'q1' in text or 'thing1' in text or part == 'scores'
    assert 'SECRET' not in text, part
  assert 'SECRET' in _everything_in(root / 'annotations')
  assert 'SECRET' in _everything_in(root / 'heldout')


def test_buyer_gets_a_list_and_goes_on_with_the_filled_one(tmp_path, capsys):
  rows = [
    {k: row[k] for k in ('id', 'prompt', 'task')} for row in _marked_rows()
  ]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  heldout = _write_jsonl(
    tmp_path / 'heldout.jsonl',
    [
      {'id': f'h{i}', 'prompt': f'Copy the word: other{i}', 'response': 'x'}
      for i in range(6)
    ],
  )
  root = tmp_path / 'w'
  options = {
    'pool.path': str(pool),
    'pool.heldout_path': str(heldout),
    'pool.limit': 0,
    'study.budgets': (6,),
    'study.seeds': (0,),
    'selection.strategies': ('random', 'min_margin'),
  }
  with tiny_study.on_one_device():
    main.run(_small(**options), root)
  said = capsys.readouterr().out
  workdir = artifacts.Workdir(root)
  todo = artifacts.read_jsonl(workdir.todo)
  ids = [row['id'] for row in todo]
  wanted = set(study.selected_ids(workdir, 'random', 0)[:6]) | set(
    study.selected_ids(workdir, 'min_margin', 0)[:6]
  )
  assert sorted(ids) == sorted(wanted)
  assert str(len(wanted)) in said
  assert 'wait for the answers' in said
  assert not workdir.runs.exists()

  filled = tmp_path / 'filled.csv'
  with workdir.todo.with_suffix('.csv').open(newline='') as f:
    table = list(csv.DictReader(f))
  with filled.open('w', newline='') as f:
    writer = csv.DictWriter(f, table[0].keys())
    writer.writeheader()
    for row in table:
      writer.writerow({**row, 'response': f'answer to {row["id"]}'})
  options['annotation.answers_path'] = str(filled)
  with tiny_study.on_one_device():
    main.run(_small(**options), root)
  said = capsys.readouterr().out
  assert 'full pool' not in said.split('strategy')[-1]
  assert (workdir.runs / 'min_margin-k6-seed0' / 'eval.json').exists()
  assert workdir.report.exists()


def test_buyer_without_a_heldout_file_gets_the_list_too(tmp_path, capsys):
  rows = [{'id': row['id'], 'prompt': row['prompt']} for row in _marked_rows()]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  root = tmp_path / 'w'
  options = {
    'pool.path': str(pool),
    'pool.limit': 0,
    'study.budgets': (3,),
    'study.seeds': (0,),
    'selection.strategies': ('random',),
  }
  with tiny_study.on_one_device():
    main.run(_small(**options), root)
  assert 'wait for the answers' in capsys.readouterr().out
  todo = artifacts.read_jsonl(artifacts.Workdir(root).todo)
  answers = _write_jsonl(
    tmp_path / 'answers.jsonl', [{**row, 'response': 'x'} for row in todo]
  )
  options['annotation.answers_path'] = str(answers)
  with pytest.raises(errors.InputError, match=r'set pool\.heldout_path'):
    main.run(_small(**options), root)
  assert not (root / 'runs').exists()


def test_an_unusable_pool_leaves_nothing_behind(tmp_path):
  pool = tmp_path / 'pool.jsonl'
  pool.write_bytes(bytes(range(256)))
  with pytest.raises(errors.InputError, match=r'pool\.jsonl'):
    main.run(_small(**{'pool.path': str(pool)}), tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


def test_a_budget_beyond_the_pool_is_found_before_scoring(tmp_path):
  pool = _write_jsonl(tmp_path / 'pool.jsonl', _marked_rows())
  config = _small(**{'pool.path': str(pool), 'study.budgets': (8, 4000)})
  with pytest.raises(errors.InputError, match='4000, which exceeds the pool'):
    main.run(config, tmp_path / 'w')
  assert not (tmp_path / 'w' / 'scores').exists()


def test_a_task_strategy_on_a_pool_without_tasks(tmp_path):
  rows = [{'prompt': row['prompt']} for row in _marked_rows()]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  config = _small(**{'pool.path': str(pool), 'pool.limit': 0})
  with pytest.raises(errors.InputError, match='needs task labels'):
    main.run(config, tmp_path / 'w', ('pool', 'score', 'select'))
  assert not (tmp_path / 'w' / 'scores').exists()


def test_real_prompts_and_a_pretrained_model(tmp_path, shared):
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      **SMALL,
      'pool.path': str(shared / 'data' / 'dolly15k.jsonl.gz'),
      'pool.limit': 40,
      'scoring.batch_tokens': 4096,
      'model.path': str(shared / 'models' / 'stories3M'),
      'study.budgets': (8,),
      'study.seeds': (0,),
      'study.full_pool': False,
      'finetuning.max_length': 64,
      'evaluation.limit': 4,
      'selection.strategies': study.STRATEGIES,
    }
  )
  root = tmp_path / 'w'
  with tiny_study.on_one_device():
    main.run(config, root, ('pool', 'score', 'select'))
    config.selection.strategies = ('random', 'facility_location')
    main.run(config, root)
  workdir = artifacts.Workdir(root)
  for strategy in study.STRATEGIES:
    ids = study.selected_ids(workdir, strategy, 0)
    assert len(set(ids)) == 8, strategy
  for strategy in ('random', 'facility_location'):
    evaluation = artifacts.read_json(
      workdir.runs / f'{strategy}-k8-seed0' / 'eval.json'
    )
    assert 0 < evaluation['metrics']['loss'] < 20
