"""Two processes of four devices finetune and evaluate as one device does."""

from collections.abc import Sequence
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import run_together
import safetensors.numpy
import tiny_study
import two_processes

from edsft_jax import evaluation, finetuning, store

pytestmark = pytest.mark.slow

CELL = 'random-k9-seed0'
BASE = 'no_finetuning-k0-seed0'


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> store.Workdir:
  """By one device."""
  workdir = tiny_study.make(tmp_path_factory.mktemp('alone'))
  with tiny_study.on_one_device():
    finetuning.run(run_together.config(), workdir)
    evaluation.run(run_together.config(), workdir)
  return workdir


@pytest.fixture(scope='module')
def together(alone, tmp_path_factory):
  """The workdirs of run_together.py, and what its processes returned."""
  root = tmp_path_factory.mktemp('together')
  workdirs = [tiny_study.make(root / str(i)) for i in range(2)]
  shutil.copytree(alone.root, root / '2')
  workdirs.append(store.Workdir(root / '2'))
  for cell in (CELL, BASE):
    shutil.rmtree(workdirs[2].run(cell).evaluations)
  results = two_processes.run(
    lambda number, address: [
      *('tests/run_together.py', str(number), address),
      *(str(workdir.root) for workdir in workdirs),
    ]
  )
  for result in results:
    assert result.returncode == 0, result.stderr
  return workdirs, results


def _assert_same_training(workdir: store.Workdir, alone: store.Workdir) -> None:
  lines, expected = (
    store.read_jsonl(w.run(CELL).metrics) for w in (workdir, alone)
  )
  for line, other in zip(lines, expected, strict=True):
    assert line == pytest.approx(other, abs=1e-5)
  (name,) = (p.name for p in alone.run(CELL).model.glob('*.safetensors'))
  weights, others = (
    safetensors.numpy.load_file(w.run(CELL).model / name)
    for w in (workdir, alone)
  )
  assert weights.keys() == others.keys()
  for tensor, value in weights.items():
    np.testing.assert_allclose(value, others[tensor], atol=1e-5, rtol=0)


def _assert_same_bytes(workdir: store.Workdir, whole: store.Workdir) -> None:
  ours, theirs = (w.run(CELL).root for w in (workdir, whole))
  for name in ('metrics.jsonl', 'cell.json', 'model/adapter_model.safetensors'):
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
  assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}


def _assert_same_items(workdir: store.Workdir, alone: store.Workdir) -> None:
  for cell in (BASE, CELL):
    rows, expected = (
      store.read_jsonl(w.run(cell).items('heldout')) for w in (workdir, alone)
    )
    for row, other in zip(rows, expected, strict=True):
      assert row == {**other, 'loss': pytest.approx(other['loss'], abs=1e-5)}
    folder = workdir.run(cell).evaluations / 'heldout'
    assert {p.name for p in folder.iterdir()} == {
      'eval.json',
      'items.jsonl',
      'timing.json',
    }


def test_the_same_training(together, alone):
  workdirs, results = together
  _assert_same_training(workdirs[0], alone)
  # Only the first process prints, and records the stage.
  assert '1 cell, 5 steps' in results[0].stdout
  assert 'finetune' not in results[1].stdout
  assert store.Manifest(workdirs[0]).is_done('finetune')


def test_a_signal_to_one_stops_both_after_the_same_step(together):
  workdirs, results = together
  for result in results:
    # gloo writes between other lines, and in parts.
    assert re.findall(r'stopped: \d+|steps left: \d+', result.stdout) == [
      'stopped: 143',
      'steps left: 2',
    ]
  _assert_same_bytes(workdirs[1], workdirs[0])


def test_the_same_items(together, alone):
  workdirs, results = together
  _assert_same_items(workdirs[2], alone)
  assert '2 models on 11 items of heldout' in results[0].stdout
  assert 'items in one of 2 processes' in results[0].stderr


def _command(
  stage: str, workdir: store.Workdir, address: str, number: int, *words: str
) -> list[str]:
  return [
    *('-m', 'edsft_jax.main', stage, f'--workdir={workdir.root}'),
    *tiny_study.words(run_together.config()),
    *(f'--coordinator={address}', '--num_processes=2'),
    *(f'--process_id={number}', *words),
  ]


def _run(
  stage: str, workdir: store.Workdir, *words: str
) -> list[subprocess.CompletedProcess[str]]:
  return two_processes.run(
    lambda number, address: _command(stage, workdir, address, number, *words)
  )


def _succeeded(results: Sequence[subprocess.CompletedProcess[str]]) -> bool:
  return all(result.returncode == 0 for result in results)


def test_full_finetuning_of_split_weights(tmp_path):
  """They are gathered for the model, and so is the best state."""
  config = run_together.config()
  config.finetuning.method = 'full'
  config.finetuning.eval_steps = 2
  config.finetuning.keep_best = True
  alone, workdir = (tiny_study.make(tmp_path / x) for x in ('one', 'two'))
  with tiny_study.on_one_device():
    finetuning.run(config, alone)
  words = tiny_study.words(config)
  assert _succeeded(_run('finetune', workdir, '--config.mesh.fsdp=8', *words))
  _assert_same_training(workdir, alone)


def test_merging_and_evaluating_a_model_that_spans_both(alone, tmp_path):
  shutil.copytree(alone.root, tmp_path / 'copy')
  workdir = store.Workdir(tmp_path / 'copy')
  words = ('--config.mesh.fsdp=8', '--config.finetuning.export=both')
  for cell in (CELL, BASE):
    shutil.rmtree(workdir.run(cell).evaluations)
  assert _succeeded(_run('finetune', workdir, *words))
  assert workdir.run(CELL).merged.exists()
  assert _succeeded(_run('evaluate', workdir, *words))
  _assert_same_items(workdir, alone)


def test_sigterm_to_one_ends_both_commands_with_143(tmp_path):
  whole, stopped = (tiny_study.make(tmp_path / x) for x in ('whole', 'stopped'))
  words = ('--config.mesh.fsdp=2', '--config.finetuning.epochs=100')
  with two_processes.started(
    lambda number, address: _command(
      'finetune', stopped, address, number, *words
    )
  ) as running:
    metrics = stopped.run(CELL).metrics
    while not (metrics.exists() and metrics.read_text()):
      assert running[1].poll() is None
      time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    results = two_processes.results(running)
  assert [result.returncode for result in results] == [143, 143]
  told = ''.join(result.stderr for result in results)
  assert told.count('Stopped. Run the same command to resume.') == 1
  assert not stopped.run(CELL).model.exists()
  shutil.copytree(stopped.root, tmp_path / 'alone')
  for workdir in (stopped, whole):
    assert _succeeded(_run('finetune', workdir, *words))
  _assert_same_bytes(stopped, whole)
  # One process can continue, too.
  config = run_together.config()
  config.finetuning.epochs = 100
  with tiny_study.on_one_device():
    finetuning.run(config, store.Workdir(tmp_path / 'alone'))
  _assert_same_training(store.Workdir(tmp_path / 'alone'), whole)
