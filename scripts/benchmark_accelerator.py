"""Times scoring on an accelerator next to transformers on the same card.

  python scripts/benchmark_accelerator.py --model llama2_7b --dtype bfloat16

Models are random, of real shapes: speed does not depend on the weights. Each
side runs in a process of its own, one after the other, so that both have the
whole memory; each runs a case once to warm up, and the fastest of the repeats
counts. The peer's prompts are sorted by length, and the fastest of its batch
sizes counts.
"""

import argparse
from collections.abc import Callable, Iterator
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from model_shapes import SHAPES
import numpy as np

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
  from flax import nnx
  import jax

  from edsft_jax import inference, models
  from edsft_jax.inference import throughput
  from edsft_jax.mesh import make_mesh
  from edsft_jax.scoring.scorer import Scorer

  mesh = make_mesh()
  device = jax.devices()[0]
  peaks = throughput.PEAKS.get(device.device_kind)
  with tempfile.TemporaryDirectory() as folder:
    config_file = pathlib.Path(folder) / 'config.json'
    config_file.write_text(json.dumps(SHAPES[arguments.model]))
    config = models.read_config(folder)
  weight_dtype, activation_dtype = models.parse_dtype(arguments.dtype)
  decoder = models.Decoder(
    config,
    rngs=nnx.Rngs(0),
    dtype=weight_dtype,
    activation_dtype=activation_dtype,
  )
  tokens = make_tokens(arguments)
  lengths = [len(ids) for ids in tokens]
  scorer = Scorer(
    decoder,
    mesh,
    inference.choose_shapes(decoder, mesh, lengths),
    end_ids=(),
    max_new_tokens=NUM_NEW,
    batch_tokens=arguments.batch_tokens,
    max_rows=len(tokens),
    prompt_scores=False,
  )
  seconds_before = 0.0
  for case in ('features', 'generate'):
    work = throughput.Work()

    def add(more: throughput.Work) -> None:
      nonlocal work
      work += more

    def run(case: str = case) -> None:
      nonlocal work
      work = throughput.Work()
      scorer(tokens, np.full(len(tokens), case == 'generate'), add)

    seconds, first = fastest(run, arguments.repeats)
    new = NUM_NEW * len(tokens)
    decoding = case == 'generate'
    share = ''
    if peaks and decoding:
      # Reading prompts takes as long as in the other case.
      rate = work.bytes / (seconds - seconds_before)
      share = f'{rate / peaks[1]:.0%} of bandwidth in decoding'
    elif peaks:
      share = f'{work.flops / seconds / peaks[0]:.0%} of FLOP/s'
    yield {
      'side': f'ours, batch_tokens {arguments.batch_tokens}',
      'case': case,
      'seconds': seconds,
      'tokens_per_second': (new if decoding else sum(lengths)) / seconds,
      'share_of_peak': share,
      'peak_gib': (device.memory_stats() or {}).get('peak_bytes_in_use', 0)
      / 2**30,
      'first_seconds': first,
    }
    seconds_before = seconds


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


def main() -> None:
  """Runs both sides, prints a table as CSV."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', choices=SHAPES, default='smollm2_135m')
  parser.add_argument(
    '--dtype',
    choices=('bfloat16', 'bfloat16_weights', 'float32'),
    default='bfloat16',
    help='model.dtype; bfloat16_weights has no peer: add --side ours',
  )
  parser.add_argument('--prompts', type=int, default=256)
  parser.add_argument('--lengths', type=int, nargs=2, default=(256, 256))
  parser.add_argument('--batch_tokens', type=int, default=2**15)
  parser.add_argument(
    '--batch_sizes', type=int, nargs='+', default=[32, 64, 128, 256]
  )
  parser.add_argument('--repeats', type=int, default=2)
  parser.add_argument('--device', default='cuda', help="of the peer's torch")
  parser.add_argument(
    '--peer_python', default=sys.executable, help='interpreter with torch'
  )
  parser.add_argument('--side', choices=('ours', 'peer'), help='one side only')
  arguments = parser.parse_args()
  if arguments.side:
    rows = {'ours': ours, 'peer': peer}[arguments.side](arguments)
    writer = csv.DictWriter(sys.stdout, FIELDS)
    for row in rows:
      row |= {
        'model': arguments.model,
        'dtype': arguments.dtype,
        'lengths': '-'.join(map(str, arguments.lengths)),
      }
      for name in FIELDS:
        if isinstance(row.get(name), float):
          row[name] = f'{row[name]:.2f}'
      writer.writerow(row)
    return
  print(','.join(FIELDS), flush=True)
  for side, python in (
    ('ours', sys.executable),
    ('peer', arguments.peer_python),
  ):
    subprocess.run(
      [python, __file__, *sys.argv[1:], '--side', side], check=True
    )


if __name__ == '__main__':
  main()
