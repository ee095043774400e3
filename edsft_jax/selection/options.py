"""How facility location is computed: callers' options and internal ones."""

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
# gains over a sample of rows, and the candidates guessed so far.
Guess: TypeAlias = Callable[
  ['SimilarityCache', np.ndarray, np.ndarray, list[int]], int
]


@dataclasses.dataclass(frozen=True)
class Options:
  """When greedy uses which regime, and how much it computes at once.

  These affect time and memory, and with method 'threshold' where the slack
  ends, but never an exact pick. Only tests set them; callers cannot. The
  defaults were measured on two cores.

  Attributes:
    kernel_rows: pools with at most this many rows keep all similarities, if
      these fit the memory limit: reading a whole row of them again is then
      faster than finding the entries that can still count.
    refreshed_picks: all gains are recomputed before each of this many first
      picks, because these picks lower nearly every gain.
    use_residuals: False: sparse residuals are never made.
    sparse_one_in: sparse residuals are made once at most one entry in this many
      can still count.
    small_residuals: sparse residuals are made, however dense, once at most this
      many entries in all can still count.
    fresh_entries: all gains are kept fresh once there are at most this many
      residuals per candidate, on average. A pick then changes about the square
      of this number of entries.
    symmetric: False: every pair of rows is computed twice, once for each side.
    max_guesses: picks that are guessed, at most, before the pass over all
      pairs.
    guess_above: another pick is guessed only while more than this share of all
      entries can still count.
    guess_drop: another pick is guessed only if the last guess lowered the share
      of entries that can still count by more than this.
    refresh_before: numbers of guessed picks after which the pass over all pairs
      computes all gains. Later picks lower few gains.
    min_guess_rows: minimum number of rows in the sample for guesses.
    max_guess_rows: maximum number of rows in the sample for guesses.
    promising_one_in: a guess computes exact gains for one in this many
      candidates, the best on the sample, and for at least `panel` of them.
    guess: function that guesses a pick; None: look_ahead.likely_pick.
    sampled_candidates: candidates in the sample that estimates how many entries
      can still count.
    batch: candidates computed at once where some of them are needed.
    panel: candidates computed at once where all of them are needed.
    max_cached: maximum number of candidates whose similarities are cached: lazy
      picks rarely need more before there are sparse residuals.
    pairs: pairs of tiles computed at once, as one batch.
    in_flight: batches of pairs computed at the same time, since one does not
      keep two cores busy.
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
    method: one of METHODS.
    slack: the share by which a pick may miss the best gain; 0.0: exact.
    mesh: rows are sharded over its axis 'data'.
    memory_limit: bytes for similarities.
    progress: called after every pick.
    options: regimes and sizes.
    trace: the regimes that were used, in order.
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
    """Validates the arguments."""
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
