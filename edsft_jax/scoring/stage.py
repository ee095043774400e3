"""The score stage: pool/ -> scores/, with the pretrained model alone."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import shutil
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tqdm

from edsft_jax import artifacts, console, errors, models, processes
from edsft_jax import mesh as mesh_lib
from edsft_jax.scoring import shards, throughput
from edsft_jax.scoring.batching import Shapes
from edsft_jax.scoring.pooling import POOLINGS
from edsft_jax.scoring.scorer import Scorer, Scores

# What is too much for one process's devices is so for all at about that time.
_SAME_SECONDS = 20.0


def check(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses bad scoring options and an unusable model before any work.

  Raises:
    InputError: naming the option or the file.
  """
  check_options(config)
  mesh_lib.make_mesh(**config.mesh)
  models.load_prompt_format(models.resolve(config.model.path), **config.prompt)
  if 'pool' not in planned and not workdir.pool.exists():
    raise errors.InputError(
      f'{workdir.pool} is not there: run the pool stage first'
    )


def check_options(config: ml_collections.ConfigDict) -> None:
  """Refuses bad scoring options, and a model unusable or unfit for them.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.scoring
  for name in ('max_new_tokens', 'batch_tokens', 'shard_prompts'):
    if c[name] < 1:
      raise errors.InputError(f'scoring.{name} is {c[name]}: at least 1')
  if c.confidence_prompts_per_task < 0:
    raise errors.InputError(
      'scoring.confidence_prompts_per_task is '
      f'{c.confidence_prompts_per_task}: at least 0'
    )
  if c.features.pooling not in POOLINGS:
    raise errors.InputError(
      f'scoring.features.pooling {c.features.pooling!r} is unknown: one of '
      f'{", ".join(POOLINGS)}'
    )
  decoder_config = models.check(models.resolve(config.model.path))
  models.parse_dtype(config.model.dtype)
  if not -1 <= c.features.layer <= decoder_config.num_layers:
    raise errors.InputError(
      f'scoring.features.layer is {c.features.layer}: -1 to '
      f'{decoder_config.num_layers} for this model'
    )
  if c.max_new_tokens >= decoder_config.context:
    raise errors.InputError(
      f'scoring.max_new_tokens is {c.max_new_tokens}: must leave room for a '
      f"prompt in the model's context of {decoder_config.context}"
    )
  for token in c.stop_token_ids:
    if not isinstance(token, int) or not 0 <= token < decoder_config.vocab_size:
      raise errors.InputError(
        f'scoring.stop_token_ids has {token}: the model has ids 0 to '
        f'{decoder_config.vocab_size - 1}'
      )


def run(config: ml_collections.ConfigDict, workdir: artifacts.Workdir) -> None:
  """Scores every prompt of the pool; goes on where a run was cut short.

  Writes scores.parquet and the features in pool order. Of several processes
  each scores a part of the shards, or all score each together where the model
  spans them; each writes one file of features.

  Raises:
    InputError: the workdir was scored from other inputs, the model gives
      numbers that are not finite, the device has too little memory, or not all
      processes see the workdir.
  """
  check(config, workdir, frozenset())
  path = models.resolve(config.model.path)
  pool = artifacts.read_prompts(workdir.pool)
  ranges = shards.bounds(len(pool), config.scoring.shard_prompts)
  folders = [shards.folder(workdir.score_shards, i) for i in range(len(ranges))]
  manifest = artifacts.Manifest(workdir)
  first = processes.is_first()
  # Only the first may write before all have begun, and what it finds done
  # must be so for all: a network file system can show each another state.
  todo = processes.from_first(
    'shards to score',
    lambda: _begin(
      manifest, _fingerprint(config, workdir, path, pool), workdir, folders
    ),
  )
  if todo is None:
    console.say('score', 'done before')
    return
  with manifest.timed('score') if first else contextlib.nullcontext():
    notes = _score_shards(config, path, pool, ranges, folders, todo)
    processes.meet('scored')
    processes.await_files(folders)
    shards.join_features(
      workdir, len(ranges), processes.index(), processes.count()
    )
    processes.meet('joined')
    if not first:
      return
    shards.join_scores(workdir, len(ranges))
  counts = {**_counts(workdir), 'notes': notes}
  manifest.finish('score', counts)
  shutil.rmtree(workdir.score_shards)
  generated = (
    f'{counts["generated_tokens"]:,} generated ({counts["near_ties"]:,} near a '
    'tie)'
  )
  console.say(
    'score',
    f'{console.count(counts["prompts"], "prompt")}, '
    f'{counts["prompt_tokens"]:,} tokens read, '
    f'{generated if counts["generated_tokens"] else "none generated"}, '
    f'{console.count(counts["truncated"], "prompt")} truncated -> '
    f'{workdir.scores.parent}',
  )


def _fingerprint(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  path: pathlib.Path,
  pool: artifacts.Prompts,
) -> dict[str, Any]:
  c = config.scoring
  # Where there is no template the separator joins the turns of a conversation;
  # one turn is read without it.
  joined = {'prompt.separator': config.prompt.separator}
  turns = any(not isinstance(x, str) and len(x) > 1 for x in pool.prompts)
  return {
    **(joined if turns else {}),
    'pool': artifacts.hash_file(workdir.pool),
    'model.path (its files)': models.hash_model(path),
    'model.dtype': config.model.dtype,
    'prompt.template': config.prompt.template,
    'prompt.truncate': config.prompt.truncate,
    'scoring.generate': c.generate,
    'scoring.prompt_scores': c.prompt_scores,
    'scoring.confidence_prompts_per_task': c.confidence_prompts_per_task,
    'scoring.max_new_tokens': c.max_new_tokens,
    'scoring.stop_token_ids': c.stop_token_ids,
    'scoring.shard_prompts': c.shard_prompts,
    'scoring.length_normalized': c.length_normalized,
    'scoring.features.pooling': c.features.pooling,
    'scoring.features.layer': c.features.layer,
  }


def _begin(
  manifest: artifacts.Manifest,
  fingerprint: dict[str, Any],
  workdir: artifacts.Workdir,
  folders: Sequence[pathlib.Path],
) -> list[int] | None:
  """Numbers of the shards that are to be scored; None when all is done."""
  known = manifest.contents['stages'].get('score')
  shards_done = any(workdir.score_shards.glob('[0-9]*'))
  if known and not known['done'] and not shards_done:
    manifest.forget('score')  # A model that failed at once may be mended.
  done = manifest.begin('score', fingerprint)
  if done and workdir.scores.exists() and artifacts.feature_files(workdir):
    shutil.rmtree(workdir.score_shards, ignore_errors=True)
    return None
  # Of a join that was cut short, perhaps by another number of processes.
  for path in workdir.features.parent.glob('features*.npy'):
    path.unlink()
  return [i for i, path in enumerate(folders) if not path.exists()]


def _bar(
  ranges: Sequence[tuple[int, int]], todo: Sequence[int], work: Sequence[int]
) -> tqdm.tqdm:
  """Over the pool, or over what this process has to score of it."""

  def prompts(numbers: Sequence[int]) -> int:
    return sum(ranges[i][1] - ranges[i][0] for i in numbers)

  if len(work) == len(todo):
    total = ranges[-1][1]
    return console.bar('score', total, 'prompts', initial=total - prompts(todo))
  num = processes.count()
  return console.bar(
    'score', prompts(work), f'prompts by one of {num} processes'
  )


def _score_shards(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  pool: artifacts.Prompts,
  ranges: Sequence[tuple[int, int]],
  folders: Sequence[pathlib.Path],
  todo: Sequence[int],
) -> list[str]:
  """Scores this process's part of the shards; returns what is to be noted."""
  c = config.scoring
  notes: list[str] = []
  prompt_format = models.load_prompt_format(
    path, **config.prompt, log=notes.append
  )
  for note in notes:
    console.say('score', note)
  generate, in_sample = _to_generate(c, pool.tasks, len(pool))
  mesh = mesh_lib.model_mesh(**config.mesh)
  decoder = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
  encoded = _Encoded.of(
    prompt_format, pool, decoder.config.context - c.max_new_tokens
  )
  shapes = Shapes.of(encoded.lengths)

  @functools.cache
  def scorer_of(batch_tokens: int) -> Scorer:
    return Scorer(
      decoder,
      mesh,
      shapes,
      end_ids=(*prompt_format.end_ids, *c.stop_token_ids),
      max_new_tokens=c.max_new_tokens,
      batch_tokens=batch_tokens,
      most_rows=min(c.shard_prompts, len(pool)),
      prompt_scores=c.prompt_scores,
      length_normalized=c.length_normalized,
      pooling=c.features.pooling,
      layer=c.features.layer,
    )

  if 0 < len(todo) < processes.count() and not mesh.is_multi_process:
    console.say(
      'score',
      f'{console.count(len(todo), "shard")} for {processes.count()} '
      'processes: some have nothing to do',
    )
  mine = shards.part(todo, processes.index(), processes.count())
  work = todo if mesh.is_multi_process else mine
  sizes = [c.batch_tokens, c.batch_tokens // 2]
  with _bar(ranges, todo, work) as bar:
    rate = _Rate(bar, mesh)
    for i in work:
      part = slice(*ranges[i])
      scores = _within_memory(
        scorer_of,
        sizes,
        encoded.tokens[part],
        generate[part],
        rate,
        mesh.is_multi_process,
      )
      ids = pool.ids[part]
      _refuse_overflow(scores, ids, encoded.lengths[part])
      columns = {
        'id': ids,
        'num_prompt_tokens': encoded.lengths[part],
        'truncated': encoded.truncated[part],
      }
      if in_sample is not None:
        columns['confidence_sample'] = in_sample[part]
      if i in mine:
        table = _table(columns, scores, prompt_format)
        shards.write(folders[i], table, scores.features)
  if programs := scorer_of(sizes[0]).num_programs:
    decoded = f', decoded in rooms of {_listed(shapes.rooms)}'
    console.say(
      'score',
      f'{console.count(programs, "program")} compiled: prompts padded to '
      f'{_listed(shapes.lengths)} tokens{decoded if generate.any() else ""}',
    )
  return notes


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(str(number) for number in numbers)


class _Rate:
  """A progress bar that shows tokens a second, and how busy the devices are."""

  def __init__(self, bar: tqdm.tqdm, mesh: jax.sharding.Mesh):
    self.work = throughput.Work()
    self._bar = bar
    self._devices = mesh.devices.ravel()
    self._start = time.monotonic()

  def __call__(self, work: throughput.Work) -> None:
    self.work += work
    seconds = time.monotonic() - self._start
    self._bar.set_postfix_str(
      throughput.shown(self.work, seconds, self._devices), refresh=False
    )
    self._bar.update(work.prompts)

  def go_back_to(self, work: throughput.Work) -> None:
    """Forgets what is to be done again."""
    self._bar.update(work.prompts - self.work.prompts)
    self.work = work


def _within_memory(
  scorer_of: Callable[[int], Scorer],
  sizes: list[int],
  tokens: Sequence[np.ndarray],
  generate: np.ndarray,
  rate: '_Rate',
  together: bool = False,
) -> Scores:
  """Scores prompts with the first of some batch sizes that fits the device.

  Args:
    scorer_of: from tokens a batch to a scorer.
    sizes: tokens a batch, to be tried in turn; too large ones are taken off.
    tokens: of each prompt.
    generate: prompts to be continued.
    rate: told of progress.
    together: all processes compute this, and must go on with the same size.

  Raises:
    InputError: none fits, or it was too much for some processes alone.
  """
  while True:
    before = rate.work
    try:
      return scorer_of(sizes[0])(tokens, generate, rate)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      # The others would wait in a larger batch for this one's part of it.
      alone = together and not processes.met_within('no memory', _SAME_SECONDS)
      if len(sizes) == 1 or alone:
        raise errors.InputError(
          f'the device has no memory for {sizes[0]} tokens a batch: set '
          'scoring.batch_tokens lower, or take out prompts as long as the '
          f'longest here, of {max(map(len, tokens))} tokens'
        ) from e
      console.say(
        'score',
        f'no memory for scoring.batch_tokens={sizes.pop(0)}: going on with '
        f'{sizes[0]}',
      )
      rate.go_back_to(before)


def _counts(workdir: artifacts.Workdir) -> dict[str, int]:
  table = artifacts.read_parquet(workdir.scores)

  def total(name: str) -> int:
    known = name in table.column_names
    return (pc.sum(table[name]).as_py() or 0) if known else 0

  return {
    'prompts': table.num_rows,
    'prompt_tokens': total('num_prompt_tokens'),
    'generated_tokens': total('num_generated_tokens'),
    'near_ties': total('near_ties'),
    'truncated': total('truncated'),
  }


def _to_generate(
  options: ml_collections.ConfigDict,
  tasks: Sequence[str] | None,
  num_prompts: int,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Which prompts to continue, bool [N], and which to draw confidence from.

  The second is None where all of a task's prompts are.

  Raises:
    InputError: a sample of each task is wanted, and there are no tasks.
  """
  per_task = options.confidence_prompts_per_task
  if not per_task:
    return np.full(num_prompts, options.generate), None
  if tasks is None:
    raise errors.InputError(
      f'scoring.confidence_prompts_per_task is {per_task}, but the pool has no '
      'tasks: name its column in pool.task_column, or leave it at 0'
    )
  in_sample = draw(tasks, per_task)
  return in_sample | options.generate, in_sample


def draw(tasks: Sequence[str], per_task: int) -> np.ndarray:
  """Prompts drawn at random from each task, or all of a small one; bool [N]."""
  rng = np.random.default_rng(0)
  names, task_N = np.unique(tasks, return_inverse=True)
  drawn_N = np.zeros(len(task_N), bool)
  for task in range(len(names)):
    members = np.flatnonzero(task_N == task)
    drawn_N[rng.permutation(members)[:per_task]] = True
  return drawn_N


@dataclasses.dataclass(frozen=True)
class _Encoded:
  """A pool as the model will see it.

  Attributes:
    tokens: int32 ids of each prompt, cut to what the context holds.
    truncated: bool [N], prompts that were cut.
  """

  tokens: list[np.ndarray]
  truncated: np.ndarray

  @classmethod
  def of(
    cls,
    prompt_format: models.PromptFormat,
    pool: artifacts.Prompts,
    limit: int,
  ) -> '_Encoded':
    encoded = []
    for id, prompt in zip(pool.ids, pool.prompts, strict=True):
      with errors.of_prompt(id):
        ids, truncated = prompt_format.encode_prompt(
          prompt, limit, for_response=False
        )
      encoded.append((ids, truncated))
      if not ids:
        raise errors.InputError(
          f'prompt {id!r} has no tokens, nothing is left of it by the '
          'tokenizer: take it out of the pool'
        )
    return cls(
      [np.array(ids, np.int32) for ids, _ in encoded],
      np.array([truncated for _, truncated in encoded], bool),
    )

  @functools.cached_property
  def lengths(self) -> list[int]:
    return [len(ids) for ids in self.tokens]


def _refuse_overflow(
  scores: Scores, ids: Sequence[str], lengths: Sequence[int]
) -> None:
  """Raises InputError naming the first prompt with a number not finite."""
  finite = np.isfinite(scores.features).all(axis=1)
  if scores.scores:
    finite &= ~scores.generated | np.isfinite(scores.scores['mean_entropy'])
  if scores.prompt_scores:
    # A single token has no scores.
    finite &= (np.array(lengths) < 2) | np.isfinite(
      scores.prompt_scores['mean_entropy']
    )
  if not finite.all():
    raise errors.InputError(
      f'prompt {ids[int(np.argmin(finite))]!r} gives scores or features that '
      "are not finite: the model's numbers overflow; check its weights or "
      'model.dtype'
    )


def _table(
  columns: dict[str, Any], scores: Scores, prompt_format: models.PromptFormat
) -> pa.Table:
  """Rows of scores.parquet: the columns given, then what was scored.

  Nothing of a continuation where none was asked for; nulls for prompts that
  were not continued.
  """
  if scores.scores:
    none = ~scores.generated
    num_tokens = np.array([len(ids) for ids in scores.tokens], np.int64)
    columns |= {
      'num_generated_tokens': pa.array(num_tokens, mask=none),
      'near_ties': pa.array(scores.near_ties, mask=none),
      'generation': [
        prompt_format.decode(ids.tolist()) if generated else None
        for ids, generated in zip(scores.tokens, scores.generated, strict=True)
      ],
      **{name: _nullable(x) for name, x in scores.scores.items()},
    }
  columns |= {
    f'prompt_{name}': _nullable(x) for name, x in scores.prompt_scores.items()
  }
  return pa.table(columns)


def _nullable(values: np.ndarray) -> pa.Array:
  """NaN, for which there is no value, becomes null."""
  return pa.array(values, pa.float32(), from_pandas=True)
