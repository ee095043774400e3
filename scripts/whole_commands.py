"""Times the score command and a script in transformers, including start-up.

Each side is a separate process, so that imports, loading, tokenising and
compilation count, as they do for a user.
"""

from collections.abc import Iterator, Sequence
import pathlib
import re
import resource
import sys
import tempfile

from contest import time_command
from prompt_files import read_prompts

from edsft_jax import store

PEER = pathlib.Path(__file__).with_name('score_with_transformers.py')
NUM_PROMPTS = 64
MAX_CHARACTERS = 1200
BATCH_SIZES = (16, 32, 64)


def score_file(model: pathlib.Path, prompts: pathlib.Path) -> dict[str, str]:
  """The row for pool and score of a whole file, compilation included."""
  with tempfile.TemporaryDirectory() as folder:
    seconds, output = time_command(
      _command(['pool', 'score'], folder, model, prompts),
      {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    )
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  (programs,) = re.findall(r'(\d+) programs? compiled', output)
  counts = re.findall(r'([\d,]+) tokens read, ([\d,]+) generated', output)
  tokens = sum(int(count.replace(',', '')) for count in counts[0])
  return {
    'case': f'the whole of {prompts.name}, compilation included',
    'contestant': f'ours: {programs} programs, '
    f'peak {used.ru_maxrss / 2**20:.2f} GiB',
    'seconds': f'{seconds:.1f}',
    'ratio': '',
    'cpu_seconds': f'{used.ru_utime + used.ru_stime:.1f}',
    'tokens': f'{tokens:,}',
    'tokens_per_second': f'{tokens / seconds:,.0f}',
  }


def compete(
  model: pathlib.Path, prompts: pathlib.Path
) -> Iterator[dict[str, str]]:
  """Rows of the table: this library's first and second run, and the peer.

  Args:
    model: a Hugging Face directory of a chat model.
    prompts: a file; the first 64 of fewer than 1,200 characters are scored.
  """
  chosen = read_prompts(prompts, MAX_CHARACTERS)[:NUM_PROMPTS]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    file = folder / 'prompts.jsonl'
    store.write_jsonl(file, [{'prompt': prompt} for prompt in chosen])
    for with_prompts in (False, True):
      seconds = {
        f'ours, {run} run': _ours(folder, model, file, with_prompts)
        for run in ('first', 'second')
      }
      for size in BATCH_SIZES:
        name = f'transformers, batches of {size}'
        seconds[name] = _peer(folder, model, file, size, with_prompts)
      scores = 'all scores' if with_prompts else 'no prompt scores'
      for contestant, taken in seconds.items():
        yield {
          'case': f'{model.name}, {len(chosen)} prompts, commands, {scores}',
          'contestant': contestant,
          'seconds': f'{taken:.1f}',
          'ratio': f'{taken / seconds["ours, second run"]:.2f}',
        }


def compete_reading(
  model: pathlib.Path, prompts: Sequence[str], num_tokens: int
) -> Iterator[dict[str, str]]:
  """Rows for only the features, of all prompts and without continuations.

  Args:
    model: a Hugging Face directory of a chat model.
    prompts: the prompts to read.
    num_tokens: their tokens, template included.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    file = folder / 'prompts.jsonl'
    store.write_jsonl(file, [{'prompt': prompt} for prompt in prompts])
    seconds = {
      f'ours, {run} run': _ours(folder, model, file, False, generate=False)
      for run in ('first', 'second')
    }
    for size in BATCH_SIZES:
      name = f'transformers, batches of {size}'
      seconds[name] = _peer(folder, model, file, size, False, max_new_tokens=0)
  for contestant, taken in seconds.items():
    yield {
      'case': f'{model.name}, {len(prompts)} prompts, commands, features',
      'contestant': contestant,
      'seconds': f'{taken:.1f}',
      'ratio': f'{taken / seconds["ours, second run"]:.2f}',
      'tokens': f'{num_tokens:,}',
      'tokens_per_second': f'{num_tokens / taken:,.0f}',
    }


def _ours(
  folder: pathlib.Path,
  model: pathlib.Path,
  file: pathlib.Path,
  with_prompts: bool,
  generate: bool = True,
) -> float:
  """Seconds of the score stage; the pool is read before."""
  options = [
    f'--config.scoring.prompt_scores={with_prompts}',
    f'--config.scoring.generate={generate}',
  ]
  # Compiled programs are kept here, apart from those of the two cases.
  cache = folder / f'cache-{with_prompts}-{generate}'
  environment = {'XDG_CACHE_HOME': str(cache)}
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    for stage in ('pool', 'score'):
      command = _command([stage], workdir, model, file)
      seconds, _ = time_command([*command, *options], environment)
  return seconds


def _command(
  stages: Sequence[str], folder: str, model: pathlib.Path, file: pathlib.Path
) -> list[str]:
  return [
    *(sys.executable, '-m', 'edsft_jax.main', *stages),
    f'--workdir={folder}/study',
    f'--config.pool.path={file}',
    '--config.pool.heldout_fraction=0.0',
    f'--config.model.path={model}',
  ]


def _peer(
  folder: pathlib.Path,
  model: pathlib.Path,
  file: pathlib.Path,
  batch_size: int,
  with_prompts: bool,
  max_new_tokens: int = 64,
) -> float:
  command = [sys.executable, PEER, model, file, folder / 'peer.npz']
  command.append(f'--batch_size={batch_size}')
  command.append(f'--max_new_tokens={max_new_tokens}')
  if with_prompts:
    command.append('--prompt_scores')
  return time_command([str(part) for part in command])[0]
