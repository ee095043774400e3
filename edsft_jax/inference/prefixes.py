"""Finds what token rows have in common, so that it is read only once."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.models import Decoder, DecoderConfig, KVCache, Output

PrefixHook = Callable[[Decoder, Output, jax.Array], Any]
# A shorter prefix saves less than keeping and copying its cache costs.
MIN_LENGTH = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
  """N prefixes that have been read, padded on the left to P tokens.

  Attributes:
    kv_cache: their keys and values, of N rows.
    found: what the prefix hook returned; None without one.
  """

  kv_cache: KVCache
  found: Any

  @classmethod
  def read(
    cls,
    decoder: Decoder,
    tokens_NxP: jax.Array,
    mask_NxP: jax.Array,
    hook: PrefixHook | None = None,
    layer: int = -1,
  ) -> 'Prefixes':
    """Reads prefixes.

    Args:
      decoder: the model.
      tokens_NxP: the prefixes, padded on the left.
      mask_NxP: true at tokens.
      hook: see `Hooks.prefix`.
      layer: layer of the hook's features, see Decoder.__call__.
    """
    cache = decoder.init_cache(*tokens_NxP.shape)
    output = decoder(tokens_NxP, mask_NxP, cache, layer)
    assert output.kv_cache is not None
    found = hook(decoder, output, tokens_NxP) if hook else None
    return cls(output.kv_cache, found)

  def extended(self, prefix_B: jax.Array, length: int) -> KVCache:
    """A cache of rows that start with these prefixes.

    Args:
      prefix_B: the prefix of each row, from 0 to N - 1.
      length: free entries per row, L.

    Returns:
      A cache of B rows with P + L entries.
    """

    def take(x_Nx: jax.Array, axis: int, fill: int = 0) -> jax.Array:
      widths = [(0, 0)] * x_Nx.ndim
      widths[axis] = (0, length)
      return jnp.pad(x_Nx[prefix_B], widths, constant_values=fill)

    cache = self.kv_cache
    return KVCache(
      keys=tuple(take(x_NxKxAxS, 3) for x_NxKxAxS in cache.keys),
      values=tuple(take(x_NxKxSxA, 2) for x_NxKxSxA in cache.values),
      position_BxS=take(cache.position_BxS, 1, -1),
      cache_index=jnp.int32(cache.length),
    )


@dataclasses.dataclass(frozen=True)
class Group:
  """Rows that begin with the same tokens.

  Attributes:
    indices: the rows.
    length: number of common tokens; 0 for a row that shares nothing.
  """

  indices: list[int]
  length: int

  @property
  def num_saved(self) -> int:
    """Tokens that do not have to be read again."""
    return (len(self.indices) - 1) * self.length


@dataclasses.dataclass
class _Node:
  """Sorted rows with a common prefix, and how they are grouped so far.

  Attributes:
    length: tokens that all its rows have in common.
    first: its first row, in sorted order.
    groups: (rows, length) of each group.
  """

  length: int
  first: int
  groups: list[tuple[list[int], int]] = dataclasses.field(default_factory=list)


def can_share(config: DecoderConfig) -> bool:
  """Whether keys do not depend on the length of the row they are part of."""
  ropes = (config.rope, config.window_rope)
  return all(rope is None or rope.kind != 'dynamic' for rope in ropes)


def common_prefix(rows: Sequence[Sequence[int] | np.ndarray]) -> list[int]:
  """The tokens that all rows start with, without any row's last."""
  if not rows:
    return []
  first, *others = (tuple(np.asarray(row).tolist()) for row in rows)
  length = min(map(len, rows)) - 1
  for row in others:
    length = min(length, _num_common(first[:length], row[:length]))
  return list(first[: max(length, 0)])


def find_groups(
  rows: Sequence[Sequence[int]], min_length: int = MIN_LENGTH
) -> list[Group]:
  """Groups rows by common prefixes, so that many tokens are saved.

  A group of n rows with P common tokens saves (n - 1) P. Groups do not nest:
  each row has at most one prefix. In sorted order, the rows with a common
  prefix are neighbours; such runs form a tree, which is grouped from its
  leaves: a group stays if that saves more than joining the rest of the larger
  run. Rarely, another grouping would save a little more.

  Args:
    rows: token ids; only these may be shared.
    min_length: the shortest prefix worth sharing.

  Returns:
    Groups in the order of their first rows; each row is in one.
  """
  keys = [tuple(row) for row in rows]
  order = sorted(range(len(keys)), key=keys.__getitem__)
  stack = [_Node(0, 0)]
  for place in range(1, len(order) + 1):
    shared = 0
    if place < len(order):
      shared = _num_common(keys[order[place - 1]], keys[order[place]])
    first = place - 1
    groups: list[tuple[list[int], int]] = []
    while stack[-1].length > shared:
      node = stack.pop()
      first = node.first
      node.groups += groups
      groups = _regroup(node, place, min_length)
    if stack[-1].length < shared:
      stack.append(_Node(shared, first))
    stack[-1].groups += groups
  alone = set(range(len(order)))
  found = []
  for places, length in stack[0].groups:
    alone -= set(places)
    found.append(Group(sorted(order[place] for place in places), length))
  found += [Group([order[place]], 0) for place in alone]
  return sorted(found, key=lambda group: group.indices[0])


def _regroup(
  node: _Node, end: int, min_length: int
) -> list[tuple[list[int], int]]:
  """The groups of a node's rows, after those that join its own prefix."""
  if node.length < min_length:
    return node.groups
  kept = [
    (places, length)
    for places, length in node.groups
    if (len(places) - 1) * length > len(places) * node.length
  ]
  rest = set(range(node.first, end))
  for places, _ in kept:
    rest -= set(places)
  joined = [*kept, (sorted(rest), node.length)] if len(rest) > 1 else kept
  return max(joined, node.groups, key=_saved)


def _saved(groups: list[tuple[list[int], int]]) -> int:
  return sum((len(places) - 1) * length for places, length in groups)


def _num_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
  """Number of tokens that two rows begin with in common."""
  most = min(len(first), len(second))
  if first[:most] == second[:most]:
    return most
  low, high = 0, most
  # The common part is bisected, since comparing slices is fast.
  while high - low > 1:
    middle = (low + high) // 2
    if first[low:middle] == second[low:middle]:
      low = middle
    else:
      high = middle
  return low
