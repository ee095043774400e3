"""Greedy MAP of a determinantal point process: picks that differ.

Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point Process,
NeurIPS 2018: an incremental Cholesky factor, O(N) a pick and pick before it.
With several devices each holds the factor's columns of its own rows.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, memory, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.result import Selection


def log_determinant(
  features: Any,
  budget: int,
  similarity: similarity_lib.Similarity = similarity_lib.DEFAULT,
  jitter: float = 1e-6,
  initial: Sequence[int] = (),
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
) -> Selection:
  """Picks prompts that maximise log det of their similarities, greedily.

  Args:
    features: [N, D] numbers, numpy or jax.
    budget: new picks.
    similarity: Rbf or Cosine. Clipped cosines make no positive semi-definite
      matrix: what its determinant would lose is held at jitter / 2 a pick.
    jitter: above 0, added to the diagonal: log det(K_SS + jitter I) is finite.
    initial: already chosen positions.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    memory_limit: bytes for the factor, 8 (budget + initial) N over all
      devices; None: a fraction of what is free.

  Returns:
    A Selection: gains are the increases of log det (they may be negative), the
    objective is log det over initial and picks.

  Raises:
    SelectionError: naming the argument that is wrong, or that does not fit.
  """
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  similarity = similarity_lib.check(similarity)
  jitter = checks.positive('jitter', jitter)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  mesh = checks.mesh(mesh)
  limit = memory.limit(memory_limit, mesh)
  rank = budget + len(initial)
  if rank * n * 8 > limit:
    raise SelectionError(
      f'log_determinant holds (budget + initial) x N = {rank} x {n} numbers, '
      f'{rank * n * 8 / 2**30:.3g} GiB, above memory_limit '
      f'{limit / 2**30:.3g} GiB: lower the budget or raise the limit'
    )
  if rank == 0:
    return Selection(np.zeros(0, np.int64), np.zeros(0), 0.0)
  points = similarity.points(feature_NxD)
  norms = similarity_lib.squared_norms(points)
  itself = similarity_lib.self_similarity(similarity.formula, norms)
  forced = np.full(rank, -1, np.int32)
  forced[: len(initial)] = initial
  with jax.enable_x64(True):
    picks, gains = _greedy_map(
      *(sharding.tiles(array, mesh) for array in (points, norms, itself)),
      forced,
      np.int32(n),
      np.float64(jitter),
      formula=similarity.formula,
      mesh=mesh,
    )
    picks, gains = np.asarray(picks), np.asarray(gains)
  new = slice(len(initial), None)
  return Selection(picks[new].astype(np.int64), gains[new], float(gains.sum()))


@functools.partial(jax.jit, static_argnames=('formula', 'mesh'))
def _greedy_map(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  forced_M: jax.Array,
  n: jax.Array,
  jitter: jax.Array,
  *,
  formula: str,
  mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Picks forced_M where that is not negative, else the largest residual."""
  rank = len(forced_M)

  def share(point_TxRxD, norm_TxR, self_TxR, forced_M, n, jitter):
    point_UxD = point_TxRxD.reshape(-1, point_TxRxD.shape[-1])
    norm_U, self_U = norm_TxR.reshape(-1), self_TxR.reshape(-1)
    first = jax.lax.axis_index('data') * len(norm_U)
    row_U = first + jnp.arange(len(norm_U))

    def step(m, state):
      factor_MxU, residual_U, taken_U, picks_M, gains_M = state
      left_U = jnp.where(taken_U, -jnp.inf, residual_U)
      largest = jax.lax.pmax(left_U.max(), 'data')
      best = jnp.where(left_U == largest, row_U, n).min()
      best = jax.lax.pmin(best, 'data')
      pick = jnp.where(forced_M[m] >= 0, forced_M[m], best)
      here = pick - first
      own = (here >= 0) & (here < len(row_U))
      here = jnp.clip(here, 0, len(row_U) - 1)

      def known_to_all(value):
        return jax.lax.psum(jnp.where(own, value, 0), 'data')

      residual = known_to_all(residual_U[here])
      similarity_U = similarity_lib.tile(
        formula,
        known_to_all(point_UxD[here])[None],
        known_to_all(norm_U[here])[None],
        point_UxD,
        norm_U,
      )[0].astype(jnp.float64)
      similarity_U = jnp.where(
        row_U == pick, known_to_all(self_U[here]) + jitter, similarity_U
      )
      # Rows from m on are still zero.
      known_U = jnp.matmul(
        known_to_all(factor_MxU[:, here]), factor_MxU, precision='highest'
      )
      factor_U = (similarity_U - known_U) / jnp.sqrt(residual)
      # Rounding may leave less than the jitter puts there.
      residual_U = jnp.maximum(residual_U - jnp.square(factor_U), jitter / 2)
      return (
        factor_MxU.at[m].set(factor_U),
        residual_U,
        taken_U | (row_U == pick),
        picks_M.at[m].set(pick),
        gains_M.at[m].set(jnp.log(residual)),
      )

    state = (
      jnp.zeros((rank, len(row_U)), jnp.float64),
      self_U.astype(jnp.float64) + jitter,
      row_U >= n,
      jnp.zeros(rank, jnp.int64),
      jnp.zeros(rank, jnp.float64),
    )
    return jax.lax.fori_loop(0, rank, step, state)[-2:]

  here, everywhere = sharding.ROWS, sharding.EVERYWHERE
  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(here,) * 3 + (everywhere,) * 3,
    out_specs=(everywhere, everywhere),
    check_vma=False,
  )(point_TxRxD, norm_TxR, self_TxR, forced_M, n, jitter)
