"""Times edsft_jax.scoring against transformers' generate, side by side.

  pip install -e '.[bench]'
  python scripts/benchmark_scoring.py --model HF_DIR --prompts FILE.jsonl

Both run the same weights on the same ids in one process. Every contestant of a
case runs once to warm up, then they take turns, and the median of three calls
counts. Ours computes a row of scores.parquet: entropies, margins and
confidences of the continuation, features and, unless it says without, the
scores of the prompt's own tokens. transformers computes entropies and margins
of the continuation, or features, in batches in the pool's order; the fastest of
several batch sizes counts.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import pathlib
import sys
import tempfile

import command_line
from contest import Contestant, compete, show
from flax import nnx
import jax
from model_shapes import SHAPES
import numpy as np
from prompt_files import encode, read_prompts
import whole_commands

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh
from edsft_jax.scoring import statistics
from edsft_jax.scoring.scorer import Scorer

GROUPS = ('pool', 'commands', 'reading', 'generate', 'features', 'stop')
# These need no files.
RANDOM_GROUPS = ('generate', 'features')
FIELDS = (
  'case',
  'contestant',
  'seconds',
  'ratio',
  'cpu_seconds',
  'tokens',
  'tokens_per_second',
)
NUM_NEW = 64
# All 64 prompts run together, as in the peer's largest batch.
BATCH_TOKENS = 18 * 2**10


class Ours:
  """This library, on all devices."""

  prompt_scores = True

  def __init__(self, decoder: models.Decoder, tokens: list[np.ndarray]):
    self._decoder = decoder
    self._tokens = tokens
    self._shapes = shapes_of(decoder, tokens)

  def generate(self, end_ids: Sequence[int]) -> Contestant:
    """Everything in a row of scores.parquet; counts new tokens."""
    scorer = self._scorer(end_ids)
    everything = np.ones(len(self._tokens), bool)
    return lambda: sum(map(len, scorer(self._tokens, everything).tokens))

  def features(self) -> Contestant:
    """Features and scores of the prompts; counts their tokens."""
    scorer = self._scorer(())
    nothing = np.zeros(len(self._tokens), bool)

    def run() -> int:
      scorer(self._tokens, nothing)
      return sum(map(len, self._tokens))

    return run

  def _scorer(self, end_ids: Sequence[int]) -> Scorer:
    return Scorer(
      self._decoder,
      make_mesh(),
      self._shapes,
      end_ids=end_ids,
      max_new_tokens=NUM_NEW,
      batch_tokens=BATCH_TOKENS,
      max_rows=len(self._tokens),
      prompt_scores=self.prompt_scores,
    )


class OursUnscored(Ours):
  """Without scores of the prompts, which the peer does not compute either."""

  prompt_scores = False


class Waiting:
  """This library's model in batches that wait for their last row."""

  def __init__(self, decoder: models.Decoder, tokens: list[np.ndarray]):
    self._graph, self._weights = nnx.split(decoder)
    shapes = shapes_of(decoder, tokens)
    self._batches: dict[int, list[list[np.ndarray]]] = {}
    by_length: dict[int, list[np.ndarray]] = {}
    for ids in tokens:
      by_length.setdefault(shapes.cache_length(len(ids)), []).append(ids)
    for length, rows in by_length.items():
      size = max(BATCH_TOKENS // (length + NUM_NEW), 1)
      self._batches[length] = [
        rows[start : start + size] for start in range(0, len(rows), size)
      ]

  def generate(self, end_ids: Sequence[int]) -> Contestant:
    """Continuations and their statistics; counts new tokens."""

    @jax.jit
    def run_batch(weights, tokens, mask):
      return inference.generate(
        nnx.merge(self._graph, weights),
        tokens,
        mask,
        max_new_tokens=NUM_NEW,
        end_ids=tuple(end_ids),
        step_hook=statistics.token_statistics,
      )

    def run() -> int:
      total = 0
      for length, batches in self._batches.items():
        for rows in batches:
          batch = inference.pad_left(rows, length, len(batches[0]))
          total += int(run_batch(self._weights, *batch).num_tokens_B.sum())
      return total

    return run


class Transformers:
  """transformers in torch, batches in the order of the pool."""

  def __init__(
    self, path: pathlib.Path, tokens: list[np.ndarray], batch_size: int
  ):
    import torch
    import transformers

    self._torch = torch
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      path, dtype=torch.float32
    ).eval()
    self._tokens = tokens
    self._batch_size = batch_size

  def generate(self, end_ids: Sequence[int]) -> Contestant:
    """Greedy continuations with entropy and margin of each step."""
    torch = self._torch

    def run() -> int:
      total = 0
      for ids, mask in self._batches():
        out = self._model.generate(
          input_ids=ids,
          attention_mask=mask,
          do_sample=False,
          max_new_tokens=NUM_NEW,
          eos_token_id=list(end_ids) or None,
          pad_token_id=0,
          output_scores=True,
          return_dict_in_generate=True,
        )
        for logits in out.scores:
          log_prob = torch.log_softmax(logits.float(), -1)
          prob = log_prob.exp()
          top = prob.topk(2).values
          _ = top[:, 0] - top[:, 1], -(prob * log_prob).sum(-1)
        new = out.sequences[:, ids.shape[1] :]
        ended = torch.isin(new, torch.tensor(list(end_ids) or [-1]))
        before = ended.cumsum(1) - ended.int()
        total += int((before == 0).sum())
      return total

    return torch.inference_mode()(run)

  def features(self) -> Contestant:
    """Hidden states after the final norm, averaged over the tokens."""

    def run() -> int:
      for ids, mask in self._batches():
        hidden = self._model.model(
          input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        _ = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
      return sum(map(len, self._tokens))

    return self._torch.inference_mode()(run)

  def _batches(self) -> Iterator[tuple]:
    for start in range(0, len(self._tokens), self._batch_size):
      part = self._tokens[start : start + self._batch_size]
      ids, mask = inference.pad_left(part, max(map(len, part)))
      yield (
        self._torch.from_numpy(ids).long(),
        self._torch.from_numpy(mask).long(),
      )


OURS = {'ours, without prompt scores': OursUnscored, 'ours, everything': Ours}


def shapes_of(
  decoder: models.Decoder, tokens: list[np.ndarray]
) -> inference.Shapes:
  """The shapes of a long pool of such prompts.

  A pool of few prompts would get fewer programs to compile, but warm calls do
  not pay for compilation.
  """
  lengths = [len(ids) for ids in tokens]
  return inference.choose_shapes(decoder, make_mesh(), lengths, 100)


def contest(
  case: str,
  path: pathlib.Path,
  decoder: models.Decoder,
  tokens: list[np.ndarray],
  batch_sizes: Sequence[int],
  of: Callable[[Ours | Waiting | Transformers], Contestant],
  repeats: int,
  sides: Mapping[str, type[Ours | Waiting]],
) -> Iterator[dict[str, str]]:
  """Variants of this library, and transformers' fastest batch size."""
  peers = {
    f'transformers, batches of {size}': of(Transformers(path, tokens, size))
    for size in batch_sizes
    if size <= len(tokens)
  }
  if len(peers) > 1:
    tried = compete(case, peers, 1)
    fastest = min(tried, key=lambda m: m.seconds).contestant
    peers = {fastest: peers[fastest]}
  contestants = {
    name: of(side(decoder, tokens)) for name, side in sides.items()
  } | peers
  for m in compete(case, contestants, repeats):
    yield {
      'case': m.case,
      'contestant': m.contestant,
      'seconds': f'{m.seconds:.2f}',
      'ratio': f'{m.ratio:.2f}',
      'cpu_seconds': f'{m.cpu_seconds:.2f}',
      'tokens': f'{m.result:,.0f}',
      'tokens_per_second': f'{m.result / m.seconds:,.0f}',
    }


def random_model(folder: pathlib.Path) -> models.Decoder:
  """Makes a random model of 58 million parameters and saves it for the peer."""
  (folder / 'config.json').write_text(json.dumps(SHAPES['random_58m']))
  decoder = models.Decoder(models.read_config(folder), rngs=nnx.Rngs(0))
  models.save_decoder(decoder, folder, source=folder)
  models.shard_decoder(decoder, make_mesh())
  return decoder


def random_tokens() -> list[np.ndarray]:
  """64 prompts of 20 to 200 tokens."""
  rng = np.random.default_rng(0)
  return [
    rng.integers(3, 32_000, size).astype(np.int32)
    for size in rng.integers(20, 201, 64)
  ]


def reading_case(
  model: pathlib.Path, prompts: Sequence[str]
) -> Iterator[dict[str, str]]:
  """Features of all prompts, and the rate of full batches without padding."""
  num_tokens = sum(map(len, encode(model, prompts, NUM_NEW)))
  yield from whole_commands.compete_reading(model, prompts, num_tokens)
  length = max(16, num_tokens // len(prompts) // 16 * 16)
  decoder = models.load_decoder(model, 'float32', make_mesh())
  rng = np.random.default_rng(0)
  vocab = decoder.config.vocab_size
  rows = [rng.integers(0, vocab, length).astype(np.int32) for _ in range(64)]
  full = {'ours, warm': OursUnscored(decoder, rows).features()}
  for m in compete(f'64 rows of {length} tokens, features', full, 3):
    yield {
      'case': m.case,
      'contestant': m.contestant,
      'seconds': f'{m.seconds:.2f}',
      'tokens': f'{m.result:,.0f}',
      'tokens_per_second': f'{m.result / m.seconds:,.0f}',
    }


def processes(
  groups: Sequence[str],
  model: pathlib.Path,
  prompts: pathlib.Path,
  every: int,
) -> Iterator[dict[str, str]]:
  """Rows of the groups that time whole commands."""
  if 'pool' in groups:
    # First, since a child's peak is at least this process's size at the start.
    yield whole_commands.score_file(model, prompts)
  if 'commands' in groups:
    yield from whole_commands.compete(model, prompts)
  if 'reading' in groups:
    yield from reading_case(model, read_prompts(prompts)[::every])


def cases(
  groups: Sequence[str], arguments: argparse.Namespace
) -> Iterator[dict[str, str]]:
  """Rows of the requested groups."""
  repeats = arguments.repeats
  model, prompts = arguments.model, arguments.prompts
  yield from processes(groups, model, prompts, arguments.every)
  if {*RANDOM_GROUPS} & {*groups}:
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder)
      inputs = (path, random_model(path), random_tokens())
      size = 'random 58M, 64 prompts of 20-200 tokens'
      if 'generate' in groups:
        case = f'{size}, {NUM_NEW} new'
        generate = lambda side: side.generate(())
        yield from contest(case, *inputs, [32, 64], generate, repeats, OURS)
      if 'features' in groups:
        case = f'{size}, features'
        features = lambda side: side.features()
        yield from contest(case, *inputs, [16, 64], features, repeats, OURS)
  if 'stop' in groups:
    tokens = encode(model, read_prompts(prompts)[:256], NUM_NEW)
    stop = [*models.end_ids(model), arguments.stop_token_id]
    until = lambda side: side.generate(stop)
    case = f'{model.name}, 256 prompts of {prompts.name}, {NUM_NEW} new or stop'
    decoder = models.load_decoder(model, 'float32', make_mesh())
    sides = OURS | {'ours, batches wait for their last row': Waiting}
    yield from contest(
      case, model, decoder, tokens, [32, 64, 128], until, repeats, sides
    )


def main() -> None:
  """Runs the requested groups, prints a table and writes it."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  without_files = ' and '.join(RANDOM_GROUPS)
  command_line.add_names(
    parser, GROUPS, f'all but {without_files} need --model and --prompts'
  )
  add('--model', type=command_line.existing_folder, help='chat model')
  add('--prompts', type=command_line.existing_file, help='with column prompt')
  add(
    '--every',
    type=command_line.positive,
    default=1,
    help='read only every n-th prompt',
  )
  add('--stop_token_id', type=int, default=4010, help='for the group stop')
  add('--repeats', type=command_line.positive, default=3)
  add('--csv', default='', help='file to write; none by default')
  arguments = parser.parse_args()
  has_files = arguments.model and arguments.prompts
  groups = arguments.names or (GROUPS if has_files else RANDOM_GROUPS)
  if not (has_files or {*groups} <= {*RANDOM_GROUPS}):
    parser.error(f'{", ".join(groups)}: give --model and --prompts')
  print(f'jax on {jax.devices()}', file=sys.stderr)
  show(FIELDS, cases(groups, arguments), arguments.csv)


if __name__ == '__main__':
  command_line.run(main)
