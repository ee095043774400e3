"""Chooses the few shapes that a set of prompts runs in.

Each padded length needs a compiled program, and padding wastes computation. So
there are few lengths, chosen to fit the prompts.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from edsft_jax.inference import packing


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
  """Parameters of the choice of shapes.

  Attributes:
    compile_tokens: compiling a program takes about as long as running it on
      this many tokens.
    step: padded lengths are multiples of this.
    max_lengths: limit on padded lengths. Each needs a program to read prompts
      that are continued.
    max_cache_lengths: limit on cache lengths, each with a program to decode.
    row_length: tokens of the shortest packed rows, about.
    key_cost: see `packing.row_lengths`.
  """

  compile_tokens: float
  step: int = 8
  max_lengths: int = 8
  max_cache_lengths: int = 4
  row_length: int = 256
  key_cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Padded lengths of prompts, and cache-length buckets for decoding.

  Attributes:
    lengths: padded numbers of prompt tokens, ascending.
    cache_lengths: cache entries for the prompt while decoding, ascending; a
      subset of `lengths` that includes the last.
    row_lengths: tokens per packed row, ascending; the last is at least that of
      `lengths`.
  """

  lengths: tuple[int, ...]
  cache_lengths: tuple[int, ...]
  row_lengths: tuple[int, ...]

  @classmethod
  def of(
    cls,
    lengths: Sequence[int],
    options: ShapeOptions,
  ) -> 'Shapes':
    """Chooses shapes for prompts of these lengths."""
    padded = -(-np.maximum(lengths, 1) // options.step) * options.step
    sizes, counts = np.unique(padded, return_counts=True)
    cost = options.compile_tokens
    chosen = _choose(sizes, counts, options.max_lengths, cost)
    counts = np.bincount(
      np.searchsorted(chosen, sizes), weights=counts, minlength=len(chosen)
    )
    caches = _choose(chosen, counts, options.max_cache_lengths, cost)
    rows = packing.row_lengths(
      lengths,
      shortest=options.row_length,
      step=options.step,
      key_cost=options.key_cost,
      compile_tokens=cost,
    )
    return cls(tuple(chosen.tolist()), tuple(caches.tolist()), rows)

  def length(self, num_tokens: int) -> int:
    """The padded length of a prompt.

    Raises:
      ValueError: it is longer than all prompts that the shapes are for.
    """
    return _smallest(self.lengths, num_tokens)

  def cache_length(self, num_tokens: int) -> int:
    """The cache-length bucket that a prompt is decoded in.

    Raises:
      ValueError: it is longer than all prompts that the shapes are for.
    """
    return _smallest(self.cache_lengths, num_tokens)


def _smallest(sizes: Sequence[int], num_tokens: int) -> int:
  for size in sizes:
    if num_tokens <= size:
      return size
  raise ValueError(
    f'a prompt has {num_tokens} tokens, the shapes are for at most {sizes[-1]}'
  )


@dataclasses.dataclass(frozen=True)
class BatchSizes:
  """Chooses how many rows run at once.

  Attributes:
    batch_tokens: tokens per batch, padding included.
    num_new: new tokens per row.
    multiple: numbers of rows are multiples of this.
    total_rows: total number of rows.
    read_tokens: prompt tokens per call, up to a quarter of the batch. Few, so
      that chunks fit the lengths of their prompts, and few slots stay empty
      while others finish; enough to make a call worth its overhead.
  """

  batch_tokens: int
  num_new: int
  multiple: int
  total_rows: int
  read_tokens: int

  def num_slots(self, cache_length: int) -> int:
    """Number of slots for decoding."""
    return self._fit(self.batch_tokens // (cache_length + self.num_new))

  def fewer_slots(self, num_slots: int) -> int:
    """A quarter as many slots, for the last rows."""
    return max(num_slots // (4 * self.multiple), 1) * self.multiple

  def to_prefill(self, length: int, cache_length: int) -> int:
    """Rows per prefill, for decoding with this cache length."""
    return min(self.to_read(length), self.num_slots(cache_length))

  def to_read(self, length: int) -> int:
    """Rows of padded prompts per call."""
    rows = self._fit(min(self.read_tokens, self.batch_tokens // 4) // length)
    # Spread evenly over the calls, so that the last is not mostly padding.
    num_calls = -(-self.total_rows // rows)
    return self._up(-(-self.total_rows // num_calls))

  def to_pack(self, length: int) -> int:
    """Packed rows of this length per call."""
    tokens = min(self.read_tokens, self.batch_tokens // 4)
    return self._fit(tokens // length)

  def _fit(self, rows: int) -> int:
    most = self._up(self.total_rows)
    return min(max(rows // self.multiple, 1) * self.multiple, most)

  def _up(self, rows: int) -> int:
    return -(-rows // self.multiple) * self.multiple


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Prompts that are read together, and their padded shape."""

  indices: list[int]
  length: int
  num_rows: int


def chunks(
  lengths: Sequence[int],
  indices: Sequence[int],
  shapes: Shapes,
  num_rows: Callable[[int], int],
) -> list[Chunk]:
  """Groups prompts of similar length, the shortest first.

  Args:
    lengths: tokens of every prompt.
    indices: the prompts to group.
    shapes: the padded lengths to choose from.
    num_rows: padded length -> rows of a chunk.

  Returns:
    Chunks, all full except for the first.
  """
  order = sorted(indices, key=lambda i: -lengths[i])
  result = []
  while order:
    length = shapes.length(lengths[order[0]])
    rows = num_rows(length)
    result.append(Chunk(order[:rows], length, rows))
    order = order[rows:]
  return result[::-1]


def pad_left(
  rows: Sequence[Sequence[int] | np.ndarray],
  length: int,
  num_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids -> tokens [num_rows, length] int32 and mask, padded left.

  Padding and the rows beyond the given ones have id 0 and a false mask.

  Raises:
    ValueError: a row is longer than `length`, or there are too many rows.
  """
  num_rows = len(rows) if num_rows is None else num_rows
  if len(rows) > num_rows:
    raise ValueError(f'{len(rows)} rows do not fit {num_rows}')
  tokens = np.zeros((num_rows, length), np.int32)
  mask = np.zeros((num_rows, length), bool)
  for number, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'a row of {len(row)} tokens exceeds {length}')
    if len(row):
      tokens[number, -len(row) :] = row
      mask[number, -len(row) :] = True
  return tokens, mask


def _choose(
  sizes: np.ndarray, counts: np.ndarray, max_sizes: int, compile_tokens: float
) -> np.ndarray:
  """Chooses a subset of sizes, so that rounding up to them wastes little.

  Args:
    sizes: candidate sizes, ascending.
    counts: number of rows of each size.
    max_sizes: sizes to choose at most; fewer if more are not worth compiling.
    compile_tokens: the cost of each size, in tokens.

  Returns:
    The chosen sizes, ascending, including the largest.
  """
  num = len(sizes)
  below = np.concatenate([[0], np.cumsum(counts)])
  # Dynamic programming. best[k, j]: tokens of the rows of the first j sizes,
  # rounded up to k sizes, the last of which is the j-th.
  best = np.full((min(max_sizes, num) + 1, num + 1), np.inf)
  before = np.zeros(best.shape, int)
  best[0, 0] = 0
  for k in range(1, len(best)):
    for j in range(k, num + 1):
      tokens = best[k - 1, :j] + (below[j] - below[:j]) * sizes[j - 1]
      before[k, j] = np.argmin(tokens)
      best[k, j] = tokens[before[k, j]]
  programs = np.arange(len(best))
  k, j = int(np.argmin(best[:, num] + programs * compile_tokens)), num
  chosen = []
  while k:
    chosen.append(sizes[j - 1])
    j, k = before[k, j], k - 1
  return np.array(chosen[::-1])
