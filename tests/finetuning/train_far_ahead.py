# ruff: noqa: E402
"""Trains a cell of many quick steps on four CPU devices, several times.

Started by test_mesh_steps.py: the number of devices is fixed when jax starts.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile

os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=4 '
  '--xla_cpu_collective_call_warn_stuck_timeout_seconds=5 '
  '--xla_cpu_collective_call_terminate_timeout_seconds=10'
)
sys.path[:0] = [str(path) for path in pathlib.Path(__file__).parents[1:3]]

import numpy as np
import tiny_study

from edsft_jax import console, models, store
from edsft_jax.finetuning import train_loop
from edsft_jax.finetuning.meter import Meter
from edsft_jax.finetuning.progress import CellProgress
from edsft_jax.finetuning.trainer import Trainer
from edsft_jax.mesh import make_mesh
from edsft_jax.models.responses import Example

STEPS, BATCH = 150, 4


def main() -> None:
  """Prints the number of each run that has ended."""
  mesh = make_mesh(data=1, fsdp=2, tensor=2)
  config = models.read_config(tiny_study.MODEL)
  trainer = Trainer(
    lambda: models.load_decoder(tiny_study.MODEL, 'float32', mesh),
    dataclasses.replace(tiny_study.LORA, epochs=STEPS, batch_size=BATCH),
    mesh,
  )
  rng = np.random.default_rng(0)
  example = Example(rng.integers(3, 60, size=14).tolist(), 8, False, False)
  examples = {f'p{i}': example for i in range(BATCH)}
  # Nothing is read between the first step and the last.
  schedule = train_loop.Schedule(checkpoint_steps=STEPS, log_steps=STEPS)
  for number in range(int(sys.argv[1])):
    with tempfile.TemporaryDirectory() as folder:
      workdir = store.Workdir(pathlib.Path(folder))
      run = workdir.run('random-k4-seed0')
      with console.bar('finetune', STEPS, 'steps') as bar:
        watchers = train_loop.Watchers(
          CellProgress(bar, 'test'), Meter(config, 'lora', mesh)
        )
        train_loop.train(
          trainer, run, examples, 0, schedule=schedule, watchers=watchers
        )
    print('ended', number, flush=True)


if __name__ == '__main__':
  main()
