"""Greedy MAP of a determinantal point process: picks that differ.

Chen, Zhang, Zhou: Fast Greedy MAP Inference for Determinantal Point Process,
NeurIPS 2018: an incremental Cholesky factor; pick t takes O(t N).
With several devices each holds the factor's columns of its own rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax.selection import checks, memory, sharding
from edsft_jax.selection import similarity as similarity_lib
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.inputs import Features, Positions
from edsft_jax.selection.progress import Callback, Progress
from edsft_jax.selection.result import Selection

# How much the program may read between two reports: a fraction of a second's
# work.
BYTES_PER_REPORT = 2**31


def log_determinant(
  features: Features,
  budget: int,
  similarity: similarity_lib.Similarity = similarity_lib.DEFAULT,
  jitter: float = 1e-6,
  initial: Positions = (),
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
  progress: Callback | None = None,
) -> Selection:
  """Picks prompts that maximise log det of their similarities, greedily.

  >>> result = log_determinant([[0.0], [0.1], [5.0]], budget=3, jitter=0.1)
  >>> result.indices.tolist(), result.gains.round(2).tolist()
  ([0, 2, 1], [0.1, 0.09, -1.65])

  Args:
    features: [N, D] numbers.
    budget: new picks.
    similarity: Rbf or Cosine. A matrix of clipped cosines is not positive
      semi-definite: for it, the factor by which a pick multiplies the
      determinant is kept at jitter / 2 or more.
    jitter: above 0, added to the diagonal: log det(K_SS + jitter I) is finite.
    initial: already chosen positions.
    mesh: rows are sharded over its axis 'data'; the picks are the same for
      every number of devices. None: the first device.
    memory_limit: bytes for the factor, 8 (budget + initial) N over all
      devices; None: a fraction of what is free.
    progress: called with (picks, budget) throughout; see `progress.Progress`.

  Returns:
    A Selection: gains are the increases of log det (they may be negative); the
    lowest index wins among equal computed gains. The objective is log det over
    initial and picks.

  Raises:
    SelectionError: naming the argument that is wrong, or that does not fit.
  """
  feature_NxD = checks.features(features)
  n = len(feature_NxD)
  similarity = similarity_lib.check(similarity)
  jitter = checks.positive('jitter', jitter)
  initial_I = checks.indices('initial', initial, n)
  budget = checks.budget(budget, n - len(initial_I))
  mesh = checks.mesh(mesh)
  _check_memory(budget + len(initial_I), n, memory.limit(memory_limit, mesh))
  report = Progress(progress, budget)
  report.working()
  rows = Rows.of(similarity, feature_NxD, mesh, report)
  picks, gains = greedy_map(rows, initial_I, budget, jitter, report)
  return Selection(
    picks[len(initial_I) :], gains[len(initial_I) :], float(gains.sum())
  )


def _check_memory(rank: int, n: int, limit: int) -> None:
  if rank * n * 8 > limit:
    raise SelectionError(
      f'log_determinant holds (budget + initial) x N = {rank} x {n} numbers, '
      f'{rank * n * 8 / 2**30:.3g} GiB, above memory_limit '
      f'{limit / 2**30:.3g} GiB: lower the budget or raise the limit'
    )


class Rows(NamedTuple):
  """The pool on devices.

  Attributes:
    formula: elementwise part of the similarity.
    mesh: rows are sharded over its axis 'data'.
    n: rows, without padding.
    tiles: float32 points [T, R, D], their squared norms and their similarities
      to themselves [T, R].
  """

  formula: str
  mesh: jax.sharding.Mesh
  n: int
  tiles: tuple[jax.Array, jax.Array, jax.Array]

  @classmethod
  def of(
    cls,
    similarity: similarity_lib.Similarity,
    feature_NxD: np.ndarray,
    mesh: jax.sharding.Mesh,
    report: Progress,
  ) -> 'Rows':
    """Shards the rows."""
    point_NxD = similarity.points(feature_NxD, report.working)
    norm_N = similarity_lib.squared_norms(point_NxD)
    self_N = similarity_lib.self_similarity(similarity.formula, norm_N)
    return cls(
      similarity.formula,
      mesh,
      len(point_NxD),
      (
        sharding.tiles(point_NxD, mesh),
        sharding.tiles(norm_N, mesh),
        sharding.tiles(self_N, mesh),
      ),
    )


class State(NamedTuple):
  """The state of the search; M counts the initial positions and the picks.

  Attributes:
    factor_MxU: rows of the Cholesky factor, float64; zero for later picks.
    residual_U: the factor by which each row would multiply the determinant.
    taken_U: whether a row is chosen, or padding.
    pick_M: positions, in order.
    gain_M: increases of log det.
  """

  factor_MxU: jax.Array
  residual_U: jax.Array
  taken_U: jax.Array
  pick_M: jax.Array
  gain_M: jax.Array


_HERE, _EVERYWHERE = sharding.ROWS, sharding.EVERYWHERE
_STATE = State._make(
  (sharding.ROWS_SECOND, _HERE, _HERE, _EVERYWHERE, _EVERYWHERE)
)


def greedy_map(
  rows: Rows,
  initial_I: np.ndarray,
  budget: int,
  jitter: float,
  report: Progress,
  bytes_per_report: int = BYTES_PER_REPORT,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns initial positions and picks, int64, and their gains."""
  rank = len(initial_I) + budget
  if not rank:
    report.picked(0)
    return np.zeros(0, np.int64), np.zeros(0)
  forced_M = np.full(rank, -1, np.int32)
  forced_M[: len(initial_I)] = initial_I
  n, formula, mesh = np.int32(rows.n), rows.formula, rows.mesh
  with jax.enable_x64(True):
    jitter = np.float64(jitter)
    if not report.active:
      picks, gains = all_steps(
        *rows.tiles, forced_M, n, jitter, formula=formula, mesh=mesh
      )
      return np.array(picks), np.array(gains)
    bytes_per_step = (rank * 8 + rows.tiles[0].shape[-1] * 4) * rows.n
    steps = max(bytes_per_report // bytes_per_step, 1)
    state = start(rows.tiles[2], n, jitter, rank=rank, mesh=mesh)
    for m in range(0, rank, steps):
      ends = np.int32(m), np.int32(min(m + steps, rank))
      state = extend(
        *(state, *rows.tiles, forced_M, n, jitter, *ends),
        formula=formula,
        mesh=mesh,
      )
      report.wait(state.gain_M)
      report.picked(int(ends[1]) - len(initial_I))
    return np.array(state.pick_M), np.array(state.gain_M)


@functools.partial(jax.jit, static_argnames=('formula', 'mesh'))
def all_steps(
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
  """Returns picks and gains, by one program that never returns the factor."""
  rank = len(forced_M)
  state = start(self_TxR, n, jitter, rank=rank, mesh=mesh)
  state = extend(
    *(state, point_TxRxD, norm_TxR, self_TxR, forced_M, n, jitter),
    *(jnp.int32(0), jnp.int32(rank)),
    formula=formula,
    mesh=mesh,
  )
  return state.pick_M, state.gain_M


@functools.partial(jax.jit, static_argnames=('rank', 'mesh'))
def start(
  self_TxR: jax.Array,
  n: jax.Array,
  jitter: jax.Array,
  *,
  rank: int,
  mesh: jax.sharding.Mesh,
) -> State:
  """Returns the state before any pick."""

  def share(self_TxR: jax.Array, n: jax.Array, jitter: jax.Array) -> State:
    residual_U = self_TxR.reshape(-1).astype(jnp.float64) + jitter
    return State(
      jnp.zeros((rank, len(residual_U)), jnp.float64),
      residual_U,
      _numbers(residual_U) >= n,
      jnp.zeros(rank, jnp.int64),
      jnp.zeros(rank, jnp.float64),
    )

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(_HERE, _EVERYWHERE, _EVERYWHERE),
    out_specs=_STATE,
    check_vma=False,
  )(self_TxR, n, jitter)


def _numbers(values_U: jax.Array) -> jax.Array:
  """Returns the pool positions of this device's rows."""
  first = jax.lax.axis_index('data') * len(values_U)
  return first + jnp.arange(len(values_U))


@functools.partial(
  jax.jit, static_argnames=('formula', 'mesh'), donate_argnames='state'
)
def extend(
  state: State,
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  forced_M: jax.Array,
  n: jax.Array,
  jitter: jax.Array,
  begin: jax.Array,
  end: jax.Array,
  *,
  formula: str,
  mesh: jax.sharding.Mesh,
) -> State:
  """Takes the steps from `begin` up to `end`.

  Picks forced_M where that is not negative, else the largest residual.
  """

  def share(
    state: State,
    point_TxRxD: jax.Array,
    norm_TxR: jax.Array,
    self_TxR: jax.Array,
    *others: jax.Array,
  ) -> State:
    forced_M, n, jitter, begin, end = others
    point_UxD = point_TxRxD.reshape(-1, point_TxRxD.shape[-1])
    rows = point_UxD, norm_TxR.reshape(-1), self_TxR.reshape(-1)
    step = functools.partial(_step, rows, forced_M, n, jitter, formula)
    return jax.lax.fori_loop(begin, end, step, state)

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(_STATE, *(_HERE,) * 3, *(_EVERYWHERE,) * 5),
    out_specs=_STATE,
    check_vma=False,
  )(
    *(state, point_TxRxD, norm_TxR, self_TxR),
    *(forced_M, n, jitter, begin, end),
  )


