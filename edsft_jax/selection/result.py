"""What a selection is: picks in order, what each gained, what was possible."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError


@dataclasses.dataclass(frozen=True)
class Certificate:
  """What no set can exceed, seen from one prefix of the greedy order.

  For monotone submodular F, any T and any set S of m candidates,
  F(S) <= F(T) + the sum of the m largest marginal gains given T: adding the
  members of S to T one by one gains no more than each gains alone.

  Attributes:
    objective: F of the prefix.
    largest_sums: [budget + 1] entry m is the sum of the m largest marginal
      gains given the prefix, or of numbers that are not smaller.
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
    # Fewer candidates than the budget: the rest can add nothing.
    sums[len(largest) + 1 :] = sums[len(largest)]
    return cls(objective, sums)


@dataclasses.dataclass(frozen=True)
class Selection:
  """A selection in greedy order; its first m picks answer budget m.

  Attributes:
    indices: [budget] int64 pool positions in pick order.
    gains: [budget] float64, what each pick added; each function says of what.
    objective: value of `initial` and all picks together; each function says of
      what. NaN where there is none.
    certificates: bounds of facility location, empty elsewhere.
  """

  indices: np.ndarray
  gains: np.ndarray
  objective: float
  certificates: Sequence[Certificate] = dataclasses.field(
    default=(), repr=False
  )

  @property
  def upper_bound(self) -> float | None:
    """What no set of the whole budget can exceed; None where unknown."""
    return self.upper_bound_at(len(self.indices))

  def upper_bound_at(self, m: int) -> float | None:
    """What no set of m picks (besides `initial`) can exceed; None if unknown.

    In units of `objective`, which the bound at the budget is never below.

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
