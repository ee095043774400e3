"""What the launchers would run, by stand-ins for gcloud and srun."""

import os
import subprocess

from places import REPOSITORY
import pytest

# Every kind of character that a careless shell would change.
WORDS = [
  'pool',
  'score',
  '--config.study.budgets=(5, 10)',
  '--config.prompt.separator=$HOME `x` "y" \'z\' *',
  '--workdir=/shared/my runs/ä',
]


@pytest.fixture
def run(tmp_path):
  """Runs a launcher; its result's stdout has the stand-in's arguments."""
  for name in ('gcloud', 'srun'):
    stand_in = tmp_path / name
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@"\n')
    stand_in.chmod(0o755)

  def run(launcher, *arguments):
    return subprocess.run(
      ['bash', REPOSITORY / 'scripts' / launcher, *arguments],
      env={
        **os.environ,
        'VENV': '/a b',
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      },
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def _words(result):
  assert result.returncode == 0, result.stderr
  return result.stdout.split('\0')[:-1]


def test_slurm_starts_a_process_per_task(run):
  assert _words(run('launch_slurm.sh', *WORDS)) == [
    *('srun', '--gpu-bind=none', '/a b/bin/python', '-m', 'edsft_jax.main'),
    *WORDS,
  ]


def test_slurm_gives_each_task_the_processors_asked_for(run, monkeypatch):
  monkeypatch.setenv('SLURM_CPUS_PER_TASK', '4')
  assert _words(run('launch_slurm.sh', *WORDS))[:3] == [
    *('srun', '--gpu-bind=none', '--cpus-per-task=4')
  ]


def test_a_pod_slice_runs_one_command_on_all_hosts(run):
  *gcloud, command = _words(
    run('launch_tpu_pod.sh', 'my-pod', 'us-east5-a', '/my code', '--', *WORDS)
  )
  assert gcloud == [
    *('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'my-pod'),
    *('--zone=us-east5-a', '--worker=all'),
  ]
  # The shell on the host takes it apart again.
  seen = subprocess.run(
    [
      'bash',
      '-c',
      command.removeprefix('--command=').replace(
        'cd /my\\ code && exec .venv/bin/python', 'printf "%s\\0"'
      ),
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert _words(seen) == ['-m', 'edsft_jax.main', *WORDS, '--coordinator=auto']


@pytest.mark.parametrize(
  'arguments', [(), ('a', 'b', 'c', 'pool'), ('a', '--')]
)
def test_a_pod_slice_needs_its_arguments(run, arguments):
  result = run('launch_tpu_pod.sh', *arguments)
  assert result.returncode == 2
  assert 'NAME ZONE FOLDER --' in result.stderr
  assert not result.stdout
