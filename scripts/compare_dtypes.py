"""Scores the same prompts in each model.dtype: time, memory, agreement.

  python scripts/compare_dtypes.py --model HF_DIR --prompts FILE.jsonl

Each dtype runs in a separate process, so that its peak of memory is measured
alone. Agreement is Spearman's rank correlation of each score with float32's. To
compare only the activations, --round first rounds the weights of a model whose
file is float32 to bfloat16, for every dtype.
"""

import argparse
from collections.abc import Iterator, Sequence
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from contest import show
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from edsft_jax import config, inference, models
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring.scorer import Scorer

DTYPES = ('float32', 'bfloat16_weights', 'float16', 'bfloat16')
SCORES = ('min_margin', 'mean_margin', 'mean_entropy', 'least_confidence')
SCORES = (*SCORES, 'prompt_min_margin', 'prompt_mean_entropy')
FIELDS = ('dtype', 'first_seconds', 'seconds', 'peak_gib', 'near_a_tie')
FIELDS = (*FIELDS, 'same_text', *SCORES)


def score(arguments: argparse.Namespace, dtype: str, out: pathlib.Path) -> None:
  """Scores the prompts in one dtype; writes scores, tokens and costs."""
  mesh = make_mesh()
  decoder = models.load_decoder(arguments.model, dtype, mesh)
  if arguments.round:
    rounded = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16).astype(x.dtype),
      nnx.state(decoder, nnx.Param),
    )
    nnx.update(decoder, rounded)
  prompt_format = models.load_prompt_format(
    arguments.model, **config.get_config().prompt
  )
  with open(arguments.prompts) as file:
    prompts = [json.loads(line)['prompt'] for line in file]
  limit = decoder.config.context - arguments.num_new
  tokens = [
    np.array(prompt_format.encode_prompt(p, limit, False)[0], np.int32)
    for p in prompts
    if len(p) < arguments.max_characters
  ][: arguments.num_prompts]
  scorer = Scorer(
    decoder,
    mesh,
    inference.choose_shapes(decoder, mesh, [len(ids) for ids in tokens]),
    end_ids=prompt_format.end_ids,
    max_new_tokens=arguments.num_new,
    batch_tokens=arguments.batch_tokens,
    max_rows=len(tokens),
  )
  seconds = []
  for _ in range(1 + arguments.repeats):
    start = time.perf_counter()
    found = scorer(tokens, np.ones(len(tokens), bool))
    seconds.append(time.perf_counter() - start)
  texts = np.zeros((len(tokens), arguments.num_new), np.int32)
  for row, ids in zip(texts, found.tokens, strict=True):
    row[: len(ids)] = ids
  np.savez(
    out,
    texts=texts,
    near_ties=found.near_ties,
    seconds=seconds,
    peak_gib=_peak_bytes() / 2**30,
    **found.scores,
    **{f'prompt_{name}': x for name, x in found.prompt_scores.items()},
  )


def _peak_bytes() -> int:
  """The device's, or on a CPU the process's."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
  return statistics.get('peak_bytes_in_use', process)


def compare(command: Sequence[str]) -> Iterator[dict[str, str]]:
  """A row per dtype; the command scores in the one that follows --dtype."""
  reference: dict[str, np.ndarray] = {}
  with tempfile.TemporaryDirectory() as folder:
    for dtype in DTYPES:
      out = pathlib.Path(folder) / f'{dtype}.npz'
      subprocess.run([*command, f'--dtype={dtype}', f'--out={out}'], check=True)
      with np.load(out) as file:
        found = dict(file)
      reference = reference or found
      same = np.all(found['texts'] == reference['texts'], axis=1)
      yield {
        'dtype': dtype,
        'first_seconds': f'{found["seconds"][0]:.1f}',
        'seconds': f'{found["seconds"].min():.1f}',
        'peak_gib': f'{found["peak_gib"]:.2f}',
        'near_a_tie': f'{(found["near_ties"] > 0).mean():.0%}',
        'same_text': f'{same.sum()} of {len(same)}',
      } | {
        name: f'{_correlation(found[name], reference[name]):.4f}'
        for name in SCORES
      }


def _correlation(found: np.ndarray, expected: np.ndarray) -> float:
  return scipy.stats.spearmanr(found, expected, nan_policy='omit').statistic


def main() -> None:
  """Prints the table, or scores in one dtype."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', type=pathlib.Path, required=True)
  parser.add_argument('--prompts', type=pathlib.Path, required=True)
  parser.add_argument('--round', action='store_true')
  parser.add_argument('--num_prompts', type=int, default=64)
  parser.add_argument('--max_characters', type=int, default=1200)
  parser.add_argument('--num_new', type=int, default=64)
  parser.add_argument('--batch_tokens', type=int, default=2**15)
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--csv', default='', help='file to write')
  parser.add_argument('--dtype', choices=DTYPES, help='score only with this')
  parser.add_argument('--out', type=pathlib.Path, help='NPZ, with --dtype')
  arguments = parser.parse_args()
  if arguments.dtype:
    score(arguments, arguments.dtype, arguments.out)
    return
  show(FIELDS, compare([sys.executable, *sys.argv]), arguments.csv)


if __name__ == '__main__':
  main()
