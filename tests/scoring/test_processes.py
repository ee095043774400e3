"""Two processes of four devices score what one device scores."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
from places import REPOSITORY
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import two_processes

from configs import default
from edsft_jax import (
  errors,
  models,
  pipeline,
  pool,
  processes,
  scoring,
  store,
)
from edsft_jax import mesh as mesh_lib
from edsft_jax.scoring import shards
from edsft_jax.strategies import stage as select_stage

GOLDEN = pathlib.Path(__file__).parents[1] / 'models' / 'goldens' / 'tied_v4'
NUM_PROMPTS = 9
BUDGET = 4
OPTIONS = {
  'model.path': str(GOLDEN),
  'scoring.max_new_tokens': 2,
  'scoring.shard_prompts': 2,
  'scoring.batch_tokens': 256,
  'selection.strategies': ('k_center',),
  'study.budgets': (BUDGET,),
  'study.seeds': (0,),
}


@pytest.fixture(scope='module')
def prompts(tmp_path_factory) -> pathlib.Path:
  rng = np.random.default_rng(7)
  path = tmp_path_factory.mktemp('prompts') / 'prompts.jsonl'
  texts = [
    ' '.join(f'w{j}' for j in rng.integers(3, 60, size=length))
    for length in rng.integers(4, 15, size=NUM_PROMPTS)
  ]
  path.write_text(''.join(json.dumps({'prompt': t}) + '\n' for t in texts))
  return path


def _config(prompts, **options):
  config = default.get_config()
  config.update_from_flattened_dict(
    {**OPTIONS, 'pool.path': str(prompts), **options}
  )
  return config


def _on_one_device(monkeypatch) -> None:
  one = mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(mesh_lib, 'model_mesh', lambda **sizes: one)


@pytest.fixture(scope='module')
def scored(prompts, tmp_path_factory) -> store.Workdir:
  """By one device."""
  workdir = store.Workdir(tmp_path_factory.mktemp('one'))
  config = _config(prompts)
  pool.run(config, workdir)
  with pytest.MonkeyPatch.context() as monkeypatch:
    _on_one_device(monkeypatch)
    scoring.run(config, workdir)
  return workdir


def _command(stages, prompts, root, *words) -> list[str]:
  options = {**OPTIONS, 'pool.path': prompts}
  return [
    '-m',
    'edsft_jax.main',
    *stages.split(),
    '--config=configs/default.py',
    f'--workdir={root}',
    *(f'--config.{name}={value}' for name, value in options.items()),
    *words,
  ]


def _run_two(stages, prompts, root, *words):
  """The first process's and the second's result."""
  return two_processes.run(
    lambda number, address: _command(
      stages,
      prompts,
      root,
      f'--coordinator={address}',
      '--num_processes=2',
      f'--process_id={number}',
      *words,
    )
  )


def _said(process: subprocess.CompletedProcess[str]) -> str:
  """What it printed, without the news of the CPU's network library."""
  lines = (process.stdout + process.stderr).splitlines()
  return '\n'.join(line for line in lines if '[Gloo]' not in line)


def _is_silent(process: subprocess.CompletedProcess[str]) -> bool:
  """Of its stages; XLA warns where a loaded machine makes it wait."""
  news = ('pool  ', 'score  ', 'select  ', 'done  ')
  return not any(word in _said(process) for word in news)


def _check_same(workdir: store.Workdir, scored: store.Workdir) -> None:
  table, expected = pq.read_table(workdir.scores), pq.read_table(scored.scores)
  assert table.column_names == expected.column_names
  for name in table.column_names:
    if pa.types.is_floating(table[name].type):
      np.testing.assert_allclose(
        table[name].to_numpy(), expected[name].to_numpy(), atol=1e-5, rtol=1e-5
      )
    else:
      assert table[name].equals(expected[name]), name
  assert [path.name for path in store.feature_files(workdir)] == [
    'features-00000-of-00002.npy',
    'features-00001-of-00002.npy',
  ]
  np.testing.assert_allclose(
    store.read_features(workdir), np.load(scored.features), atol=1e-5
  )
  assert not workdir.score_shards.exists()


