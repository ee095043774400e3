"""Times finetuning against torch, transformers and peft, side by side.

  pip install -e '.[bench]'
  python scripts/benchmark_finetuning.py smollm2 --model HF_DIR --prompts FILE
  python scripts/benchmark_finetuning.py full
  python scripts/benchmark_finetuning.py gpu_smollm2 gpu_7b --peer_python PYTHON

Both sides train on the same batches, each run in a process of its own, in
turns. The first step compiles; the median of the others counts as warm.

Cases:
  smollm2      LoRA on the model given, 16 examples of 60-250 tokens per step
               of a JSONL file with prompt (or instruction) and response.
  full         full finetuning of a random model of 58M parameters, 8 x 256
               tokens, half of them prompt.
  gpu_smollm2  LoRA on a random model of SmolLM2-135M's shape in bfloat16, 16 x
               2,048 tokens. Needs no files.
  gpu_7b       the same at the shape of Llama 2 7B.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import command_line
from contest import peak_bytes, show, time_command
from model_shapes import SHAPES
import numpy as np
from prompt_files import load_format, read_rows

from edsft_jax import huge_pages

SCRIPTS = pathlib.Path(__file__).parent
FIELDS = (
  'case',
  'contestant',
  'step_seconds',
  'ratio',
  'tokens_per_second',
  'tflop_per_second',
  'whole_seconds',
  'peak_gib',
  'first_loss',
)
RANK = 16
# Case -> name of the random model.
MODELS = {
  'full': 'random_58m',
  'gpu_smollm2': 'smollm2_135m',
  'gpu_7b': 'llama2_7b',
}
PEERS = {
  'smollm2': ('padded',),
  'full': ('response', 'response+compile'),
  'gpu_smollm2': ('padded',),
  'gpu_7b': ('padded', 'padded+checkpoint'),
}
# Rows per micro-batch of the peer, where whole batches do not fit.
PEER_ROWS = {'gpu_smollm2': 4, 'gpu_7b': 1}


@dataclasses.dataclass(frozen=True)
class Run:
  """What one process reports.

  Attributes:
    whole: seconds from its start to the end of the last step.
    seconds: of each step.
    losses: of each step.
    peak: bytes, of the device's memory or of the process.
  """

  whole: float
  seconds: list[float]
  losses: list[float]
  peak: int


def real_steps(
  model: pathlib.Path, prompts: pathlib.Path, num_steps: int
) -> list[list[dict[str, Any]]]:
  """Batches of 16 real examples of 60 to 250 tokens.

  Raises:
    InputError: the file has too few, or a row without a prompt.
  """
  from edsft_jax import errors
  from edsft_jax.models import responses

  count = 16 * num_steps
  prompt_format = load_format(model)
  examples = []
  for row in read_rows(prompts, 'response'):
    prompt = row.get('prompt') or row.get('instruction')
    if not prompt:
      raise errors.InputError(
        f'{prompts} has a row without prompt or instruction: add it'
      )
    if row.get('context'):
      prompt = f'{prompt}\n\n{row["context"]}'
    example = responses.encode(prompt_format, prompt, row['response'], 2048)
    if 60 <= len(example.tokens) <= 250:
      examples.append(
        {'tokens': example.tokens, 'num_response': example.num_response}
      )
    if len(examples) == count:
      break
  if len(examples) < count:
    raise errors.InputError(
      f'{prompts} has {len(examples)} examples of 60 to 250 tokens, and '
      f'{num_steps} steps take {count}: lower --steps'
    )
  return [examples[i : i + 16] for i in range(0, len(examples), 16)]


def random_steps(
  rows: int, length: int, vocabulary: int, num_steps: int
) -> list[list[dict[str, Any]]]:
  """Batches of random tokens, half of them response."""
  rng = np.random.default_rng(0)
  return [
    [
      {
        'tokens': rng.integers(3, vocabulary, size=length).tolist(),
        'num_response': length // 2,
      }
      for _ in range(rows)
    ]
    for _ in range(num_steps)
  ]


def make_job(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
  """What both sides do."""
  from edsft_jax.models import lora

  job: dict[str, Any] = {
    'model': '',
    'method': 'full' if case == 'full' else 'lora',
    'dtype': 'bfloat16' if case.startswith('gpu') else 'float32',
    'rank': RANK,
    'targets': lora.TARGETS,
    'peer_rows': PEER_ROWS.get(case, 0),
    'options': arguments.options,
  }
  if case == 'smollm2':
    job['model'] = str(arguments.model)
    job['steps'] = real_steps(
      arguments.model, arguments.prompts, arguments.steps
    )
  else:
    rows, length = (8, 256) if case == 'full' else (arguments.rows, 2048)
    vocabulary = SHAPES[MODELS[case]]['vocab_size']
    job['steps'] = random_steps(rows, length, vocabulary, arguments.steps)
  return job


def train(folder: pathlib.Path) -> None:
  """Our side, in this process; prints a `Run` as JSON."""
  started = time.perf_counter()
  from flax import nnx

  from edsft_jax import models
  from edsft_jax.finetuning.memory import MemoryOptions
  from edsft_jax.finetuning.trainer import Hyperparameters, Trainer
  from edsft_jax.mesh import make_mesh
  from edsft_jax.models.responses import Example

  job = json.loads((folder / 'job.json').read_text())
  mesh = make_mesh()

  def load() -> models.Decoder:
    if job['model']:
      return models.load_decoder(pathlib.Path(job['model']), job['dtype'], mesh)
    config = models.read_config(folder)
    return models.Decoder(config, rngs=nnx.Rngs(0), dtype=job['dtype'])

  hyperparameters = Hyperparameters(
    method=job['method'],
    lora_rank=job['rank'],
    lora_alpha=2.0 * job['rank'],
    lora_dropout=0.0,
    rslora=False,
    lora_targets=tuple(job['targets']),
    epochs=1,
    batch_size=len(job['steps'][0]),
    max_length=0,
    learning_rate=1e-4,
    schedule='cosine',
    warmup_fraction=0.0,
    weight_decay=0.0,
    clip_norm=1.0,
  )
  options = MemoryOptions(**job['options'])
  trainer = Trainer(load, hyperparameters, mesh, options)
  state = trainer.init_state(0)
  seconds, losses = [], []
  for rows in job['steps']:
    start = time.perf_counter()
    examples = [
      Example(row['tokens'], row['num_response'], False, False) for row in rows
    ]
    state, loss = trainer.step(state, examples, np.float32(1e-4))
    losses.append(float(loss))
    seconds.append(time.perf_counter() - start)
  whole = time.perf_counter() - started
  result = Run(whole, seconds, losses, peak_bytes())
  print(json.dumps(dataclasses.asdict(result)))


def flop_per_token(config: dict[str, Any], method: str) -> float:
  """Products of weights, forward and backward; attention left out."""
  width, mlp = config['hidden_size'], config['intermediate_size']
  heads = config['num_attention_heads']
  kv_width = width // heads * config['num_key_value_heads']
  layer = 2 * width * width + 2 * width * kv_width + 3 * width * mlp
  # Half of the positions have logits.
  weights = (
    layer * config['num_hidden_layers'] + width * config['vocab_size'] / 2
  )
  return weights * (6 if method == 'full' else 4)


def compete(
  case: str, arguments: argparse.Namespace
) -> Iterator[dict[str, str]]:
  """One row per contestant."""
  job = make_job(case, arguments)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'job.json').write_text(json.dumps(job))
    config_file = folder / 'config.json'
    if case in MODELS:
      dtype = {'torch_dtype': job['dtype']}
      config_file.write_text(json.dumps(SHAPES[MODELS[case]] | dtype))
    else:
      config_file = arguments.model / 'config.json'
    config = json.loads(config_file.read_text())
    peer = str(SCRIPTS / 'finetune_with_peft.py')
    sides = {'ours': [sys.executable, __file__, '--train', name]}
    if arguments.peer_python:
      for variant in PEERS[case]:
        sides[f'peft {variant}' if job['method'] == 'lora' else variant] = [
          arguments.peer_python,
          peer,
          name,
          variant,
        ]
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(arguments.repeats):
      for side, command in sides.items():
        _, output = time_command(command)
        runs[side].append(Run(**json.loads(output.splitlines()[-1])))
        # Kept if another side fails or takes too long.
        print(f'{case}, {side}: {runs[side][-1]}', file=sys.stderr, flush=True)
  tokens = statistics.mean(
    sum(len(row['tokens']) for row in rows) for rows in job['steps']
  )
  flop = tokens * flop_per_token(config, job['method'])
  warm = {
    side: statistics.median(s for r in of_side for s in r.seconds[1:])
    for side, of_side in runs.items()
  }
  for side, of_side in runs.items():
    yield {
      'case': case,
      'contestant': side,
      'step_seconds': f'{warm[side]:.3f}',
      'ratio': f'{warm[side] / warm["ours"]:.2f}',
      'tokens_per_second': f'{tokens / warm[side]:,.0f}',
      'tflop_per_second': f'{flop / warm[side] / 1e12:.2f}',
      'whole_seconds': f'{min(r.whole for r in of_side):.1f}',
      'peak_gib': f'{max(r.peak for r in of_side) / 2**30:.2f}',
      'first_loss': f'{of_side[0].losses[0]:.5f}',
    }


def main() -> None:
  """Runs the requested cases, prints a table and writes it."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  command_line.add_names(parser, PEERS, 'see above')
  add('--train', type=pathlib.Path, help=argparse.SUPPRESS)
  add('--model', type=command_line.existing_folder, help='for smollm2')
  add('--prompts', type=command_line.existing_file, help='for smollm2')
  add('--steps', type=command_line.positive, default=4)
  add(
    '--rows', type=command_line.positive, default=16, help='per step, gpu cases'
  )
  add('--repeats', type=command_line.positive, default=1)
  add(
    '--options',
    type=json.loads,
    default='{}',
    help='JSON of finetuning.packing, .micro_batch_size and .remat',
  )
  add(
    '--peer_python',
    default=sys.executable,
    help="a Python with torch, transformers and peft; '': ours alone",
  )
  add('--csv', default='', help='file to write; none by default')
  arguments = parser.parse_args()
  if arguments.train:
    # As edsft_jax.main does.
    huge_pages.restart()
    train(arguments.train)
    return
  if arguments.steps == 1:
    parser.error('--steps: at least 2, since the first compiles')
  if not arguments.names:
    parser.error(f'name cases of {", ".join(PEERS)}')
  if 'smollm2' in arguments.names and not (
    arguments.model and arguments.prompts
  ):
    parser.error('smollm2 needs --model and --prompts')
  rows = (row for case in arguments.names for row in compete(case, arguments))
  show(FIELDS, rows, arguments.csv)


if __name__ == '__main__':
  command_line.run(main)
