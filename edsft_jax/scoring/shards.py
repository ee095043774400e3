"""The pool cut into shards by its own order, each written whole or not at all.

A shard is a folder with the scores and the features of its prompts. Batches
never cross a shard, so a run that was cut short and went on gives the files
of one that was not.
"""

import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edsft_jax import artifacts


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
  with artifacts.replacing(path) as partial:
    partial.mkdir()
    pq.write_table(scores, partial / 'scores.parquet')
    np.save(partial / 'features.npy', features)


def join(workdir: artifacts.Workdir, num_shards: int) -> None:
  """Makes scores.parquet and features.npy of the shards and removes them.

  Features go through a memory map: the pool's matrix is never held twice.
  """
  folders = [folder(workdir.score_shards, i) for i in range(num_shards)]
  features = [np.load(f / 'features.npy', mmap_mode='r') for f in folders]
  with artifacts.replacing(workdir.features) as partial:
    joined = np.lib.format.open_memmap(
      partial,
      mode='w+',
      dtype=np.float32,
      shape=(sum(len(f) for f in features), features[0].shape[1]),
    )
    start = 0
    for part in features:
      joined[start : start + len(part)] = part
      start += len(part)
    joined.flush()
    del joined
  artifacts.write_parquet(
    workdir.scores,
    pa.concat_tables(
      (pq.read_table(f / 'scores.parquet') for f in folders),
      # A shard of which no prompt was drawn knows no continuation.
      promote_options='default',
    ),
  )
  shutil.rmtree(workdir.score_shards)
