"""Splits the pool into shards, in order; each shard is written atomically.

A shard is a folder with the scores and features of its prompts. Batches never
cross shards, so an interrupted and resumed run writes the same files as an
uninterrupted one.
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
  """The path of shard `index`; it exists once the shard is complete."""
  return shards / f'{index:05d}'


def write(path: pathlib.Path, scores: pa.Table, features: np.ndarray) -> None:
  """Writes one shard; the folder appears once both files are complete."""
  with store.replacing(path) as partial:
    partial.mkdir()
    pq.write_table(scores, partial / 'scores.parquet')
    store.write_npy(partial / 'features.npy', features)


def part(items: Sequence[T], index: int, count: int) -> Sequence[T]:
  """The index-th of `count` contiguous parts of nearly equal size."""
  return items[len(items) * index // count : len(items) * (index + 1) // count]


def join_features(
  workdir: store.Workdir, num_shards: int, index: int, count: int
) -> None:
  """Joins the index-th of `count` parts of the shards into a features file.

  Reads one shard at a time through a memory map, so that the whole matrix is
  never in memory and few files are open.
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
  """Joins the shards into scores.parquet."""
  store.write_parquet(
    workdir.scores,
    pa.concat_tables(
      (
        pq.read_table(folder(workdir.score_shards, i) / 'scores.parquet')
        for i in range(num_shards)
      ),
      # A shard without a continued prompt has no columns of continuations.
      promote_options='default',
    ),
  )
