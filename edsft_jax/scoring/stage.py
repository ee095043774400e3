"""The score stage: pool/ -> scores/, with the pretrained model alone."""

from collections.abc import Callable, Sequence
import contextlib
import functools
import pathlib
import shutil
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import tqdm

from edsft_jax import artifacts, console, errors, models, processes
from edsft_jax import mesh as mesh_lib
from edsft_jax.scoring import shards, statistics
from edsft_jax.scoring.pooling import POOLINGS, pool_features


def check(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  planned: frozenset[str],
) -> None:
  """Refuses bad scoring options and an unusable model before any work.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.scoring
  for name in ('max_new_tokens', 'batch_tokens', 'shard_prompts'):
    if c[name] < 1:
      raise errors.InputError(f'scoring.{name} is {c[name]}: at least 1')
  if c.features.pooling not in POOLINGS:
    raise errors.InputError(
      f'scoring.features.pooling {c.features.pooling!r} is unknown: one of '
      f'{", ".join(POOLINGS)}'
    )
  path = models.resolve(config.model.path)
  models.check(path)
  models.parse_dtype(config.model.dtype)
  mesh_lib.make_mesh(**config.mesh)
  models.load_prompt_format(path, **config.prompt)
  decoder_config = models.read_config(path)
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
  if 'pool' not in planned and not workdir.pool.exists():
    raise errors.InputError(
      f'{workdir.pool} is not there: run the pool stage first'
    )


def run(config: ml_collections.ConfigDict, workdir: artifacts.Workdir) -> None:
  """Scores every prompt of the pool; goes on where a run was cut short.

  Writes scores.parquet and the features in pool order. Of several processes
  each scores a part of the shards, or all score each together where the model
  spans them; each writes one file of features.

  Raises:
    InputError: the workdir was scored from other inputs, the model gives
      numbers that are not finite, or not all processes see the workdir.
  """
  check(config, workdir, frozenset())
  c = config.scoring
  path = models.resolve(config.model.path)
  pool = artifacts.read_prompts(workdir.pool)
  ranges = shards.bounds(len(pool), c.shard_prompts)
  folders = [shards.folder(workdir.score_shards, i) for i in range(len(ranges))]
  manifest = artifacts.Manifest(workdir)
  first = processes.is_first()
  # Only the first may write before all have begun, and what it finds done
  # must be so for all: a network file system can show each another state.
  todo = processes.from_first(
    'shards to score',
    lambda: _begin(
      manifest, _fingerprint(config, workdir, path), workdir, folders
    ),
  )
  if todo is None:
    console.say('score', 'done before')
    return
  with manifest.timed('score') if first else contextlib.nullcontext():
    notes: list[str] = []
    prompt_format = models.load_prompt_format(
      path, **config.prompt, log=notes.append
    )
    for note in notes:
      console.say('score', note)
    mesh = mesh_lib.model_mesh(**config.mesh)
    decoder = models.load_decoder(path, dtype=config.model.dtype, mesh=mesh)
    scorer = Scorer(
      decoder,
      mesh,
      end_ids=(*prompt_format.end_ids, *c.stop_token_ids),
      max_new_tokens=c.max_new_tokens,
      batch_tokens=c.batch_tokens,
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
    who = (processes.index(), processes.count())
    mine = shards.part(todo, *who)
    work = todo if mesh.is_multi_process else mine
    limit = decoder.config.context - c.max_new_tokens
    with _bar(ranges, todo, work) as bar:
      for i in work:
        part = slice(*ranges[i])
        table, features = score_prompts(
          scorer,
          prompt_format,
          pool.ids[part],
          pool.prompts[part],
          limit,
          progress=bar.update,
        )
        if i in mine:
          shards.write(folders[i], table, features)
    processes.meet('scored')
    processes.await_files(folders)
    shards.join_features(workdir, len(ranges), *who)
    processes.meet('joined')
    if not first:
      return
    shards.join_scores(workdir, len(ranges))
  counts = {**_counts(workdir), 'notes': notes}
  manifest.finish('score', counts)
  shutil.rmtree(workdir.score_shards)
  console.say(
    'score',
    f'{console.count(counts["prompts"], "prompt")}, '
    f'{counts["prompt_tokens"]:,} tokens read, '
    f'{counts["generated_tokens"]:,} generated, '
    f'{console.count(counts["truncated"], "prompt")} truncated -> '
    f'{workdir.scores.parent}',
  )


def _fingerprint(
  config: ml_collections.ConfigDict,
  workdir: artifacts.Workdir,
  path: pathlib.Path,
) -> dict[str, Any]:
  c = config.scoring
  return {
    'pool': artifacts.hash_file(workdir.pool),
    'model.path (its files)': models.hash_model(path),
    'model.dtype': config.model.dtype,
    'prompt.template': config.prompt.template,
    'prompt.truncate': config.prompt.truncate,
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


def _counts(workdir: artifacts.Workdir) -> dict[str, int]:
  table = artifacts.read_parquet(
    workdir.scores,
    columns=['num_prompt_tokens', 'num_generated_tokens', 'truncated'],
  )
  return {
    'prompts': table.num_rows,
    'prompt_tokens': int(np.sum(table['num_prompt_tokens'])),
    'generated_tokens': int(np.sum(table['num_generated_tokens'])),
    'truncated': int(np.sum(table['truncated'])),
  }


def score_prompts(
  scorer: 'Scorer',
  prompt_format: models.PromptFormat,
  ids: Sequence[str],
  prompts: Sequence[artifacts.Prompt],
  limit: int,
  progress: Callable[[int], Any] = lambda n: None,
) -> tuple[pa.Table, np.ndarray]:
  """Scores some prompts.

  Args:
    scorer: the model, ready to run.
    prompt_format: how a prompt becomes tokens.
    ids: of the prompts, for the table and for errors.
    prompts: texts or conversations.
    limit: tokens a prompt may have; longer ones are truncated and flagged.
    progress: called with the number of prompts done since the last call.

  Returns:
    The rows of scores.parquet in the order given, and features float32 [n, D].

  Raises:
    InputError: a feature or a score is not finite, naming the prompt's id.
  """
  encoded = [
    prompt_format.encode_prompt(prompt, limit, for_response=False)
    for prompt in prompts
  ]
  tokens = [row for row, _ in encoded]
  rows: list[dict[str, Any] | None] = [None] * len(prompts)
  features: list[np.ndarray | None] = [None] * len(prompts)
  for group in scorer.groups([len(row) for row in tokens]):
    result = scorer(tokens, group)
    for j, i in enumerate(group.indices):
      num_new = int(result['num_generated_tokens'][j])
      generated = result['tokens'][j, :num_new]
      rows[i] = {
        'id': ids[i],
        'num_prompt_tokens': len(tokens[i]),
        'num_generated_tokens': num_new,
        'truncated': encoded[i][1],
        'generation': prompt_format.decode(generated.tolist()),
        **{name: float(x[j]) for name, x in result['scores'].items()},
      }
      features[i] = result['features'][j]
      if not np.all(np.isfinite(features[i])) or not np.isfinite(
        rows[i]['mean_entropy']
      ):
        raise errors.InputError(
          f'prompt {ids[i]!r} gives scores or features that are not finite: '
          "the model's numbers overflow; check its weights or model.dtype"
        )
    progress(len(group.indices))
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  table = pa.table(
    {
      name: pa.array(values, pa.float32(), from_pandas=True)
      if isinstance(values[0], float)
      else pa.array(values)
      for name, values in columns.items()
    }
  )
  return table, np.stack(features)


class Scorer:
  """The pretrained model as a compiled function from tokens to scores.

  Compiles once for each padded prompt length, of which there are few.
  """

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    length_normalized: bool = False,
    pooling: str = 'mean',
    layer: int = -1,
  ):
    self._mesh = mesh
    self._max_new_tokens = max_new_tokens
    self._batch_tokens = batch_tokens
    graph, self._weights = nnx.split(decoder)
    self._score = jax.jit(
      functools.partial(
        _score,
        graph,
        end_ids=tuple(end_ids),
        max_new_tokens=max_new_tokens,
        length_normalized=length_normalized,
        pooling=pooling,
        layer=layer,
      )
    )

  def groups(self, lengths: Sequence[int]) -> list[models.Group]:
    """Which prompts run together, by their numbers of tokens."""
    return models.group(
      lengths,
      num_new=self._max_new_tokens,
      batch_tokens=self._batch_tokens,
      multiple=mesh_lib.batch_multiple(self._mesh),
      fill=True,
    )

  def __call__(
    self, tokens: Sequence[list[int]], group: models.Group
  ) -> dict[str, Any]:
    """Scores one group; every array returned has its num_rows."""
    tokens_BxL, mask_BxL = models.pad_left(
      [tokens[i] for i in group.indices], group.length, group.num_rows
    )
    batch = mesh_lib.shard_batch(self._mesh, (tokens_BxL, mask_BxL))
    return mesh_lib.on_host(self._score(self._weights, *batch))


def _score(
  graph: nnx.GraphDef,
  weights: nnx.State,
  tokens_BxL: jax.Array,
  mask_BxL: jax.Array,
  *,
  end_ids: tuple[int, ...],
  max_new_tokens: int,
  length_normalized: bool,
  pooling: str,
  layer: int,
) -> dict[str, Any]:
  decoder = nnx.merge(graph, weights)
  generation = models.generate(
    decoder,
    tokens_BxL,
    mask_BxL,
    max_new_tokens=max_new_tokens,
    end_ids=end_ids,
    observe=statistics.token_statistics,
    layer=layer,
  )
  num_B = generation.num_tokens_B
  step_BxT = jnp.arange(max_new_tokens) < num_B[:, None]
  scores = statistics.sequence_scores(
    generation.observed, step_BxT, length_normalized
  )
  scores['first_token_confidence'] = generation.observed.top1[:, 0]
  prompt_scores = statistics.sequence_scores(
    _prompt_statistics(decoder, generation.prompt.hidden_BxLxD, tokens_BxL),
    mask_BxL[:, :-1] & mask_BxL[:, 1:],
    length_normalized,
  )
  scores |= {f'prompt_{name}': x for name, x in prompt_scores.items()}
  return {
    'tokens': generation.tokens_BxT,
    'num_generated_tokens': num_B,
    'scores': scores,
    'features': pool_features(
      generation.prompt.features_BxLxD, mask_BxL, pooling
    ),
  }


def _prompt_statistics(
  decoder: models.Decoder, hidden_BxLxD: jax.Array, tokens_BxL: jax.Array
) -> statistics.TokenStatistics:
  """Statistics of each next prompt token, fields [B, L - 1].

  One position at a time: logits of the whole prompt, [B, L, V], would be the
  largest buffer by far.
  """

  def at_position(hidden_and_next):
    hidden_BxD, next_B = hidden_and_next
    return statistics.token_statistics(decoder.logits(hidden_BxD), next_B)

  of_LxB = jax.lax.map(
    at_position,
    (hidden_BxLxD[:, :-1].swapaxes(0, 1), tokens_BxL[:, 1:].swapaxes(0, 1)),
  )
  return jax.tree.map(jnp.transpose, of_LxB)
