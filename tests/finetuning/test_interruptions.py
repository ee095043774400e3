"""Whatever stops a cell: the resumed run is the uninterrupted one, to the byte.

And what cannot be resumed is refused in one line.
"""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import compilation
import orbax.checkpoint as ocp
import pyarrow as pa
import pytest
import tiny_study

from edsft_jax import errors, finetuning, interrupts, store, study
from edsft_jax.finetuning import checkpoints
from edsft_jax.finetuning import trainer as trainer_lib

pytestmark = pytest.mark.usefixtures('on_one_device')

# Nine examples in batches of four: the second epoch begins within step 3 of 5.
CELL = 'random-k9-seed0'


def _config():
  config = tiny_study.config()
  config.study.budgets = (9,)
  config.finetuning.lora_dropout = 0.2
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> store.Workdir:
  """An uninterrupted run, to compare with."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('finished'))
  finetuning.run(_config(), workdir)
  return workdir


@pytest.fixture(scope='module')
def stopped(tmp_path_factory) -> store.Workdir:
  """A run with checkpoints of steps 2 and 4."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('stopped'))
  _run_until(4, signal.SIGTERM, workdir)
  return workdir


@pytest.fixture
def copy(stopped, tmp_path) -> store.Workdir:
  shutil.copytree(stopped.root, tmp_path, dirs_exist_ok=True)
  return store.Workdir(tmp_path)


def _run_until(last: int, number: int, workdir) -> None:
  """Sends a signal during step `last`; expects the run to stop after it."""
  steps, step = [], trainer_lib.Trainer.step

  def interrupted_step(*args):
    steps.append(1)
    if len(steps) == last:
      os.kill(os.getpid(), number)
    assert len(steps) <= last
    return step(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', interrupted_step)
    # Without this, a SIGTERM that comes late would end the tests.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    interrupts.raise_on_signals()
    try:
      with pytest.raises((KeyboardInterrupt, interrupts.Terminated)) as stop:
        finetuning.run(_config(), workdir)
    finally:
      for each, handler in before.items():
        signal.signal(each, handler)
      interrupts.forget()
  assert interrupts.exit_code(stop.value) == 128 + number


def _resume(workdir) -> int:
  """Runs the command again; returns the number of steps that it made."""
  steps, step = [], trainer_lib.Trainer.step
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      trainer_lib.Trainer, 'step', lambda *args: steps.append(1) or step(*args)
    )
    finetuning.run(_config(), workdir)
  return len(steps)


def _assert_same(workdir, finished) -> None:
  ours, theirs = (w.run(CELL) for w in (workdir, finished))
  adapter = 'adapter_model.safetensors'
  assert (ours.model / adapter).read_bytes() == (
    theirs.model / adapter
  ).read_bytes()
  assert ours.metrics.read_bytes() == theirs.metrics.read_bytes()
  assert ours.cell.read_bytes() == theirs.cell.read_bytes()
  assert sorted(p.name for p in ours.root.iterdir()) == sorted(
    p.name for p in theirs.root.iterdir()
  )


@pytest.mark.parametrize(
  ('number', 'last'), [(signal.SIGTERM, 1), (signal.SIGINT, 3)]
)
def test_a_signal_loses_no_step(workdir, finished, number, last):
  _run_until(last, number, workdir)
  assert workdir.run(CELL).checkpoints.joinpath(str(last)).exists()
  assert _resume(workdir) == 5 - last
  _assert_same(workdir, finished)


def test_a_signal_during_the_last_step_comes_after_the_model(workdir, finished):
  _run_until(5, signal.SIGTERM, workdir)
  _assert_same(workdir, finished)
  assert _resume(workdir) == 0


def test_a_signal_that_another_process_got_first_is_not_the_second():
  with pytest.raises(KeyboardInterrupt), interrupts.delayed() as signals:
    signals.arrived_elsewhere(0)
    assert not signals.arrived
    signals.arrived_elsewhere(signal.SIGTERM)
    assert signals.number == signal.SIGTERM
    signal.raise_signal(signal.SIGINT)
    assert signals.arrived
  with pytest.raises(interrupts.Terminated), interrupts.delayed() as signals:
    signals.arrived_elsewhere(signal.SIGTERM)


# Dies like a machine does, as soon as a save has begun.
_KILLED_IN_A_SAVE = """
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, 'tests/finetuning')
sys.path.insert(0, 'tests')
import tiny_study, test_interruptions
from edsft_jax import store, finetuning

workdir = store.Workdir(pathlib.Path(sys.argv[1]))
checkpoints = workdir.run('random-k9-seed0').checkpoints

def watch():
  while not list(checkpoints.glob('4.*-tmp*/*')):
    time.sleep(0.0005)
  os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
with tiny_study.on_one_device():
  finetuning.run(test_interruptions._config(), workdir)
"""


