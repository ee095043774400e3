"""How facility location is computed: what callers say, and internal choices."""

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np

from edsft_jax.selection import checks, memory, sharding
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.progress import Callback, Progress

if TYPE_CHECKING:
  from edsft_jax.selection.similarity_cache import SimilarityCache

METHODS = ('greedy', 'threshold', 'partitioned')

# Guesses the next pick, as a candidate, from the cache, the candidates' rows,
# gains over a sample of rows, and the candidates guessed before.
Guess: TypeAlias = Callable[
  ['SimilarityCache', np.ndarray, np.ndarray, list[int]], int
]


@dataclasses.dataclass(frozen=True)
class Options:
  """Which regime greedy uses when, and the sizes of what it computes at once.

  They decide time and memory, and with method 'threshold' where the slack
  ends, but never an exact pick. Callers cannot set them; tests do. The defaults
  were measured on two cores.

  Attributes:
    kernel_rows: pools of up to so many rows keep all their similarities, where
      these fit the memory limit: below, looking at a whole row again takes
      less time than finding what is left of it.
    refreshed_picks: before each of so many first picks all gains are computed
      again, because these picks lower nearly every gain.
    use_residuals: False: sparse residuals are never made.
    sparse_one_in: sparse residuals pay where one entry in so many, or fewer,
      can still count,
    small_residuals: or at most so many entries in all.
    fresh_entries: residuals per candidate, on average, up to which all gains
      are kept fresh: a pick then changes about the square of it.
    symmetric: False: no pair of rows is computed once for both of its sides.
    max_guesses: picks guessed at most before the pass over all pairs.
    guess_above: another pick is guessed while more than this share of all
      entries can still count,
    guess_drop: and the guess before it lowered that share by more than this.
    refresh_before: the pass computes all gains as they are after so many of the
      guessed picks; later picks lower few of them.
    min_guess_rows: rows in the sample to guess from, at least,
    max_guess_rows: and at most.
    promising_one_in: one candidate in so many is looked at closely for a guess.
    guess: how a pick is guessed; None: look_ahead.likely_pick.
    sampled_candidates: candidates in the sample that tells how many entries can
      still count.
    batch: candidates looked at together,
    panel: and when all of them are looked at.
    max_cached: candidates whose similarities are kept at most: lazy picks
      rarely look at more of them before there are sparse residuals.
    pairs: pairs of tiles computed together,
    in_flight: and how many such batches are computed at the same time, since
      one does not keep two cores busy.
    tile_rows: rows per tile.
  """

  kernel_rows: int = 3000
  refreshed_picks: int = 2
  use_residuals: bool = True
  sparse_one_in: int = 4
  small_residuals: int = 2**18
  fresh_entries: int = 256
  symmetric: bool = True
  max_guesses: int = 16
  guess_above: float = 0.1
  guess_drop: float = 0.02
  refresh_before: tuple[int, ...] = (0, 1, 2, 4)
  min_guess_rows: int = 64
  max_guess_rows: int = 512
  promising_one_in: int = 128
  guess: Guess | None = None
  sampled_candidates: int = 64
  batch: int = 64
  panel: int = 256
  max_cached: int = 2048
  pairs: int = 16
  in_flight: int = 2
  tile_rows: int = sharding.TILE_ROWS


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to solve a problem.

  Attributes:
    method: of METHODS.
    slack: by which share a pick may miss the best gain; 0.0: exact.
    mesh: has an axis 'data', over which rows are sharded.
    memory_limit: bytes for similarities.
    progress: told of every pick.
    options: regimes and sizes.
    trace: the regimes that were used, in this order.
  """

  method: str
  slack: float
  mesh: jax.sharding.Mesh
  memory_limit: int
  progress: Progress
  options: Options = Options()
  trace: list[str] = dataclasses.field(default_factory=list)

  @classmethod
  def of(
    cls,
    method: str,
    epsilon: float,
    mesh: jax.sharding.Mesh | None,
    memory_limit: int | None,
    progress: Callback | None,
    options: Options = Options(),
  ) -> 'Plan':
    """Checks what a caller says."""
    checks.one_of('method', method, METHODS)
    epsilon = checks.positive('epsilon', epsilon)
    if epsilon >= 1:
      raise SelectionError(f'epsilon {epsilon} is not below 1')
    mesh = checks.mesh(mesh)
    return cls(
      method=method,
      slack=epsilon if method == 'threshold' else 0.0,
      mesh=mesh,
      memory_limit=memory.limit(memory_limit, mesh),
      progress=Progress(progress),
      options=options,
    )
