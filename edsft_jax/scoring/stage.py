"""The score stage: pool/ -> scores/, using only the pretrained model."""

from collections.abc import Callable, Sequence
import contextlib
import pathlib
import shutil
from typing import Any

import ml_collections
import numpy as np
import tqdm

from edsft_jax import (
  console,
  errors,
  inference,
  interrupts,
  models,
  out_of_memory,
  processes,
  store,
)
from edsft_jax import mesh as mesh_lib
from edsft_jax.inference.throughput import Rate
from edsft_jax.scoring import loading, shards, statistics, table
from edsft_jax.scoring.encoding import to_generate
from edsft_jax.scoring.plan import ShardPlan, begin
from edsft_jax.scoring.pooling import POOLINGS
from edsft_jax.scoring.scorer import Scorer, Scores


def check(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  planned: frozenset[str],
) -> None:
  """Rejects bad scoring options and an unusable model before any work.

  Raises:
    InputError: naming the option or the file.
  """
  check_options(config)
  mesh_lib.make_mesh(**config.mesh)
  models.load_prompt_format(models.resolve(config.model.path), **config.prompt)
  store.require(workdir.pool, 'pool', planned)


def check_options(config: ml_collections.ConfigDict) -> None:
  """Rejects bad scoring options, and a model that does not support them.

  Raises:
    InputError: naming the option or the file.
  """
  c = config.scoring
  for name in ('max_new_tokens', 'batch_tokens', 'shard_prompts'):
    errors.refuse_below(f'scoring.{name}', c[name], 1)
  errors.refuse_below(
    'scoring.confidence_prompts_per_task', c.confidence_prompts_per_task, 0
  )
  if c.features.pooling not in POOLINGS:
    raise errors.unknown(
      f'scoring.features.pooling {c.features.pooling!r}',
      c.features.pooling,
      POOLINGS,
    )
  decoder_config = models.check(models.resolve(config.model.path))
  models.parse_dtype(config.model.dtype)
  if not -1 <= c.features.layer <= decoder_config.num_layers:
    raise errors.InputError(
      f'scoring.features.layer is {c.features.layer}: must be -1 to '
      f'{decoder_config.num_layers} for this model'
    )
  if c.max_new_tokens >= decoder_config.context:
    raise errors.InputError(
      f'scoring.max_new_tokens is {c.max_new_tokens}: it must leave room for '
      f"a prompt in the model's context of {decoder_config.context}"
    )
  for token in c.stop_token_ids:
    if not isinstance(token, int) or not 0 <= token < decoder_config.vocab_size:
      raise errors.InputError(
        f'scoring.stop_token_ids has {token}: the model has ids 0 to '
        f'{decoder_config.vocab_size - 1}'
      )


def run(config: ml_collections.ConfigDict, workdir: store.Workdir) -> None:
  """Scores every prompt of the pool; resumes an interrupted run.

  Writes scores.parquet and the features in pool order. With several processes,
  each scores a part of the shards, or all score every shard together if the
  model spans them; each writes one file of features.

  Raises:
    InputError: the workdir was scored from other inputs, scores or features are
      not finite, the device has too little memory, or some process cannot see
      the workdir.
  """
  check(config, workdir, frozenset())
  path = models.resolve(config.model.path)
  pool = store.read_prompts(workdir.pool)
  manifest = store.Manifest(workdir)
  first = processes.is_first()
  # The first process decides for all what is left to do, because a network file
  # system may show each a different state. Nothing else is written before that.
  size = len(pool), config.scoring.shard_prompts
  begun = processes.from_first(
    'shards to score',
    lambda: begin(
      manifest, _fingerprint(config, workdir, path, pool), workdir, *size
    ),
  )
  if begun is None:
    console.say('score', 'already done')
    return
  plan = ShardPlan.of(workdir, *size, *begun)
  with manifest.timed('score') if first else contextlib.nullcontext():
    if first:
      manifest.record_versions('score')
    notes, with_control = _score_shards(config, path, pool, plan)
    processes.barrier('scored')
    processes.await_files(plan.all_folders)
    shards.join_features(
      workdir, plan.all_folders, processes.index(), processes.count()
    )
    processes.barrier('joined')
    if not first:
      return
    shards.join_scores(workdir, plan.all_folders)
  counts = {
    **table.counts(workdir),
    'prompts_with_control_tokens': with_control,
  }
  if noise := _noise(config.model.dtype, counts):
    notes.append(noise)
    console.say('score', noise)
  manifest.finish('score', {**counts, 'notes': notes})
  shutil.rmtree(workdir.score_shards)
  _say_counts(counts, workdir)


