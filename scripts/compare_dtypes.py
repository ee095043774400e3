"""Scores the same prompts in each model.dtype: time, memory, agreement.

  python scripts/compare_dtypes.py --model HF_DIR --prompts FILE.jsonl

Each dtype runs in a separate process, so that its peak of memory is measured
alone. Agreement is Spearman's rank correlation of each score with float32's. To
compare only the activations, --round first rounds the weights of a model whose
file is float32 to bfloat16, for every dtype.
"""

import argparse
from collections.abc import Iterator, Sequence
import pathlib
import sys
import tempfile
import time

import command_line
from contest import peak_bytes, show, time_command
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from prompt_files import encode, load_format, read_prompts
import scipy.stats

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring.scorer import Scorer

DTYPES = ('float32', 'bfloat16_weights', 'float16', 'bfloat16')
SCORES = (
  'min_margin',
  'mean_margin',
  'mean_entropy',
  'least_confidence',
  'prompt_min_margin',
  'prompt_mean_entropy',
)
FIELDS = (
  'dtype',
  'first_seconds',
  'seconds',
  'peak_gib',
  'near_a_tie',
  'same_text',
  *SCORES,
)


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
  prompts = read_prompts(arguments.prompts, arguments.max_characters)
  tokens = encode(
    arguments.model, prompts[: arguments.num_prompts], arguments.num_new
  )
  scorer = Scorer(
    decoder,
    mesh,
    inference.choose_shapes(decoder, mesh, [len(ids) for ids in tokens]),
    end_ids=load_format(arguments.model).end_ids,
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
    allow_pickle=False,
    texts=texts,
    near_ties=found.near_ties,
    seconds=seconds,
    peak_gib=peak_bytes() / 2**30,
    **found.scores,
    **{f'prompt_{name}': x for name, x in found.prompt_scores.items()},
  )


def compare(command: Sequence[str]) -> Iterator[dict[str, str]]:
  """A row per dtype; the command scores in the one that follows --dtype."""
  reference: dict[str, np.ndarray] = {}
  with tempfile.TemporaryDirectory() as folder:
    for dtype in DTYPES:
      out = pathlib.Path(folder) / f'{dtype}.npz'
      time_command([*command, f'--dtype={dtype}', f'--out={out}'])
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
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('--model', type=command_line.existing_folder, required=True)
  add('--prompts', type=command_line.existing_file, required=True)
  add('--round', action='store_true', help='round the weights to bfloat16')
  add('--num_prompts', type=command_line.positive, default=64)
  add(
    '--max_characters',
    type=command_line.positive,
    default=1200,
    help='only prompts with fewer',
  )
  add(
    '--num_new',
    type=command_line.positive,
    default=64,
    help='tokens per continuation',
  )
  add('--batch_tokens', type=command_line.positive, default=2**15)
  add(
    '--repeats',
    type=command_line.positive,
    default=1,
    help='calls after the first, which compiles',
  )
  add('--csv', default='', help='file to write; none by default')
  add('--dtype', choices=DTYPES, help='score only with this')
  add('--out', type=pathlib.Path, help='NPZ, with --dtype')
  arguments = parser.parse_args()
  if arguments.dtype:
    score(arguments, arguments.dtype, arguments.out)
    return
  show(FIELDS, compare([sys.executable, *sys.argv]), arguments.csv)


if __name__ == '__main__':
  command_line.run(main)