def test_the_pool_split_over_two_processes(
  prompts, scored, tmp_path, monkeypatch
):
  """They continue where one process was cut short, each with its own shards."""
  workdir = store.Workdir(tmp_path)
  config = _config(prompts)
  pool.run(config, workdir)
  write = shards.write

  def write_one(path, *contents):
    if path.name == '00001':
      raise KeyboardInterrupt
    write(path, *contents)

  with monkeypatch.context() as patch:
    _on_one_device(patch)
    patch.setattr(shards, 'write', write_one)
    with pytest.raises(KeyboardInterrupt):
      scoring.run(config, workdir)
  assert [path.name for path in workdir.score_shards.iterdir()] == ['00000']

  first, second = _run_two('pool score', prompts, workdir.root)
  assert (first.returncode, second.returncode) == (0, 0), _said(second)
  assert _is_silent(second)
  assert f'{NUM_PROMPTS} prompts' in first.stdout
  # Four shards were left: the first two, of two prompts each, were its own.
  assert ' 4/4 ' in first.stderr
  assert 'one of 2 processes' in first.stderr
  _check_same(workdir, scored)

  # One process finds it done, and selects from it.
  monkeypatch.setattr(models, 'load_decoder', lambda *a, **k: pytest.fail('no'))
  scoring.run(config, workdir)
  for one in (workdir, scored):
    select_stage.run(config, one)
  assert _picks(workdir) == _picks(scored)


def _picks(workdir: store.Workdir) -> list[str]:
  rows = store.read_jsonl(workdir.selection('k_center', 0))
  assert len(rows) == BUDGET
  return [row['id'] for row in rows]


@pytest.mark.slow
def test_a_model_that_spans_two_processes(prompts, scored, tmp_path):
  """The first process then selects on its own devices."""
  results = _run_two(
    'pool score select',
    prompts,
    tmp_path,
    '--config.mesh.fsdp=8',
    f'--config.scoring.shard_prompts={NUM_PROMPTS - 4}',
  )
  assert [r.returncode for r in results] == [0, 0], [_said(r) for r in results]
  assert _is_silent(results[1])
  assert f'{NUM_PROMPTS}/{NUM_PROMPTS} ' in results[0].stderr
  workdir = store.Workdir(tmp_path)
  _check_same(workdir, scored)
  select_stage.run(_config(prompts), scored)
  assert _picks(workdir) == _picks(scored)


def test_a_process_without_the_others_ends_with_one_line(prompts, tmp_path):
  absent = [
    subprocess.Popen(
      [
        sys.executable,
        *_command('pool', prompts, tmp_path / 'w'),
        f'--coordinator=localhost:{two_processes.free_port()}',
        '--num_processes=2',
        f'--process_id={number}',
        '--start_timeout=1',
      ],
      cwd=REPOSITORY,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  for process in absent:
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = complaint.strip().splitlines()
    assert 'not all processes met at localhost:' in line
  assert not (tmp_path / 'w').exists()


_FAIL_IN_ONE = """
import sys
import jax
from edsft_jax import console, processes
number, address = int(sys.argv[1]), sys.argv[2]
processes._GRACE_SECONDS = 1.0
processes.start(address, 2, number)
console.say('test', f'process {number}')
assert processes.from_first('number', lambda: [number]) == [0]
for step in range(3):
  assert processes.highest('step', (step + number) % 3) == (1, 2, 2)[step]
together = processes.barrier_within('all', 30)
if number:
  print(together, processes.barrier_within('one', 1))
  processes.end(7, lambda: print('the culprit'))
mesh = jax.make_mesh((8,), ('data',))
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
x = jax.make_array_from_callback((8,), place, lambda i: jax.numpy.ones(1))
print(jax.jit(jax.numpy.sum)(x))
"""


def test_a_failure_reaches_a_process_that_waits_in_a_computation():
  first, second = two_processes.run(
    lambda number, address: ['-c', _FAIL_IN_ONE, str(number), address]
  )
  assert (first.returncode, second.returncode) == (7, 7)
  assert 'process 0' in first.stdout
  assert 'the culprit' not in _said(first)
  assert second.stdout == 'True False\nthe culprit\n'


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (('h:1',), '--num_processes and --process_id is missing'),
    (('', 2, None), '--coordinator and --process_id is missing'),
    (('', None, 0), '--coordinator and --num_processes is missing'),
    (('h:1', 2, 2), '--process_id is 2: must be 0 to 1'),
    (('h:1', 2, -1), '--process_id is -1'),
    (('h:1', 0, 0), '--num_processes is 0'),
    (('h', 2, 0), '--coordinator=h is not HOST:PORT'),
    (('h:', 2, 0), 'not HOST:PORT'),
    (('h:70000', 2, 0), 'not HOST:PORT'),
    (('auto', 2, None), 'leave out'),
    (('h:1', 2, 0, 0), '--start_timeout is 0'),
  ],
)
def test_flags_that_do_not_go_together(arguments, says, monkeypatch):
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **_: pytest.fail('connected')
  )
  with pytest.raises(errors.InputError, match=says):
    processes.start(*arguments)


