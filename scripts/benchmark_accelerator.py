"""Times scoring on an accelerator next to transformers on the same card.

  python scripts/benchmark_accelerator.py --model llama2_7b --dtype bfloat16

Models are random, of real shapes: speed does not depend on the weights. Each
side runs in a process of its own, one after the other, so that both have the
whole memory; each runs a case once to warm up, and the fastest of the repeats
counts. The peer's prompts are sorted by length, and the fastest of its batch
sizes counts. The table is CSV.
"""

import argparse
from collections.abc import Callable, Iterator
import csv
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import command_line
import contest
from model_shapes import SHAPES, read_config
import numpy as np

if TYPE_CHECKING:
  from edsft_jax.scoring.scorer import Scorer

NUM_NEW = 64
FIELDS = (
  'model',
  'dtype',
  'lengths',
  'side',
  'case',
  'seconds',
  'tokens_per_second',
  'share_of_peak',
  'peak_gib',
  'first_seconds',
)


def make_tokens(arguments: argparse.Namespace) -> list[np.ndarray]:
  """Random prompts of lengths in the given range, sorted."""
  rng = np.random.default_rng(0)
  low, high = arguments.lengths
  sizes = np.sort(rng.integers(low, high + 1, arguments.prompts))
  vocab = SHAPES[arguments.model]['vocab_size']
  return [rng.integers(3, vocab, size).astype(np.int32) for size in sizes]


def fastest(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
  """Seconds of the fastest call, and of the first, which compiles."""
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return min(seconds[1:]), seconds[0]


def ours(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """Rows of this library."""
  import jax

  from edsft_jax.inference.throughput import PEAKS, Work

  peaks = PEAKS.get(jax.devices()[0].device_kind)
  tokens = make_tokens(arguments)
  scorer = _scorer(arguments, tokens)
  reading_seconds = 0.0
  for case in ('features', 'generate'):
    decoding = case == 'generate'
    done: list[Work] = []

    def run(decoding: bool = decoding, done: list[Work] = done) -> None:
      done.clear()
      scorer(tokens, np.full(len(tokens), decoding), done.append)

    seconds, first = fastest(run, arguments.repeats)
    work = sum(done, Work())
    share = ''
    if peaks and decoding:
      # Reading prompts takes as long as in the other case.
      rate = work.bytes / (seconds - reading_seconds)
      share = f'{rate / peaks[1]:.0%} of bandwidth in decoding'
    elif peaks:
      share = f'{work.flops / seconds / peaks[0]:.0%} of FLOP/s'
    count = NUM_NEW * len(tokens) if decoding else sum(map(len, tokens))
    yield {
      'side': f'ours, batch_tokens {arguments.batch_tokens}',
      'case': case,
      'seconds': seconds,
      'tokens_per_second': count / seconds,
      'share_of_peak': share,
      'peak_gib': contest.peak_bytes() / 2**30,
      'first_seconds': first,
    }
    reading_seconds = seconds


def _scorer(
  arguments: argparse.Namespace, tokens: list[np.ndarray]
) -> 'Scorer':
  """The scorer of a random model."""
  from flax import nnx

  from edsft_jax import inference, models
  from edsft_jax.mesh import make_mesh
  from edsft_jax.scoring.scorer import Scorer

  mesh = make_mesh()
  weight_dtype, activation_dtype = models.parse_dtype(arguments.dtype)
  decoder = models.Decoder(
    read_config(SHAPES[arguments.model]),
    rngs=nnx.Rngs(0),
    dtype=weight_dtype,
    activation_dtype=activation_dtype,
  )
  return Scorer(
    decoder,
    mesh,
    inference.choose_shapes(decoder, mesh, [len(ids) for ids in tokens]),
    end_ids=(),
    max_new_tokens=NUM_NEW,
    batch_tokens=arguments.batch_tokens,
    max_rows=len(tokens),
    prompt_scores=False,
  )


def peer(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """Rows of transformers, with its fastest batch size per case."""
  from score_with_transformers import score
  import torch
  import transformers

  fields = SHAPES[arguments.model]
  config = transformers.AutoConfig.for_model(
    **{name: x for name, x in fields.items() if name != 'architectures'}
  )
  with torch.device(arguments.device):
    model = transformers.AutoModelForCausalLM.from_config(
      config, dtype=getattr(torch, arguments.dtype)
    ).eval()
  model.generation_config.eos_token_id = None
  rows = [ids.tolist() for ids in make_tokens(arguments)]
  for case, num_new in (('features', 0), ('generate', NUM_NEW)):
    best: dict[str, Any] = {}
    for size in arguments.batch_sizes:

      def run(size: int = size, num_new: int = num_new) -> None:
        for start in range(0, len(rows), size):
          score(model, rows[start : start + size], num_new, False)

      try:
        seconds, first = fastest(run, arguments.repeats)
      except torch.OutOfMemoryError:
        continue
      count = len(rows) * num_new if num_new else sum(map(len, rows))
      if not best or seconds < best['seconds']:
        best = {
          'side': f'transformers, batches of {size}',
          'case': case,
          'seconds': seconds,
          'tokens_per_second': count / seconds,
          'first_seconds': first,
        }
        if arguments.device == 'cuda':
          best['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    yield best


SIDES = {'ours': ours, 'peer': peer}


def write_rows(
  rows: Iterator[dict[str, Any]], arguments: argparse.Namespace
) -> None:
  """Prints the rows of a side as CSV, as they come."""
  writer = csv.DictWriter(sys.stdout, FIELDS)
  for row in rows:
    row |= {
      'model': arguments.model,
      'dtype': arguments.dtype,
      'lengths': '-'.join(map(str, arguments.lengths)),
    }
    writer.writerow(
      {
        name: f'{value:.2f}' if isinstance(value, float) else value
        for name, value in row.items()
      }
    )
    sys.stdout.flush()


def main() -> None:
  """Runs both sides, prints a table as CSV."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('--model', choices=SHAPES, default='smollm2_135m')
  add(
    '--dtype',
    choices=('bfloat16', 'bfloat16_weights', 'float32'),
    default='bfloat16',
    help='model.dtype; bfloat16_weights has no peer: add --side ours',
  )
  add('--prompts', type=command_line.positive, default=256, help='number')
  add(
    '--lengths',
    type=command_line.positive,
    nargs=2,
    default=(256, 256),
    help='of prompts, in tokens',
  )
  add(
    '--batch_tokens',
    type=command_line.positive,
    default=2**15,
    help='on our side',
  )
  add(
    '--batch_sizes',
    type=command_line.positive,
    nargs='+',
    default=[32, 64, 128, 256],
  )
  add('--repeats', type=command_line.positive, default=2)
  add('--device', default='cuda', help="the peer's device")
  add('--peer_python', default=sys.executable, help='interpreter with torch')
  add('--side', choices=SIDES, help='one side only')
  arguments = parser.parse_args()
  if arguments.side:
    write_rows(SIDES[arguments.side](arguments), arguments)
    return
  print(','.join(FIELDS), flush=True)
  for side, python in (
    ('ours', sys.executable),
    ('peer', arguments.peer_python),
  ):
    command = [python, __file__, *sys.argv[1:], '--side', side]
    if code := subprocess.run(command, check=False).returncode:
      raise SystemExit(code)


if __name__ == '__main__':
  command_line.run(main)