def test_a_kill_in_the_middle_of_a_save(workdir, finished):
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED_IN_A_SAVE, str(workdir.root)],
    cwd=tiny_study.REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  names = {p.name for p in workdir.run(CELL).checkpoints.iterdir()}
  assert '2' in names
  assert '4' not in names
  assert _resume(workdir) == 3
  _assert_same(workdir, finished)


def test_a_full_disk_in_the_middle_of_a_save(
  workdir, finished, capfd, monkeypatch
):
  """A limit on the size of files acts like a full disk, on these alone."""
  unraisable = []
  monkeypatch.setattr(sys, 'unraisablehook', unraisable.append)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
  try:
    with pytest.raises(errors.InputError, match=r'File too large.*free some'):
      finetuning.run(_config(), workdir)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert 'Traceback' not in capfd.readouterr().err
  assert not unraisable
  assert not list(workdir.run(CELL).root.rglob('*-tmp*'))
  _resume(workdir)
  _assert_same(workdir, finished)


def _damaged(name):
  """Truncates, removes or changes a file of the last checkpoint."""

  def truncate(folder):
    file = max(folder.glob('default/*/*'), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    return file.name

  def remove_metadata(folder):
    (folder / 'default' / '_METADATA').unlink()
    return 'default/_METADATA is missing'

  def flip(folder):
    file = max(folder.glob('default/*/*'), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return f'{file.name} has changed'

  def remove_checksums(folder):
    (folder / 'checksums.json').unlink()
    return 'checksums.json cannot be read'

  def no_object(folder):
    (folder / 'checksums.json').write_text('[]')
    return 'checksums.json cannot be read'

  def no_checksums(folder):
    (folder / 'checksums.json').write_text('{}')
    return 'is not in checksums.json'

  def add(folder):
    (folder / 'default' / 'more').write_text('')
    return 'default/more is not in checksums.json'

  def change_progress(folder):
    (folder / 'progress.json').write_text('{}')
    return 'progress.json has changed'

  return locals()[name]


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('cell.json', lambda _: b'\xff\xfe{"step"'),
    ('metrics.jsonl', lambda _: b'\xff\xfe{"step"'),
    ('metrics.jsonl', lambda lines: b'5\n' + lines),
    ('metrics.jsonl', lambda lines: lines.replace(b'step', b'stop')),
    ('metrics.jsonl', lambda lines: lines.replace(b'"tokens": ', b'"t": ')),
    ('timing.jsonl', lambda lines: lines.replace(b'seconds', b'sec')),
  ],
)
def test_damaged_files_of_a_cell_are_named(name, damage, copy):
  file = copy.run(CELL).root / name
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(errors.InputError, match=r'damaged') as caught:
    finetuning.run(_config(), copy)
  assert str(file) in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('num_kept', [0, 2])
def test_lost_lines_of_the_log_are_refused(num_kept, copy):
  file = copy.run(CELL).metrics
  lines = file.read_bytes().splitlines(keepends=True)
  assert len(lines) == 3
  file.write_bytes(b''.join(lines[:num_kept]))
  with pytest.raises(
    errors.InputError, match=rf'{num_kept} lines up to step 4, and had 3 when'
  ):
    finetuning.run(_config(), copy)
  assert file.read_bytes() == b''.join(lines[:num_kept])


def test_lines_are_counted_where_other_steps_are_logged_after_a_stop(workdir):
  _run_until(2, signal.SIGTERM, workdir)
  config = _config()
  config.finetuning.log_steps = 1
  finetuning.run(config, workdir)
  steps = [row['step'] for row in store.read_jsonl(workdir.run(CELL).metrics)]
  assert steps == [1, 2, 3, 4, 5]


def test_a_file_in_the_place_of_checkpoints(copy):
  folder = copy.run(CELL).checkpoints
  shutil.rmtree(folder)
  folder.write_text('')
  with pytest.raises(errors.InputError, match=f'{folder} is not a folder: rem'):
    finetuning.run(_config(), copy)


def test_too_little_memory_for_a_checkpoint_is_not_called_damage(
  copy, monkeypatch
):
  def exhausted(*_, **__):
    raise MemoryError

  monkeypatch.setattr(ocp.CheckpointManager, 'restore', exhausted)
  with pytest.raises(errors.InputError, match='runs out of memory: use'):
    finetuning.run(_config(), copy)


def test_weights_that_are_not_finite_are_said_where_the_log_has_the_loss(
  workdir,
):
  config = _config()
  config.finetuning.update(
    {'log_steps': 1, 'learning_rate': 1e30, 'weight_decay': 1e20}
  )
  config.finetuning.checkpoint_steps = 1
  with pytest.raises(
    errors.InputError, match=r"weights are not finite at step 1, .* 'p.*remove"
  ):
    finetuning.run(config, workdir)


