"""One pass over all pairs of rows, each computed once for both of its sides.

For one device: several would have to exchange the gains of each other's rows.
"""

import collections
from collections.abc import Callable, Sequence
import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.device_rows import DeviceRows
from edsft_jax.selection.options import Options
from edsft_jax.selection.programs import summands
from edsft_jax.selection.progress import Progress

# Called with two tiles a <= b and the [R, R] similarities of rows in a by rows
# in b; returns whether to call it again.
Visit: TypeAlias = Callable[[int, int, np.ndarray], bool]


def gains_from_pairs(
  rows: DeviceRows,
  coverages: Sequence[jax.Array],
  visit: Visit | None,
  options: Options,
  progress: Progress,
) -> np.ndarray:
  """Computes the gains of all rows as candidates.

  Args:
    rows: on one device.
    coverages: V arrays [T, R]; gains are computed for each.
    visit: called for every pair of tiles, ordered by a, then b.
    options: sizes.
    progress: called after every batch of pairs.

  Returns:
    [V, U] float64 gains, padding included.
  """
  count, pair_Px2 = _pairs_of(len(rows.norm_TxR), options.pairs)
  size = min(options.pairs, count)
  shape = (len(coverages), *rows.norm_TxR.shape)
  with jax.enable_x64(True):
    # Batches that are computed at the same time have separate sums.
    sums = [jnp.zeros(shape, jnp.float64) for _ in range(options.in_flight)]

  def compute(start: int, into: int) -> jax.Array | None:
    with jax.enable_x64(True):
      sums[into], s_PxRxR = add_pairs(
        rows.point_TxRxD,
        rows.norm_TxR,
        rows.self_TxR,
        tuple(coverages),
        rows.weight_TxR,
        sums[into],
        pair_Px2[start : start + size],
        np.int32(count - start),
        formula=rows.formula,
        keep=visit is not None,
      )
    return s_PxRxR

  # One batch is computed while another is visited.
  ahead: collections.deque[tuple[np.ndarray, jax.Array | None]]
  ahead = collections.deque()
  for number, start in enumerate(range(0, count, size)):
    into = number % options.in_flight
    if len(ahead) == options.in_flight:
      visit = _visit_pairs(*ahead.popleft(), visit)
      progress.wait(sums[into])
    ahead.append((pair_Px2[start:count], compute(start, into)))
  while ahead:
    visit = _visit_pairs(*ahead.popleft(), visit)
    progress.working()
  # Sums are exact, so their order does not matter.
  gain_VxTxR = np.sum([np.asarray(one) for one in sums], axis=0)
  return gain_VxTxR.reshape(len(coverages), -1)


def _pairs_of(num_tiles: int, batch: int) -> tuple[int, np.ndarray]:
  """Returns the number of pairs, and the pairs padded to whole batches."""
  pair_Px2 = np.stack(np.triu_indices(num_tiles), axis=1).astype(np.int32)
  count = len(pair_Px2)
  padding = np.zeros((-count % min(batch, count), 2), np.int32)
  return count, np.concatenate([pair_Px2, padding])


def _visit_pairs(
  pair_Px2: np.ndarray, s_PxRxR: jax.Array | None, visit: Visit | None
) -> Visit | None:
  """Calls `visit` with each pair; returns it, or None if it is finished."""
  if visit is None or s_PxRxR is None:
    return None
  for (a, b), s_RxR in zip(pair_Px2, np.asarray(s_PxRxR), strict=False):
    if not visit(int(a), int(b), s_RxR):
      return None
  return visit


@functools.partial(
  jax.jit, static_argnames=('formula', 'keep'), donate_argnames='gain_VxTxR'
)
def add_pairs(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  coverages: tuple[jax.Array, ...],
  weight_TxR: jax.Array | None,
  gain_VxTxR: jax.Array,
  pair_Px2: jax.Array,
  count: jax.Array,
  *,
  formula: str,
  keep: bool,
) -> tuple[jax.Array, jax.Array | None]:
  """Adds the contributions of the first `count` pairs of tiles to gains.

  Returns:
    [V, T, R] float64 gains of all rows as candidates, for each coverage, and
    with `keep` the [P, R, R] similarities of these pairs.
  """
  size = norm_TxR.shape[1]

  def one_pair(
    gain_VxTxR: jax.Array, numbered: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array | None]:
    p, (a, b) = numbered
    s_AxB = similarity_lib.tile(
      formula, point_TxRxD[a], norm_TxR[a], point_TxRxD[b], norm_TxR[b]
    )
    diagonal = (a == b) & jnp.eye(size, dtype=bool)
    s_AxB = jnp.where(diagonal, self_TxR[a][:, None], s_AxB)
    weight_A = weight_B = None
    if weight_TxR is not None:
      weight_A, weight_B = weight_TxR[a][:, None], weight_TxR[b]
    for v, current_TxR in enumerate(coverages):
      summand_AxB, before = summands(s_AxB, current_TxR[b], weight_B)
      # 16 sums at a time along the last axis fill a vector register.
      by_a_A = summand_AxB.reshape(size, -1, 16).sum(1).sum(1) - before
      summand_AxB, before = summands(s_AxB, current_TxR[a][:, None], weight_A)
      by_b_B = summand_AxB.sum(axis=0) - before
      by_a_A = jnp.where(p < count, by_a_A, 0.0)
      by_b_B = jnp.where((p < count) & (a != b), by_b_B, 0.0)
      gain_VxTxR = gain_VxTxR.at[v, a].add(by_a_A)
      gain_VxTxR = gain_VxTxR.at[v, b].add(by_b_B)
    return gain_VxTxR, s_AxB if keep else None

  number_P = jnp.arange(len(pair_Px2))
  return jax.lax.scan(one_pair, gain_VxTxR, (number_P, pair_Px2))