@pytest.mark.parametrize(
  ('environ', 'several'),
  [
    ({}, False),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '4'}, False),
    ({'SLURM_STEP_NUM_TASKS': '4'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1', 'TPU_WORKER_HOSTNAMES': 'a'}, True),
  ],
)
def test_a_cluster_is_known_by_the_environment(environ, several):
  assert processes.is_cluster(environ) is several


def test_a_workdir_that_not_all_see_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  monkeypatch.setattr(processes, 'from_first', lambda name, make: 'written')
  monkeypatch.setattr(processes, 'barrier', lambda name: None)
  (tmp_path / 'written').touch()
  processes.check_shared(tmp_path)
  with pytest.raises(errors.InputError, match='all processes share'):
    processes.check_shared(tmp_path / 'elsewhere', timeout=0.1)


def test_another_command_is_refused_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'count', lambda: 2)
  first = {'scoring.max_new_tokens': 9}
  monkeypatch.setattr(
    processes,
    'from_first',
    lambda name, make: store.plain(make()) | first,
  )
  config = default.get_config()
  with pytest.raises(errors.InputError) as e:
    pipeline.run(config, store.Workdir(tmp_path / 'w'), ['pool', 'score'])
  assert 'other inputs: scoring.max_new_tokens (was 9, is 64): ' in str(e.value)
  first['scoring.max_new_tokens'] = config.scoring.max_new_tokens
  first['stages'] = ['pool']
  with pytest.raises(errors.InputError, match='stages'):
    pipeline.run(config, store.Workdir(tmp_path / 'w'), ['pool', 'score'])


def test_parts_are_even_and_in_order():
  for size in range(9):
    for count in range(1, 5):
      parts = [shards.part(range(size), i, count) for i in range(count)]
      assert [x for part in parts for x in part] == list(range(size))
      lengths = [len(part) for part in parts]
      assert max(lengths) - min(lengths) <= 1


def test_features_of_more_processes_than_shards(tmp_path):
  workdir = store.Workdir(tmp_path)
  expected = np.arange(15, dtype=np.float32).reshape(5, 3)
  for i, (start, end) in enumerate(shards.bounds(5, 3)):
    shards.write(
      shards.folder(workdir.score_shards, i),
      pa.table({'id': [str(x) for x in range(start, end)]}),
      expected[start:end],
    )
  folders = [shards.folder(workdir.score_shards, i) for i in range(2)]
  for i in range(3):
    shards.join_features(workdir, folders, i, 3)
  np.testing.assert_array_equal(store.read_features(workdir), expected)


def test_features_of_a_join_cut_short_do_not_stay(
  prompts, tmp_path, monkeypatch
):
  """Another number of processes leaves no file that would be read with it."""
  workdir = store.Workdir(tmp_path)
  config = _config(prompts)
  pool.run(config, workdir)
  workdir.features_part(0, 2).parent.mkdir()
  np.save(workdir.features_part(0, 2), np.zeros((2, 32), np.float32))
  _on_one_device(monkeypatch)
  scoring.run(config, workdir)
  assert store.feature_files(workdir) == [workdir.features]