def test_writes_that_failed_are_not_reported_again(caplog):
  log = logging.getLogger('asyncio')

  def fail(message):
    try:
      raise ValueError(message)
    except ValueError:
      log.exception('Task exception was never retrieved')

  with checkpoints.quiet():
    fail('Error writing local file "/5.orbax-checkpoint-tmp/default/49/0.0"')
    assert not caplog.records
    fail('something else')
  assert len(caplog.records) == 1


def test_an_abandoned_write_is_not_reported_later(monkeypatch):
  reported = []
  monkeypatch.setattr(sys, 'unraisablehook', reported.append)
  with checkpoints.quiet():
    pass
  closed = RuntimeError('Event loop is closed')
  abandoned = types.SimpleNamespace(exc_value=closed)
  other = types.SimpleNamespace(exc_value=RuntimeError('something else'))
  sys.unraisablehook(abandoned)
  sys.unraisablehook(other)
  assert reported == [other]


@pytest.mark.parametrize(
  'name',
  [
    *('truncate', 'remove_metadata', 'flip', 'add'),
    *('remove_checksums', 'no_object', 'no_checksums', 'change_progress'),
  ],
)
def test_a_damaged_checkpoint_is_named(copy, name):
  folder = copy.run(CELL).checkpoints / '4'
  what = _damaged(name)(folder)
  with pytest.raises(errors.InputError) as error:
    finetuning.run(_config(), copy)
  message = str(error.value)
  assert str(folder) in message
  assert what in message
  assert 'remove that folder' in message
  assert 'resume from step 2' in message


def test_the_remedy_for_a_damaged_checkpoint(copy, finished):
  shutil.rmtree(copy.run(CELL).checkpoints / '4')
  assert _resume(copy) == 3
  _assert_same(copy, finished)


def test_without_an_older_checkpoint_the_cell_starts_again(copy):
  folder = copy.run(CELL).checkpoints
  shutil.rmtree(folder / '2')
  _damaged('flip')(folder / '4')
  with pytest.raises(errors.InputError, match='start this cell again'):
    finetuning.run(_config(), copy)


def test_a_cell_that_was_begun_is_not_thrown_away(copy):
  """Neither for other options nor for other answers."""
  config = _config()
  config.finetuning.learning_rate = 0.02
  with pytest.raises(
    errors.InputError, match=r'finetuning.learning_rate \(was 0.01, is 0.02\)'
  ):
    finetuning.run(config, copy)
  answers = store.read_responses(copy.responses)
  last = study.selected_ids(copy, 'random', 0)[8]
  store.write_parquet(
    copy.responses,
    pa.table(
      {
        'id': list(answers),
        'response': [*({**answers, last: 'w3'}).values()],
      }
    ),
  )
  with pytest.raises(
    errors.InputError, match=rf'{CELL} .*prompts and answers.*delete'
  ):
    finetuning.run(_config(), copy)
  assert (copy.run(CELL).checkpoints / '4').exists()


def test_a_loss_that_is_not_finite_names_prompts_and_checkpoint(copy):
  """A checkpoint's weights are finite, so this takes a huge step after it."""
  step = trainer_lib.Trainer.step

  def broken_step(self, state, *rest):
    state, loss = step(self, state, *rest)
    return state, loss * float('nan')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trainer_lib.Trainer, 'step', broken_step)
    with pytest.raises(errors.InputError) as error:
      finetuning.run(_config(), copy)
  message = str(error.value)
  assert f'{CELL}: the loss is not finite at step 5' in message
  assert f'the last checkpoint is {copy.run(CELL).checkpoints / "4"}' in message
  # The last batch has the two examples that are left of both epochs.
  assert message.count("'p") == 2


def test_sigterm_ends_a_command_with_143(workdir):
  run = workdir.run(CELL)
  config = _config()
  words = [
    f'--config.{name}={value!r}'
    if isinstance(value, tuple)
    else f'--config.{name}={value}'
    for name, value in {
      'model.path': config.model.path,
      'selection.strategies': ('random',),
      'study.budgets': (9,),
      'study.seeds': (0,),
      'study.full_pool': False,
      'finetuning.epochs': 1000,
      'finetuning.checkpoint_steps': 2,
    }.items()
  ]
  with subprocess.Popen(
    [
      *(sys.executable, '-m', 'edsft_jax.main', 'finetune'),
      *words,
      f'--workdir={workdir.root}',
    ],
    cwd=tiny_study.REPOSITORY,
    env={**os.environ, 'XLA_FLAGS': compilation.xla_flags(num_devices=1)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as command:
    try:
      while command.poll() is None and not (
        run.metrics.exists() and run.metrics.read_text()
      ):
        time.sleep(0.1)
      command.send_signal(signal.SIGTERM)
      _, err = command.communicate(timeout=120)
    finally:
      command.kill()
  assert command.returncode == 143, err
  assert 'Stopped. Run the same command to resume.' in err
  assert 'Traceback' not in err
  assert next(run.checkpoints.iterdir()).name.isdecimal()