def _say_counts(counts: dict[str, int], workdir: store.Workdir) -> None:
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


def _noise(dtype: str, counts: dict[str, int]) -> str:
  """What half-precision activations cost, or '' if there are none."""
  if models.parse_dtype(dtype)[1].itemsize > 2 or not counts['continued']:
    return ''
  share = counts['continuations_near_a_tie'] / counts['continued']
  return (
    f'{share:.0%} of the continuations have a step whose two best logits '
    f'differ by less than {statistics.NEAR_TIES[dtype]}, the error of {dtype} '
    'activations: their min_margin is mostly noise, and so is their text from '
    'there on; model.dtype=bfloat16_weights does not have this error'
  )


def _fingerprint(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  path: pathlib.Path,
  pool: store.Prompts,
) -> dict[str, Any]:
  c = config.scoring
  # Without a template, the separator joins the turns of a conversation; a
  # single turn does not depend on it.
  turns = any(not isinstance(x, str) and len(x) > 1 for x in pool.prompts)
  return {
    'pool': store.hash_file(workdir.pool),
    **models.fingerprint(path, config.model.dtype, config.prompt, turns),
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


def _bar(plan: ShardPlan, mine: Sequence[int]) -> tqdm.tqdm:
  """A progress bar over all shards, or over those of this process."""

  def prompts(numbers: Sequence[int]) -> int:
    return sum(plan.ranges[i][1] - plan.ranges[i][0] for i in numbers)

  if len(mine) == len(plan.todo):
    total = plan.ranges[-1][1] if plan.ranges else 0
    done = total - prompts(plan.todo)
    return console.bar('score', total, 'prompts', initial=done)
  num = processes.count()
  return console.bar(
    'score', prompts(mine), f'prompts in one of {num} processes'
  )


def _score_shards(
  config: ml_collections.ConfigDict,
  path: pathlib.Path,
  pool: store.Prompts,
  plan: ShardPlan,
) -> tuple[list[str], int]:
  """Scores this process's part of the shards.

  Returns:
    The manifest's notes, and the number of prompts with control tokens.
  """
  c = config.scoring
  prompt_format, notes, with_control = _prompt_format(config, path, pool)
  generate, in_sample = _to_generate(c, pool, plan)
  pool = pool.after(plan.num_earlier)
  loaded = loading.load(
    config, path, prompt_format, pool, min(c.shard_prompts, len(pool))
  )
  encoded, mesh, scorer_of = loaded.encoded, loaded.mesh, loaded.scorer_of

  mine = shards.part(plan.todo, processes.index(), processes.count())
  computed = plan.todo if mesh.is_multi_process else mine
  if 0 < len(plan.todo) < processes.count() and not mesh.is_multi_process:
    shards_text = console.count(len(plan.todo), 'shard')
    text = f'{shards_text} for {processes.count()} processes: some stay idle'
    console.say('score', text)
  sizes = [c.batch_tokens, c.batch_tokens // 2]
  with _bar(plan, computed) as bar:
    rate = Rate(bar, mesh)
    for i in computed:
      interrupts.raise_lost()
      part = slice(*plan.ranges[i])
      scores = _within_memory(
        scorer_of,
        sizes,
        encoded.tokens[part],
        generate[part],
        rate,
        mesh.is_multi_process,
      )
      table.refuse_not_finite(scores, pool.ids[part], encoded.lengths[part])
      if i in mine:
        columns = {
          'id': pool.ids[part],
          'num_prompt_tokens': encoded.lengths[part],
          'truncated': encoded.truncated[part],
        }
        if in_sample is not None:
          columns['confidence_sample'] = in_sample[part]
        rows = table.make_table(columns, scores, prompt_format)
        shards.write(plan.folders[i], rows, scores.features)
  _say_programs(scorer_of(sizes[0]).num_programs, loaded.shapes, generate)
  return notes, with_control


def _prompt_format(
  config: ml_collections.ConfigDict, path: pathlib.Path, pool: store.Prompts
) -> tuple[models.PromptFormat, list[str], int]:
  """Loads the prompt format, and prints the notes about it.

  Returns:
    The format, the manifest's notes, and the number of prompts with control
    tokens.
  """
  notes: list[str] = []
  prompt_format = models.load_prompt_format(
    path, **config.prompt, log=notes.append
  )
  with_control = sum(
    prompt_format.num_control_tokens(prompt) > 0 for prompt in pool.prompts
  )
  if with_control:
    prompts = console.count(with_control, 'prompt')
    notes.append(f'{prompts} with control tokens, {prompt_format.control_note}')
  if rounding := models.rounding_note(path, config.model.dtype):
    notes.append(rounding)
  for note in notes:
    console.say('score', note)
  return prompt_format, notes, with_control


def _to_generate(
  options: ml_collections.ConfigDict, pool: store.Prompts, plan: ShardPlan
) -> tuple[np.ndarray, np.ndarray | None]:
  """`to_generate` for the prompts that were not scored earlier."""
  sampled = None
  if plan.num_earlier and options.confidence_prompts_per_task:
    sampled = shards.confidence_sample(plan.all_folders[0])
  generate, in_sample = to_generate(options, pool.tasks, len(pool), sampled)
  new = slice(plan.num_earlier, None)
  return generate[new], None if in_sample is None else in_sample[new]


def _say_programs(
  num_programs: int, shapes: inference.Shapes, generate: np.ndarray
) -> None:
  if not num_programs:
    return

  def listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))

  parts = [f'prompts packed into rows of {listed(shapes.row_lengths)} tokens']
  if generate.any():
    parts.append(f'decoded at {listed(shapes.cache_lengths)}')
  console.say(
    'score',
    f'{console.count(num_programs, "program")} compiled: {", ".join(parts)}',
  )


