"""The pool cut into shards by its own order, each written whole or not at all.

A shard is a folder with the scores and the features of its prompts. Batches
never cross a shard, so a run that was cut short and went on gives the files
of one that was not.
"""

from collections.abc import Sequence
import pathlib
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import store

T = TypeVar('T')


def bounds(num_prompts: int, shard_prompts: int) -> list[tuple[int, int]]:
  """Half-open ranges of pool positions, in order."""
  return [
    (start, min(start + shard_prompts, num_prompts))
    for start in range(0, num_prompts, shard_prompts)
  ]


def folder(shards: pathlib.Path, index: int) -> pathlib.Path:
  """Where shard `index` lies once it is complete."""
  return shards / f'{index:05d}'


def write(path: pathlib.Path, scores: pa.Table, features: np.ndarray) -> None:
  """Writes one shard; the folder appears when both files are complete."""
  with store.replacing(path) as partial:
    partial.mkdir()
    pq.write_table(scores, partial / 'scores.parquet')
    store.write_npy(partial / 'features.npy', features)


def part(items: Sequence[T], index: int, count: int) -> Sequence[T]:
  """The index-th of `count` even parts, in order."""
  return items[len(items) * index // count : len(items) * (index + 1) // count]


def join_features(
  workdir: store.Workdir, num_shards: int, index: int, count: int
) -> None:
  """Makes the index-th of `count` features files of its part of the shards.

  They are read through memory maps, one at a time: the pool's matrix is never
  held, and neither are more files open than a process may have.
  """

  def read(number: int) -> np.ndarray:
    path = folder(workdir.score_shards, number)
    return np.load(path / 'features.npy', mmap_mode='r')

  mine = part(range(num_shards), index, count)
  path = workdir.features
  if count > 1:
    path = workdir.features_part(index, count)
  shape = (sum(len(read(i)) for i in mine), read(0).shape[1])
  store.write_rows(path, shape, np.float32, map(read, mine))


def join_scores(workdir: store.Workdir, num_shards: int) -> None:
  """Makes scores.parquet of the shards."""
  store.write_parquet(
    workdir.scores,
    pa.concat_tables(
      (
        pq.read_table(folder(workdir.score_shards, i) / 'scores.parquet')
        for i in range(num_shards)
      ),
      # A shard of which no prompt was drawn knows no continuation.
      promote_options='default',
    ),
  )
