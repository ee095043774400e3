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


def earlier(shards: pathlib.Path) -> pathlib.Path:
  """The path of the shard of all prompts scored before the pool grew."""
  return shards / 'earlier'


def num_prompts(path: pathlib.Path) -> int:
  """Number of prompts in a shard; 0 if it does not exist."""
  if not path.exists():
    return 0
  return int(pq.read_metadata(path / 'scores.parquet').num_rows)


def confidence_sample(path: pathlib.Path) -> np.ndarray:
  """Which prompts of a shard a task's confidence is estimated from; bool."""
  table = pq.read_table(path / 'scores.parquet', columns=['confidence_sample'])
  return table['confidence_sample'].to_numpy()


def part(items: Sequence[T], index: int, count: int) -> Sequence[T]:
  """The index-th of `count` contiguous parts of nearly equal size."""
  return items[len(items) * index // count : len(items) * (index + 1) // count]


def join_features(
  workdir: store.Workdir,
  folders: Sequence[pathlib.Path],
  index: int,
  count: int,
) -> None:
  """Joins the index-th of `count` parts of the shards into a features file.

  Reads one shard at a time through a memory map, so that the whole matrix is
  never in memory and few files are open.
  """

  def read(path: pathlib.Path) -> np.ndarray:
    return np.load(path / 'features.npy', mmap_mode='r')

  mine = part(folders, index, count)
  path = workdir.features
  if count > 1:
    path = workdir.features_part(index, count)
  shape = (sum(len(read(i)) for i in mine), read(folders[0]).shape[1])
  store.write_rows(path, shape, np.float32, map(read, mine))


def join_scores(
  workdir: store.Workdir, folders: Sequence[pathlib.Path]
) -> None:
  """Joins the shards into scores.parquet."""
  store.write_parquet(
    workdir.scores,
    pa.concat_tables(
      (pq.read_table(path / 'scores.parquet') for path in folders),
      # A shard without a continued prompt has no columns of continuations.
      promote_options='default',
    ),
  )
