"""The result of a selection: picks in order, their gains, and bounds."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError


@dataclasses.dataclass(frozen=True)
class Certificate:
  """An upper bound for any set, from one prefix of the greedy order.

  For monotone submodular F, any T and any set S of m candidates,
  F(S) <= F(T) + the sum of the m largest marginal gains given T: adding the
  members of S to T one by one gains no more than each gains alone.

  Attributes:
    objective: F of the prefix.
    largest_sums: [budget + 1] entry m is the sum of the m largest marginal
      gains given the prefix, or an upper bound on it.
  """

  objective: float
  largest_sums: np.ndarray

  @classmethod
  def of(
    cls, objective: float, gains: np.ndarray, budget: int
  ) -> 'Certificate':
    """Takes the marginal gains of all candidates, in any order."""
    largest = np.sort(gains)[::-1][:budget]
    sums = np.zeros(budget + 1)
    sums[1 : len(largest) + 1] = np.cumsum(largest)
    # With fewer candidates than the budget, further picks add nothing.
    sums[len(largest) + 1 :] = sums[len(largest)]
    return cls(objective, sums)


@dataclasses.dataclass(frozen=True)
class MemoryUse:
  """What the memory limit of facility location cost.

  Attributes:
    limit: the limit, in bytes.
    wanted: about the limit that would have cost nothing; at most `limit` if
      this one did not.
    picks: picks made before what is left to compute fit the limit.
    seconds: time that these picks took longer than with enough memory, at most:
      from when `wanted` bytes would have been enough.
  """

  limit: int
  wanted: int
  picks: int
  seconds: float

  @property
  def enough(self) -> bool:
    """Whether more memory would not have been faster."""
    return self.wanted <= self.limit


@dataclasses.dataclass(frozen=True)
class Selection:
  """A selection in greedy order; its first m picks answer budget m.

  Attributes:
    indices: [budget] int64 pool positions in pick order.
    gains: [budget] float64, what each pick added; each function defines it.
    objective: value of `initial` and all picks together; each function defines
      it. NaN if there is none.
    certificates: bounds, for facility location; otherwise empty.
    memory_use: what the memory limit cost, for facility location; otherwise
      None, as for pools of which all similarities fit.
  """

  indices: np.ndarray
  gains: np.ndarray
  objective: float
  certificates: Sequence[Certificate] = dataclasses.field(
    default=(), repr=False
  )
  memory_use: MemoryUse | None = dataclasses.field(default=None, repr=False)

  @property
  def upper_bound(self) -> float | None:
    """Upper bound for any set of `budget` picks; None if unknown."""
    return self.upper_bound_at(len(self.indices))

  def upper_bound_at(self, m: int) -> float | None:
    """Returns an upper bound for any m picks and `initial`; None if unknown.

    In units of `objective`; at the budget, it is not below `objective`.

    >>> from edsft_jax import selection
    >>> result = selection.facility_location([[0.0], [1.0], [5.0]], budget=2)
    >>> round(result.objective, 2), round(result.upper_bound_at(2), 2)
    (2.9, 3.0)
    >>> selection.random(n=3, budget=2, seed=0).upper_bound_at(2) is None
    True

    Raises:
      SelectionError: m is not between 0 and the budget.
    """
    m = checks.integer('m', m)
    if m > len(self.indices):
      raise SelectionError(f'm {m} exceeds the budget: {len(self.indices)}')
    bounds = [c.objective + c.largest_sums[m] for c in self.certificates]
    return float(min(bounds)) if bounds else None
