"""All seven stages on the built-in demo, as the quickstart runs them."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import compilation
import numpy as np
from places import REPOSITORY, run_python
import pyarrow.parquet as pq
import pytest
from small_study import SMALL, small
import tiny_study

from configs import quickstart
from edsft_jax import errors, pipeline, store, study

NUM_DEVICES = 4


def _command(workdir: pathlib.Path):
  flags = [f'--config.{name}={value}' for name, value in SMALL.items()]
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'edsft_jax.main',
      '--config=configs/quickstart.py',
      f'--workdir={workdir}',
      *flags,
    ],
    cwd=REPOSITORY,
    env={
      **os.environ,
      'XLA_FLAGS': compilation.xla_flags(NUM_DEVICES),
    },
    capture_output=True,
    text=True,
    check=False,
  )


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
  return root, _command(root)


def test_demo_on_four_devices_leaves_every_file_of_the_contract(demo):
  root, result = demo
  assert result.returncode == 0, result.stderr
  workdir = store.Workdir(root)
  config = small()
  pool = store.read_prompts(workdir.pool)
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
    path = workdir.run(cell.name).evaluation('heldout')
    evaluation = store.read_json(path)
    assert (
      evaluation['strategy'],
      evaluation['budget'],
      evaluation['seed'],
    ) == (cell.strategy, cell.budget, cell.seed)
    assert evaluation['metrics']['loss']['n'] == 12
    timing = workdir.run(cell.name).evaluation_timing('heldout')
    assert store.read_json(timing)['seconds'] > 0
  assert {p.name for p in workdir.runs.iterdir()} == {c.name for c in cells}
  assert workdir.report.exists()
  manifest = store.read_json(workdir.manifest)
  assert set(manifest['stages']) >= set(pipeline.STAGES)
  for stage in ('score', 'finetune', 'evaluate'):
    (used,) = manifest['stages'][stage]['made_with']
    assert used['jax'] == importlib.metadata.version('jax')
    assert used['devices'] == f'{NUM_DEVICES} x cpu'
  assert store.read_json(workdir.config)['study']['budgets'] == [8, 16]


def test_demo_prints_the_table_and_the_path_of_the_report(demo):
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
  config = small()
  with tiny_study.on_one_device():
    pipeline.run(config, store.Workdir(tmp_path), ('pool', 'score', 'select'))
  for strategy in config.selection.strategies:
    for seed in config.study.seeds:
      assert study.selected_ids(
        store.Workdir(tmp_path), strategy, seed
      ) == study.selected_ids(store.Workdir(root), strategy, seed)
  ours, theirs = (
    pq.read_table(store.Workdir(r).scores) for r in (tmp_path, root)
  )
  assert ours['generation'].equals(theirs['generation'])
  np.testing.assert_allclose(
    ours['mean_margin'].to_numpy(), theirs['mean_margin'].to_numpy(), atol=1e-5
  )


def test_a_second_run_writes_nothing(demo):
  root, _ = demo
  before = _stamps(root)
  pipeline.run(small(), store.Workdir(root))
  assert _stamps(root) == before


@pytest.mark.slow
def test_more_cells_redo_nothing(demo, tmp_path):
  root = shutil.copytree(demo[0], tmp_path / 'copy')
  before = _stamps(root)
  more = {
    'study.budgets': (8, 16, 20),
    'study.seeds': (0,),
    'selection.strategies': ('random', 'min_margin'),
  }
  # On as many devices, for which everything is compiled.
  with tiny_study.on_devices(NUM_DEVICES):
    pipeline.run(small(**more), store.Workdir(root))
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
  config = store.Workdir(root).config.read_bytes()
  with pytest.raises(errors.InputError, match=option.replace('.', r'\.')):
    pipeline.run(small(**{option: value}), store.Workdir(root))
  assert _stamps(root) == before
  assert store.Workdir(root).config.read_bytes() == config


def test_verify_finds_nothing_in_a_finished_study(demo, capsys):
  root, _ = demo
  before = _stamps(root), store.Workdir(root).manifest.read_bytes()
  pipeline.run(quickstart.get_config(), store.Workdir(root), ['verify'])
  out = capsys.readouterr().out
  for part in ('files', 'selections', 'evaluations', 'report'):
    assert f'{part}: as recorded' in out
  assert 'not made by' not in out
  after = _stamps(root), store.Workdir(root).manifest.read_bytes()
  assert after == before


def test_verify_finds_a_byte_changed_anywhere(demo, tmp_path):
  root, _ = demo
  workdir = store.Workdir(shutil.copytree(root, tmp_path / 'copy'))
  assert store.checksum_differences(workdir) == []
  paths = [p for p in workdir.root.rglob('*') if p.is_file()]
  paths = [p for p in paths if p.name != '.lock' and p.stat().st_size]
  assert {p.relative_to(workdir.root).parts[0] for p in paths} >= {
    *('pool', 'heldout', 'scores', 'selections', 'annotations', 'runs'),
    *('report', 'config.json', 'manifest.json'),
  }
  for path in paths:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = bytes([content[middle] ^ 1])
    path.write_bytes(content[:middle] + changed + content[middle + 1 :])
    try:
      lines = store.checksum_differences(workdir)
    except errors.InputError as error:  # manifest.json has become invalid JSON.
      lines = [str(error)]
    assert str(path) in lines[0]
    # In manifest.json, it may be the hash of another file.
    assert len(lines) == 1 or path == workdir.manifest
    path.write_bytes(content)
  paths[0].unlink()
  (line,) = store.checksum_differences(workdir)
  assert line == f'{paths[0]} is missing'


def test_verify_makes_again_what_could_be_forged(demo, tmp_path, capsys):
  """Files that were changed and whose hashes were, too."""
  root, _ = demo
  workdir = store.Workdir(shutil.copytree(root, tmp_path / 'copy'))
  selection = workdir.selection('min_margin', 0)
  rows = store.read_jsonl(selection)
  rows[1]['id'], rows[2]['id'] = rows[2]['id'], rows[1]['id']
  store.write_jsonl(selection, rows)
  evaluation = workdir.run('random-k8-seed0').evaluation('heldout')
  contents = store.read_json(evaluation)
  contents['metrics']['loss']['standard_error'] += 0.01
  store.write_json(evaluation, contents)
  table = workdir.report.with_name('comparisons.csv')
  text = table.read_text()
  changed = text.replace('min_margin,random,8,', 'min_margin,random,8,1')
  assert changed != text
  table.write_text(changed)
  store.record_checksums(workdir)
  assert store.checksum_differences(workdir) == []
  with pytest.raises(errors.InputError, match='does not match its records'):
    pipeline.run(quickstart.get_config(), workdir, ['verify'])
  out = capsys.readouterr().out
  assert 'files: as recorded' in out
  lines = [line for line in out.splitlines() if 'differs: ' in line]
  assert f'{selection} has ' in lines[0]
  assert 'at rank 1, not ' in lines[0]
  assert f'{evaluation} has standard_error' in lines[1]
  assert f'{table} is not what' in lines[2]


@pytest.mark.slow
def test_a_finished_study_can_be_kept(demo, tmp_path):
  root, result = demo
  log, folder = tmp_path / 'log', tmp_path / 'kept'
  log.write_text(f'{result.stdout}a bar\rthe same bar, finished\n')
  script = REPOSITORY / 'scripts' / 'keep_study.py'
  workdir = shutil.copytree(root, tmp_path / 'copy')
  for words in (('keep', workdir, folder, f'--log={log}'), ('verify', folder)):
    done = run_python(script, *words)
    assert done.returncode == 0, done.stderr
  assert {path.name for path in folder.iterdir()} >= {
    *('index.html', 'config.json', 'comparisons.csv', 'cells.csv'),
    *('label_efficiency_rouge_l.png', 'picks.csv', 'ids.csv', 'log.txt'),
  }
  assert 'report: as recorded' in (folder / 'verify.txt').read_text()
  assert (folder / 'log.txt').read_text().endswith('\nthe same bar, finished\n')
  (folder / 'savings.csv').write_text('metric\n')
  done = run_python(script, 'verify', folder)
  assert done.returncode == 2
  assert 'savings.csv is not what items.csv.gz gives' in done.stderr


def test_the_table_of_benchmarks_has_a_row_per_metric(tmp_path):
  run = store.Workdir(tmp_path / 'study').run('random-k8-seed0')
  for task, error in (('bbh', None), ('heldout', 0.1), ('mmlu', 0.25)):
    metric = {'value': 0.5, 'standard_error': error, 'n': 4}
    store.write_json(run.evaluation(task), {'metrics': {'accuracy': metric}})
  script = REPOSITORY / 'scripts' / 'keep_study.py'
  path = tmp_path / 'benchmarks.csv'
  done = run_python(script, 'benchmarks', tmp_path / 'study', path)
  assert done.returncode == 0, done.stderr
  assert path.read_text().splitlines()[1:] == [
    'random-k8-seed0,bbh,accuracy,0.5000,,4',
    'random-k8-seed0,mmlu,accuracy,0.5000,0.2500,4',
  ]
