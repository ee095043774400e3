"""Counts the hours and the memory of a paper's study on accelerators.

  python scripts/count_hours.py bhatt2024_flan

A calculation, not a measurement: the operations and bytes of all tokens without
padding, divided by what a device achieves. README.md has the measured shares on
an H100 for this shape of model: half of the peak FLOP/s while reading and 0.6
of the peak bandwidth while decoding. Finetuning was not measured, and 0.4 is
assumed. Several devices divide the work evenly; loading and compiling are left
out. Mean lengths (DATA, BENCHMARKS) are rounded guesses. `plan` measures
scoring on the machine itself.
"""

from collections.abc import Iterator
import dataclasses
import importlib
import pathlib
import sys

import command_line
from count_memory import decoder_config
import jax
import ml_collections

from edsft_jax import study
from edsft_jax.finetuning import footprint, loss, options
from edsft_jax.finetuning.memory import SLOTS, MemoryOptions
from edsft_jax.inference import memory
from edsft_jax.inference.throughput import PEAKS, Costs
from edsft_jax.mesh import make_mesh
from edsft_jax.models.split_product import NUM_PARTS

MODEL = '7B (Llama 2)'
# Shares of the peak.
READING, DECODING, FINETUNING = 0.5, 0.6, 0.4


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices, and how many of them hold a copy of the weights together."""

  name: str
  kind: str
  count: int
  fsdp: int
  batch_tokens: int


MACHINES = (
  Machine('1 H100', 'NVIDIA H100 80GB HBM3', 1, 1, 32_768),
  Machine('8 H100', 'NVIDIA H100 80GB HBM3', 8, 1, 32_768),
  # A host has four chips of 16 GB, which hold a copy.
  Machine('v5e-16', 'TPU v5 lite', 16, 4, 16_384),
)


@dataclasses.dataclass(frozen=True)
class Texts:
  """Mean lengths in tokens, and how many there are."""

  count: int
  read: int
  new: int


DATA = {
  'flan': Texts(100_000, 360, 30),
  'dolly': Texts(15_000, 120, 90),
}
# Module of configs/ -> its data.
CONFIGS = {
  'bhatt2024_flan': 'flan',
  'arabelly2025_flan': 'flan',
  'arabelly2025_dolly': 'dolly',
}
# Worked examples are read once per subject; they are spread over the items.
BENCHMARKS = (
  Texts(14_042, 130, 0),
  Texts(6_511, 120, 150),
  Texts(805, 40, 300),
)


def finetuned_cells(
  c: ml_collections.ConfigDict, num_prompts: int
) -> list[study.Cell]:
  """All cells but the one without finetuning."""
  return [*study.cells(c), *study.full_pool_cells(c, num_prompts)]


def generation_seconds(
  texts: Texts, costs: Costs, machine: Machine, products: int
) -> float:
  """Seconds to read prompts and continue each by all its new tokens."""
  flops, bandwidth = PEAKS[machine.kind]
  read = texts.count * costs.flops(0, texts.read, 0) * products
  seconds = read / (flops * READING)
  if texts.new:
    length = texts.read + texts.new
    slots = machine.batch_tokens // length
    # A copy of the weights is on `fsdp` devices, which read it together.
    per_step = costs.step_bytes(slots, length) / (bandwidth * DECODING)
    seconds += texts.count / slots * texts.new * per_step
  return seconds / machine.count


def hours(
  c: ml_collections.ConfigDict, data: Texts, machine: Machine
) -> dict[str, float]:
  """Stage -> hours."""
  model = decoder_config(MODEL)
  split = c.model.dtype == 'bfloat16_weights'
  costs = Costs(model, 2, 1, 4 if split else 2)
  products = NUM_PARTS if split else 1
  flops, _ = PEAKS[machine.kind]
  scored = dataclasses.replace(data, new=c.scoring.max_new_tokens)
  trained = finetuned_cells(c, data.count)
  examples = c.finetuning.epochs * sum(cell.budget for cell in trained)
  # Forward, backward without gradients of weights, and forward again.
  passes = 2 + (c.finetuning.remat == 'layer')
  per_example = costs.flops(0, data.read + data.new, data.new)
  training = examples * per_example * passes * products
  evaluated = sum(
    generation_seconds(texts, costs, machine, products) for texts in BENCHMARKS
  )
  seconds = {
    'score': generation_seconds(scored, costs, machine, products),
    'finetune': training / (flops * FINETUNING * machine.count),
    'evaluate': evaluated * (len(trained) + 1),
  }
  return {stage: value / 3600 for stage, value in seconds.items()}


def gigabytes(
  c: ml_collections.ConfigDict, data: Texts, machine: Machine
) -> dict[str, float]:
  """Stage -> GB per device."""
  model = decoder_config(MODEL)
  scoring = memory.count(
    model,
    c.model.dtype,
    batch_tokens=machine.batch_tokens,
    prompt_length=512,
    num_new=c.scoring.max_new_tokens,
  )
  devices = jax.devices()[: machine.count]
  setup = footprint.Setup(
    model,
    c.model.dtype,
    options.hyperparameters(c.finetuning),
    MemoryOptions.of(c.finetuning),
    make_mesh(-1, machine.fsdp, devices=devices),
    of_platform='gpu',
  )
  rows = SLOTS // c.finetuning.max_length * machine.count
  step = footprint.count(
    setup, (rows, c.finetuning.max_length), loss.MAX_LOGITS
  )
  return {
    'score': scoring.total / machine.fsdp / 1e9,
    'finetune': step.total / 1e9,
  }


def rows(c: ml_collections.ConfigDict, data: Texts) -> Iterator[str]:
  """Lines of a Markdown table."""
  yield (
    '| machine | score | finetune | evaluate | all | memory: score | finetune |'
  )
  yield '|---' * 7 + '|'
  for machine in MACHINES:
    taken = hours(c, data, machine)
    needed = gigabytes(c, data, machine)
    cells = [
      machine.name,
      *(f'{value:,.1f} h' for value in taken.values()),
      f'{sum(taken.values()):,.0f} h',
      *(f'{value:.0f} GB' for value in needed.values()),
    ]
    yield f'| {" | ".join(cells)} |'


def main() -> None:
  """Prints the table."""
  parser = command_line.parser(__doc__)
  parser.add_argument('config', choices=CONFIGS, help='a module of configs/')
  arguments = parser.parse_args()
  # Only the sizes of a mesh matter here.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 16)
  # The folder configs is not installed.
  sys.path.append(str(pathlib.Path(__file__).parents[1]))
  c = importlib.import_module(f'configs.{arguments.config}').get_config()
  data = DATA[CONFIGS[arguments.config]]
  trained = finetuned_cells(c, data.count)
  print(
    f'{len(trained)} cells, {sum(cell.budget for cell in trained):,} examples '
    f'x {c.finetuning.epochs} epochs of {data.read + data.new} tokens\n'
  )
  for row in rows(c, data):
    print(row)


if __name__ == '__main__':
  command_line.run(main)