def _step(
  rows: tuple[jax.Array, jax.Array, jax.Array],
  forced_M: jax.Array,
  n: jax.Array,
  jitter: jax.Array,
  formula: str,
  m: jax.Array,
  state: State,
) -> State:
  """Makes one pick; each device updates its own rows."""
  point_UxD, norm_U, self_U = rows
  factor_MxU, residual_U, taken_U, pick_M, gain_M = state
  number_U = _numbers(norm_U)
  left_U = jnp.where(taken_U, -jnp.inf, residual_U)
  largest = jax.lax.pmax(left_U.max(), 'data')
  best = jnp.where(left_U == largest, number_U, n).min()
  best = jax.lax.pmin(best, 'data')
  pick = jnp.where(forced_M[m] >= 0, forced_M[m], best)
  here = pick - number_U[0]
  own = (here >= 0) & (here < len(number_U))
  here = jnp.clip(here, 0, len(number_U) - 1)

  def known_to_all(value: jax.Array) -> jax.Array:
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
    number_U == pick, known_to_all(self_U[here]) + jitter, similarity_U
  )
  # Rows from m on are still zero.
  known_U = jnp.matmul(
    known_to_all(factor_MxU[:, here]), factor_MxU, precision='highest'
  )
  factor_U = (similarity_U - known_U) / jnp.sqrt(residual)
  # Rounding may leave less than the jitter guarantees.
  residual_U = jnp.maximum(residual_U - jnp.square(factor_U), jitter / 2)
  return State(
    factor_MxU.at[m].set(factor_U),
    residual_U,
    taken_U | (number_U == pick),
    pick_M.at[m].set(pick),
    gain_M.at[m].set(jnp.log(residual)),
  )
