"""Chooses the few shapes that a set of prompts runs in.

Each length needs a compiled program, and padding wastes computation. So there
are few lengths, chosen to fit the prompts.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import numpy as np

from edsft_jax.inference import packing

# Tokens of packed rows, padding included, for each token of a prompt, about.
_PACKING_SLACK = 1.05


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
  """Parameters of the choice of shapes.

  Attributes:
    compile_tokens: compiling a program takes about as long as running it on
      this many tokens.
    step: lengths are multiples of this.
    max_cache_lengths: limit on cache lengths, each with a program to decode.
    max_row_lengths: limit on lengths of packed rows, each with a program that
      reads them.
    row_length: tokens of the shortest packed rows, about; fewer if no group of
      prompts has so many.
    key_cost: see `packing.row_lengths`.
  """

  compile_tokens: float
  step: int = 8
  max_cache_lengths: int = 4
  max_row_lengths: int = 8
  row_length: int = 256
  key_cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Lengths of packed rows, and cache-length buckets for decoding.

  Attributes:
    cache_lengths: cache entries for the prompt while decoding, ascending.
    row_lengths: tokens per packed row, ascending.
    targets: tokens that packed rows are filled up to, ascending.
    shortest: tokens of the shortest prompt.
    mean: average number of tokens of a prompt.
    shares: of all prompt tokens, those in rows of each length.
  """

  cache_lengths: tuple[int, ...]
  row_lengths: tuple[int, ...]
  targets: tuple[int, ...]
  shortest: int
  mean: float
  shares: tuple[float, ...]

  @classmethod
  def of(
    cls,
    lengths: Sequence[int],
    options: ShapeOptions,
    groups: Sequence[Sequence[int]] | None = None,
    continued: bool = False,
  ) -> 'Shapes':
    """Chooses shapes for prompts of these lengths.

    Args:
      lengths: tokens of each prompt.
      options: the parameters.
      groups: indices of prompts that may share a packed row; None: all may.
      continued: whether prompts are read to be continued, so that only those
        of one cache length share a row.
    """
    lengths = [max(length, 1) for length in lengths]
    shortest, mean = min(lengths), sum(lengths) / len(lengths)
    cost, step = options.compile_tokens, options.step
    caches = padded_lengths(lengths, options.max_cache_lengths, cost, step)
    targets = packing.row_lengths(
      lengths,
      shortest=options.row_length,
      step=step,
      key_cost=options.key_cost,
      compile_tokens=cost,
    )
    groups = [range(len(lengths))] if groups is None else groups
    if continued:
      groups = _by_cache_length(lengths, caches, groups)
    # Some rows are not full, such as those of a small group.
    filled = packing.pack(
      lengths,
      targets,
      groups,
      functools.partial(packing.most_sequences, shortest=shortest),
    )
    rows = padded_lengths(
      [row.length for row in filled], options.max_row_lengths, cost, step
    )
    targets = tuple(sorted({min(target, rows[-1]) for target in targets}))
    tokens = dict.fromkeys(rows, 0)
    for row in filled:
      tokens[smallest(rows, row.length)] += row.length
    shares = tuple(num / sum(lengths) for num in tokens.values())
    return cls(caches, rows, targets, shortest, mean, shares)

  def cache_length(self, num_tokens: int) -> int:
    """The cache-length bucket that a prompt is decoded in.

    Raises:
      ValueError: it is longer than all prompts that the shapes are for.
    """
    return smallest(self.cache_lengths, num_tokens)

  def most_sequences(self, row_length: int) -> int:
    """Number of prompts that a row of this length may have."""
    return packing.most_sequences(row_length, self.shortest)

  def num_rows(self, length: int, num_tokens: float) -> int:
    """Rows of this length, about, for prompts with so many tokens in all."""
    share = self.shares[self.row_lengths.index(length)]
    return math.ceil(_PACKING_SLACK * share * num_tokens / length)

  def pack(
    self,
    lengths: Sequence[int],
    groups: Sequence[Sequence[int]],
    most: float = math.inf,
  ) -> list[packing.Row]:
    """Packs prompts into rows of `row_lengths`.

    Args:
      lengths: tokens of each prompt.
      groups: indices of prompts that may share a row.
      most: prompts per row at most, besides `most_sequences`.
    """
    rows = packing.pack(
      lengths,
      self.targets,
      groups,
      lambda target: min(self.most_sequences(target), most),
    )
    return [packing.Row(self._row_length(row), row.sequences) for row in rows]

  def _row_length(self, row: packing.Row) -> int:
    """The shortest length with room for a row's prompts."""
    return next(
      length
      for length in self.row_lengths
      if length >= row.length
      and self.most_sequences(length) >= len(row.sequences)
    )


def _by_cache_length(
  lengths: Sequence[int],
  cache_lengths: Sequence[int],
  groups: Sequence[Sequence[int]],
) -> list[list[int]]:
  """The groups, each divided by the cache lengths of its prompts."""
  result: list[list[int]] = []
  for group in groups:
    parts: dict[int, list[int]] = {}
    for index in group:
      parts.setdefault(smallest(cache_lengths, lengths[index]), []).append(
        index
      )
    result += parts.values()
  return result


def padded_lengths(
  lengths: Sequence[int], most: int, compile_tokens: float, step: int = 8
) -> tuple[int, ...]:
  """Chooses few lengths to pad rows to, so that there is little padding.

  Args:
    lengths: tokens of each row.
    most: number of lengths at most; fewer if more are not worth compiling.
    compile_tokens: see `ShapeOptions`.
    step: lengths are multiples of this.

  Returns:
    The lengths, ascending.
  """
  padded = -(-np.maximum(lengths, 1) // step) * step
  sizes, counts = np.unique(padded, return_counts=True)
  return tuple(_choose(sizes, counts, most, compile_tokens).tolist())


def smallest(sizes: Sequence[int], num_tokens: int) -> int:
  """The first size, of ascending ones, with room for this many tokens.

  Raises:
    ValueError: none has.
  """
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
      that few slots stay empty while others finish; enough to make a call worth
      its overhead.
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

  def to_pack(self, length: int, total: int) -> int:
    """Packed rows per call.

    Args:
      length: tokens per row.
      total: how many rows there are of this length, about.
    """
    rows = self._fit(min(self.read_tokens, self.batch_tokens // 4) // length)
    total = max(min(total, self.up(self.total_rows)), 1)
    # Spread evenly over the calls, so that the last is not mostly padding.
    return self.up(-(-total // -(-total // rows)))

  def _fit(self, rows: int) -> int:
    most = self.up(self.total_rows)
    return min(max(rows // self.multiple, 1) * self.multiple, most)

  def up(self, rows: int) -> int:
    """The next multiple of `multiple`."""
    return -(-rows // self.multiple) * self.multiple


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