def _within_memory(
  scorer_of: Callable[[int], Scorer],
  sizes: list[int],
  tokens: Sequence[np.ndarray],
  generate: np.ndarray,
  rate: Rate,
  together: bool = False,
) -> Scores:
  """Scores prompts with the first batch size that fits the device's memory.

  Args:
    scorer_of: tokens per batch -> scorer.
    sizes: tokens per batch, tried in order; sizes that do not fit are removed.
    tokens: ids of each prompt.
    generate: prompts to continue.
    rate: the progress callback.
    together: whether all processes compute this, and so need the same size.

  Raises:
    InputError: no size fits, or only some processes ran out of memory.
  """
  while True:
    before = rate.work
    try:
      return scorer_of(sizes[0])(tokens, generate, rate)
    except out_of_memory.ERRORS as e:
      if not out_of_memory.is_meant_by(e):
        raise
      alone = together and not out_of_memory.is_everywhere()
      if len(sizes) == 1 or alone:
        raise errors.InputError(
          f'the device runs out of memory with {sizes[0]} tokens per batch: '
          'lower scoring.batch_tokens, or remove the longest prompts (here of '
          f'{max(map(len, tokens))} tokens)'
        ) from e
      console.say(
        'score',
        f'out of memory with scoring.batch_tokens={sizes.pop(0)}: continuing '
        f'with {sizes[0]}',
      )
      rate.rewind(before)
