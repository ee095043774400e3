"""One of two processes that run a study's stages together.

Started by test_several_processes.py, with the number of this process, the
coordinator's address and three workdirs:

1. a cell is finetuned;
2. it is finetuned with a SIGTERM to the second process, and once more;
3. models that are there already are evaluated.

Prints the exit code after the signal, and how many steps were left.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import ml_collections
import tiny_study

from edsft_jax import interrupts, pipeline, processes, store
from edsft_jax.finetuning import trainer as trainer_lib

STOPS_AFTER = 3


def config() -> ml_collections.ConfigDict:
  """A cell of five steps, on one device."""
  result = tiny_study.config()
  result.study.budgets = (9,)
  result.finetuning.lora_dropout = 0.2
  result.finetuning.learning_rate = 1e-3
  return result


def _stop_in_the_middle(number: int) -> list[None]:
  """Has the second process get a SIGTERM; returns a list of steps to come."""
  steps: list[None] = []
  step = trainer_lib.Trainer.step

  def counted_step(*args):
    steps.append(None)
    if number == 1 and len(steps) == STOPS_AFTER:
      os.kill(os.getpid(), signal.SIGTERM)
    return step(*args)

  trainer_lib.Trainer.step = counted_step
  return steps


def main(number: int, address: str, *roots: str) -> None:
  """Runs the stages; see the module."""
  processes.start(address, 2, number)
  interrupts.raise_on_signals()
  whole, stopped, trained = (store.Workdir(pathlib.Path(r)) for r in roots)
  on_all = config()
  # Weights and batches are split in every way.
  on_all.mesh.update(data=2, fsdp=2, tensor=2)
  pipeline.run(on_all, whole, ['finetune'])
  steps = _stop_in_the_middle(number)
  try:
    pipeline.run(on_all, stopped, ['finetune'])
  except interrupts.Terminated as stop:
    print(f'stopped: {interrupts.exit_code(stop)}')
    interrupts.forget()
  pipeline.run(on_all, stopped, ['finetune'])
  print(f'steps left: {len(steps) - STOPS_AFTER}')
  pipeline.run(on_all, trained, ['evaluate'])


if __name__ == '__main__':
  main(int(sys.argv[1]), *sys.argv[2:])
