"""What the score stage has to do: the shards that are not scored yet.

If prompts were appended to a scored pool, only these are scored: all earlier
ones become one shard before theirs.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

from edsft_jax import console, store
from edsft_jax.scoring import shards


@dataclasses.dataclass(frozen=True)
class ShardPlan:
  """The prompts to score and their shards.

  Attributes:
    num_earlier: how many prompts of the pool were scored before it grew.
    ranges: positions of each shard among the other prompts.
    folders: the paths of these shards.
    todo: numbers of the shards left to score.
    all_folders: all shards in pool order, with the one of earlier prompts.
  """

  num_earlier: int
  ranges: Sequence[tuple[int, int]]
  folders: Sequence[pathlib.Path]
  todo: Sequence[int]
  all_folders: Sequence[pathlib.Path]

  @classmethod
  def of(
    cls,
    workdir: store.Workdir,
    num_prompts: int,
    shard_prompts: int,
    num_earlier: int,
    todo: Sequence[int] | None = None,
  ) -> 'ShardPlan':
    """Lists the shards.

    Args:
      workdir: has them.
      num_prompts: size of the pool.
      shard_prompts: prompts per shard.
      num_earlier: how many were scored before the pool grew.
      todo: numbers of the shards left to score; None looks which exist.
    """
    ranges = shards.bounds(num_prompts - num_earlier, shard_prompts)
    folders = [
      shards.folder(workdir.score_shards, i) for i in range(len(ranges))
    ]
    if todo is None:
      todo = [i for i, path in enumerate(folders) if not path.exists()]
    earlier = [shards.earlier(workdir.score_shards)] if num_earlier else []
    return cls(num_earlier, ranges, folders, todo, [*earlier, *folders])


def begin(
  manifest: store.Manifest,
  fingerprint: dict[str, Any],
  workdir: store.Workdir,
  num_prompts: int,
  shard_prompts: int,
) -> tuple[int, Sequence[int]] | None:
  """Begins or resumes the stage.

  Returns:
    How many prompts were scored before the pool grew, and the numbers of the
    shards left to score; None if the stage is done.

  Raises:
    InputError: the workdir was scored from other inputs.
  """
  earlier = shards.earlier(workdir.score_shards)
  begun = earlier.exists() or any(workdir.score_shards.glob('[0-9]*'))
  if not manifest.is_done('score') and not begun:
    manifest.forget('score')  # There are no shards to mix with other inputs.
  _keep_earlier(manifest, fingerprint, workdir)
  done = manifest.begin('score', fingerprint)
  if done and workdir.scores.exists() and store.feature_files(workdir):
    shutil.rmtree(workdir.score_shards, ignore_errors=True)
    return None
  # Left by an interrupted join, perhaps with another number of processes.
  for path in workdir.features.parent.glob('features*.npy'):
    path.unlink()
  num_earlier = shards.num_prompts(earlier)
  plan = ShardPlan.of(workdir, num_prompts, shard_prompts, num_earlier)
  return num_earlier, plan.todo


def _keep_earlier(
  manifest: store.Manifest, fingerprint: dict[str, Any], workdir: store.Workdir
) -> None:
  """If the pool grew since it was scored, makes a shard of what is scored."""
  if not manifest.is_done('score') or not workdir.scores.exists():
    return
  known = manifest.stages['score'].fingerprint
  before = store.round_of(manifest, known['pool'])
  others = {**known, 'pool': fingerprint['pool']}
  if before is None or store.changed(others, store.plain(fingerprint)):
    return
  shutil.rmtree(workdir.score_shards, ignore_errors=True)
  shards.write(
    shards.earlier(workdir.score_shards),
    store.read_parquet(workdir.scores),
    store.read_features(workdir),
  )
  manifest.restart('score', fingerprint, manifest.stages['score'].seconds)
  console.say(
    'score', f'{console.count(before.prompts, "prompt")} scored earlier'
  )
