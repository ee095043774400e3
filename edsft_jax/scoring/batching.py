"""The few shapes that a pool's prompts run in.

Each padded length is a program to be compiled, and every slot of padding is
computed for nothing. So the lengths follow the pool: few, and placed where
its prompts are.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from edsft_jax import models

# Padded lengths are multiples of it.
_STEP = 16
# Programs at most: one a padded length to read prompts (another where only some
# are continued), one a room to decode.
_MOST_LENGTHS = 8
_MOST_ROOMS = 4
# Compiling a program takes about as long as running it on this many slots.
_SLOTS_TO_COMPILE = 2**13
# Of a batch's tokens, what one read takes: of prompts that are decoded then,
# less, so that few places wait for others to be free. More at once is not
# faster on a CPU, whose caches it leaves.
_SHARE_TO_ADMIT = 32
_SHARE_TO_READ = 16


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Padded lengths, and the rooms in which rows of several are decoded.

  Attributes:
    lengths: padded numbers of prompt tokens, ascending.
    rooms: slots for a prompt in the cache of a decode step, ascending; each
      is one of `lengths`, the last the last.
  """

  lengths: tuple[int, ...]
  rooms: tuple[int, ...]

  @classmethod
  def of(cls, lengths: Sequence[int]) -> 'Shapes':
    """Chooses shapes for prompts of these many tokens."""
    padded = -(-np.maximum(lengths, 1) // _STEP) * _STEP
    sizes, counts = np.unique(padded, return_counts=True)
    chosen = _choose(sizes, counts, _MOST_LENGTHS)
    counts = np.bincount(
      np.searchsorted(chosen, sizes), weights=counts, minlength=len(chosen)
    )
    rooms = _choose(chosen, counts, _MOST_ROOMS)
    return cls(tuple(chosen.tolist()), tuple(rooms.tolist()))

  def length(self, num_tokens: int) -> int:
    """The padded length of a prompt."""
    return next(size for size in self.lengths if num_tokens <= size)

  def room(self, num_tokens: int) -> int:
    """The room that a prompt is decoded in."""
    return next(size for size in self.rooms if num_tokens <= size)


@dataclasses.dataclass(frozen=True)
class Rows:
  """How many rows run at once.

  Attributes:
    batch_tokens: slots of all rows together, padding included.
    num_new: slots of a row beside those of its prompt.
    multiple: what a number of rows must be divisible by.
    most: rows that there are.
  """

  batch_tokens: int
  num_new: int
  multiple: int
  most: int

  def to_decode(self, room: int) -> int:
    """Places of the batch in which rows are decoded."""
    return self._fit(self.batch_tokens // (room + self.num_new))

  def to_admit(self, length: int, room: int) -> int:
    """Rows read in one go, to be decoded in a room then."""
    rows = self.batch_tokens // _SHARE_TO_ADMIT // length
    return min(self._fit(rows), self.to_decode(room))

  def to_read(self, length: int) -> int:
    """Rows read in one go when none is decoded."""
    return self._fit(self.batch_tokens // _SHARE_TO_READ // length)

  def _fit(self, rows: int) -> int:
    most = -(-self.most // self.multiple)
    return min(max(rows // self.multiple, 1), most) * self.multiple


def chunks(
  lengths: Sequence[int],
  indices: Sequence[int],
  shapes: Shapes,
  num_rows: Callable[[int], int],
) -> list[models.Group]:
  """Puts prompts of like length together, the shortest first.

  Args:
    lengths: tokens of every prompt.
    indices: the prompts wanted.
    shapes: from which the padded lengths are taken.
    num_rows: rows of a chunk by its padded length.

  Returns:
    Full chunks, but for the first.
  """
  order = sorted(indices, key=lambda i: -lengths[i])
  result = []
  while order:
    length = shapes.length(lengths[order[0]])
    rows = num_rows(length)
    result.append(models.Group(order[:rows], length, rows))
    order = order[rows:]
  return result[::-1]


def _choose(sizes: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
  """Chooses some of the sizes, so that rounding up to them wastes little.

  Args:
    sizes: ascending.
    counts: rows of each.
    most: sizes to choose at most; fewer when more are not worth compiling.

  Returns:
    The chosen sizes, ascending, the largest among them.
  """
  num = len(sizes)
  below = np.concatenate([[0], np.cumsum(counts)])
  # best[k, j]: slots of the rows of the first j sizes, rounded up to k sizes
  # of which the last is the j-th.
  best = np.full((min(most, num) + 1, num + 1), np.inf)
  before = np.zeros(best.shape, int)
  best[0, 0] = 0
  for k in range(1, len(best)):
    for j in range(k, num + 1):
      slots = best[k - 1, :j] + (below[j] - below[:j]) * sizes[j - 1]
      before[k, j] = np.argmin(slots)
      best[k, j] = slots[before[k, j]]
  programs = np.arange(len(best))
  k, j = int(np.argmin(best[:, num] + programs * _SLOTS_TO_COMPILE)), num
  chosen = []
  while k:
    chosen.append(sizes[j - 1])
    j, k = before[k, j], k - 1
  return np.array(chosen[::-1])
