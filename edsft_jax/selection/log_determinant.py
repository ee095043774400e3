"""Greedy MAP of a determinantal point process: picks that differ.

Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point Process,
NeurIPS 2018: an incremental Cholesky factor, O(N) a pick and pick before it.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, memory
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.result import Selection


def log_determinant(
  features: Any,
  budget: int,
  similarity: similarity_lib.Similarity = similarity_lib.DEFAULT,
  jitter: float = 1e-6,
  initial: Sequence[int] = (),
  memory_limit: int | None = None,
) -> Selection:
  """Picks prompts that maximise log det of their similarities, greedily.

  Args:
    features: [N, D] numbers, numpy or jax.
    budget: new picks.
    similarity: Rbf or Cosine.
    jitter: above 0, added to the diagonal: log det(K_SS + jitter I) is finite.
    initial: already chosen positions.
    memory_limit: bytes for the factor, 8 (budget + initial) N; None: a
      fraction of what is free.

  Returns:
    A Selection: gains are the increases of log det (they may be negative), the
    objective is log det over initial and picks.

  Raises:
    ValueError: naming the argument that is wrong, or that does not fit.
  """
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  similarity = similarity_lib.check(similarity)
  jitter = checks.positive('jitter', jitter)
  initial = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial))
  limit = memory.limit(memory_limit, checks.mesh(None))
  rank = budget + len(initial)
  if rank * n * 8 > limit:
    raise ValueError(
      f'log_determinant holds (budget + initial) x N = {rank} x {n} numbers, '
      f'{rank * n * 8 / 2**30:.3g} GiB, above memory_limit '
      f'{limit / 2**30:.3g} GiB: lower the budget or raise the limit'
    )
  if rank == 0:
    return Selection(np.zeros(0, np.int64), np.zeros(0), 0.0)
  points = similarity.points(feature_NxD)
  norms = similarity_lib.squared_norms(points)
  forced = np.full(rank, -1, np.int32)
  forced[: len(initial)] = initial
  with jax.enable_x64(True):
    picks, gains = _greedy_map(
      points,
      norms,
      similarity_lib.self_similarity(similarity.formula, norms),
      forced,
      np.float64(jitter),
      formula=similarity.formula,
    )
    picks, gains = np.asarray(picks), np.asarray(gains)
  new = slice(len(initial), None)
  return Selection(picks[new].astype(np.int64), gains[new], float(gains.sum()))


@functools.partial(jax.jit, static_argnames='formula')
def _greedy_map(
  point_NxD: jax.Array,
  norm_N: jax.Array,
  self_N: jax.Array,
  forced_M: jax.Array,
  jitter: jax.Array,
  *,
  formula: str,
) -> tuple[jax.Array, jax.Array]:
  """Picks forced_M where that is not negative, else the largest residual."""
  n, rank = len(norm_N), len(forced_M)

  def step(m, state):
    factor_MxN, residual_N, taken_N, picks_M, gains_M = state
    best = jnp.argmax(jnp.where(taken_N, -jnp.inf, residual_N))
    pick = jnp.where(forced_M[m] >= 0, forced_M[m], best)
    residual = residual_N[pick]
    similarity_N = similarity_lib.tile(
      formula, point_NxD[pick][None], norm_N[pick][None], point_NxD, norm_N
    )[0].astype(jnp.float64)
    similarity_N = similarity_N.at[pick].set(self_N[pick] + jitter)
    # Rows from m on are still zero.
    known_N = jnp.matmul(factor_MxN[:, pick], factor_MxN, precision='highest')
    row_N = (similarity_N - known_N) / jnp.sqrt(residual)
    # Rounding may leave less than the jitter puts there.
    residual_N = jnp.maximum(residual_N - jnp.square(row_N), jitter / 2)
    return (
      factor_MxN.at[m].set(row_N),
      residual_N,
      taken_N.at[pick].set(True),
      picks_M.at[m].set(pick),
      gains_M.at[m].set(jnp.log(residual)),
    )

  state = (
    jnp.zeros((rank, n), jnp.float64),
    self_N.astype(jnp.float64) + jitter,
    jnp.zeros(n, bool),
    jnp.zeros(rank, jnp.int64),
    jnp.zeros(rank, jnp.float64),
  )
  *_, picks_M, gains_M = jax.lax.fori_loop(0, rank, step, state)
  return picks_M, gains_M
