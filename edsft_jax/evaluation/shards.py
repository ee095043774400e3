"""A cell's items on a task, in shards: a run can resume and be divided.

A shard is a range of the task's items. Its rows of items.jsonl are written as
soon as they are computed, by whatever process did it, and joined when all are
there.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

from edsft_jax import store
from edsft_jax.evaluation.task import Generate, Item, Task

# Tokens per shard, in full batches: enough that few slots are empty while the
# last rows of a shard finish, and few enough that a kill loses minutes.
_BATCHES = 4

Row = dict[str, Any]


def divide(task: Task, batch_tokens: int, num_processes: int) -> list[int]:
  """Where shards of about the same work end.

  The same number for each process, and more if there are many tokens.

  Args:
    task: the task with its items.
    batch_tokens: tokens per batch.
    num_processes: processes that divide the items.
  """
  costs = [_num_tokens(item, task.max_new_tokens) for item in task.items]
  total = sum(costs)
  each = -(-total // (_BATCHES * batch_tokens * num_processes))
  num_shards = max(each, 1) * num_processes
  ends: list[int] = []
  done = 0
  for number, cost in enumerate(costs, start=1):
    done += cost
    if done * num_shards >= total * (len(ends) + 1):
      ends.append(number)
  return ends


def _num_tokens(item: Item, max_new_tokens: int) -> int:
  """Tokens of the longest request; the others share most of its tokens."""
  lengths = [
    len(request.tokens)
    + (max_new_tokens if isinstance(request, Generate) else 0)
    for request in item.requests
  ]
  return max(lengths, default=0) + 1


def begin(
  folder: pathlib.Path, ends: Sequence[int], fingerprint: Mapping[str, Any]
) -> list[int]:
  """Where the shards end that an interrupted run left, or new ones.

  Args:
    folder: where they are.
    ends: where new shards end.
    fingerprint: what the rows depend on; shards of another one are removed.
  """
  plan = folder / _PLAN
  try:
    known = store.read_json(plan)
    if known['fingerprint'] == fingerprint:
      return known['ends']
  except (OSError, ValueError, KeyError, TypeError):
    pass  # There are none, or what they were made from is unknown.
  if folder.exists():
    shutil.rmtree(folder)
  store.write_json(plan, {'ends': [*ends], 'fingerprint': fingerprint})
  return [*ends]


_PLAN = 'plan.json'


@dataclasses.dataclass(frozen=True)
class Shards:
  """The shards of a cell on a task.

  Attributes:
    folder: their files, and the plan.
    ids: the items.
    ends: where each shard ends.
  """

  folder: pathlib.Path
  ids: Sequence[str]
  ends: Sequence[int]

  def items(self, shard: int) -> slice:
    """The items of a shard."""
    return slice(self.ends[shard - 1] if shard else 0, self.ends[shard])

  def missing(self) -> list[int]:
    """Shards that are not written, or not whole."""
    return [i for i in range(len(self.ends)) if self._read(i) is None]

  def write(self, shard: int, rows: Sequence[Row]) -> None:
    """Writes the rows of a shard.

    Raises:
      InputError: the disk is full.
    """
    store.write_jsonl(self.path(shard), rows)

  def path(self, shard: int) -> pathlib.Path:
    """The file of a shard."""
    return self.folder / f'{shard:05d}.jsonl'

  def journal(self, shard: int) -> pathlib.Path:
    """The file of what is known of a shard that is not whole yet."""
    return self.folder / f'{shard:05d}.journal'

  def join(self) -> list[Row]:
    """The rows of all items; every shard must be written."""
    parts = [store.read_jsonl(self.path(i)) for i in range(len(self.ends))]
    return [row for part in parts for row in part]

  def remove(self) -> None:
    """Removes the files, unless another command has done it."""
    shutil.rmtree(self.folder, ignore_errors=True)

  def _read(self, shard: int) -> list[Row] | None:
    """The rows of a shard; None unless its file is whole."""
    try:
      rows = store.read_jsonl(self.path(shard))
    except (OSError, ValueError):
      return None
    expected = self.ids[self.items(shard)]
    return rows if [row.get('id') for row in rows] == [*expected] else None
