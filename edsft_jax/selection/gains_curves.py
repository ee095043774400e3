"""Which RBF width to use, read off the gains of greedy picks.

Bhatt et al. 2024 (arXiv 2401.06692) choose the width by looking at the gains
plot: the marginal gain of each pick against its position. The rule below makes
this choice automatic.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.facility_location import facility_location
from edsft_jax.selection.inputs import Features
from edsft_jax.selection.progress import Callback, Progress
from edsft_jax.selection.similarity import DEFAULT, Rbf

# From no prompt similar to another, to all similar.
WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# Gains are in units of prompts: 1 is what a prompt gains by covering itself.
_ENOUGH = 1.0
_FLAT = 0.1
_COLLAPSED = 0.01

# The grid grows by this factor, up to these widths ...
_STEP = 10**0.5
_SMALLEST, _LARGEST = 1e-4, 100.0
# ... and is refined where the answer is, until widths differ by this factor.
_NEAR = 1.2


class GainsCurves(NamedTuple):
  """Gains of facility location for several RBF widths.

  Attributes:
    curves: [W, budget] float64 marginal gains, one row per width as given.
    degenerate: for each width '' (not degenerate), 'flat' or 'collapsed'.
    suggested: the width to use.
  """

  curves: np.ndarray
  degenerate: tuple[str, ...]
  suggested: float


class KernelWidth(NamedTuple):
  """The RBF width for a budget, and the curves that it was read off.

  Attributes:
    width: the width to use.
    pick: position of the pick that gains 1 at this width, from 1: the last one;
      an earlier one if the last gains less than 1 at every width; 0 if no pick
      but the first few gains 1 at any.
    widths: all that were tried, ascending; `width` is among them.
    curves: [W, budget] float64 marginal gains, one row per width.
    degenerate: for each width '' (not degenerate), 'flat' or 'collapsed'.
  """

  width: float
  pick: int
  widths: tuple[float, ...]
  curves: np.ndarray
  degenerate: tuple[str, ...]


def gains_curves(
  features: Features,
  budget: int,
  widths: Sequence[float] = WIDTHS,
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
  progress: Callback | None = None,
) -> GainsCurves:
  """Runs facility location at each width, and suggests one.

  >>> features = [[0.0], [0.2], [1.0], [1.2], [5.0], [5.2]]
  >>> result = gains_curves(features, budget=3, widths=[1e-6, 0.1, 1e6])
  >>> result.degenerate, result.suggested
  (('flat', '', 'collapsed'), 0.118)

  With g the gains in pick order, a width is
    'flat' if over the second half of the picks g stays within 0.1 of 1: they
      cover little but themselves;
    'collapsed' if the last g is below 0.01: before the budget is spent a pick
      adds less than a hundredth of one prompt.

  Args:
    features: [N, D] numbers.
    budget: number of picks, at least 1: the budget that you will use.
    widths: distinct numbers above 0, as in Rbf(width=...).
    mesh, memory_limit: as in facility_location.
    progress: called with (picks, total), both over all the given widths.

  Returns:
    The curves, whether each is degenerate, and the width that `kernel_width`
    finds from this grid; it may be outside.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  curves = _Curves(features, budget, widths, mesh, memory_limit, progress)
  given = [checks.positive('width', width) for width in widths]
  suggested, _ = curves.suggest()
  curve_WxM = np.stack([curves.gains[width] for width in given])
  return GainsCurves(curve_WxM, _flags(curve_WxM), suggested)


def kernel_width(
  features: Features,
  budget: int,
  widths: Sequence[float] = WIDTHS,
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
  progress: Callback | None = None,
) -> KernelWidth:
  """Returns the largest width at which the last pick still gains 1.

  >>> features = [[0.0], [0.2], [1.0], [1.2], [5.0], [5.2]]
  >>> kernel_width(features, budget=3)[:2]
  (0.118, 3)

  Every prompt covers itself with similarity 1, so a pick that gains 1 is worth
  one prompt that nothing else covers. With a smaller width, gains reach 1 long
  before the budget is spent and stay there; with a larger one, the pool is
  covered before, and the last picks are arbitrary.

  The width is interpolated in log width. The grid grows until the answer is
  inside, and is refined there. Outcomes at its ends:
    - the last pick gains less than 1 at every width from 1e-4 (the budget is
      close to the number of different prompts): the pick at half the budget is
      taken instead, then at a quarter, ... If none of them gains 1, since rows
      are the same, the width is 1;
    - the last pick gains at least 1 up to a width of 100 (the budget is tiny):
      the width is 100, or the largest that was given.

  Args:
    features: [N, D] numbers.
    budget: number of picks, at least 1: the budget that you will use.
    widths: the grid to start from.
    mesh, memory_limit: as in facility_location.
    progress: called with (picks, total), both over all the given widths.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  curves = _Curves(features, budget, widths, mesh, memory_limit, progress)
  width, pick = curves.suggest()
  curves.add(width)
  tried = sorted(curves.gains)
  curve_WxM = np.stack([curves.gains[width] for width in tried])
  return KernelWidth(width, pick, tuple(tried), curve_WxM, _flags(curve_WxM))


class _Curves:
  """Gains in pick order for every width tried; more widths can be added."""

  def __init__(
    self,
    features: Features,
    budget: int,
    widths: Sequence[float],
    mesh: jax.sharding.Mesh | None,
    memory_limit: int | None,
    progress: Callback | None,
  ) -> None:
    """Runs facility location at the given widths; arguments as above."""
    self._feature_NxD = checks.features(features)
    self._budget = checks.budget(
      checks.integer('budget', budget, least=1), len(self._feature_NxD)
    )
    given = [checks.positive('width', width) for width in widths]
    if not given:
      raise SelectionError('widths is empty: name at least one')
    self._mesh = mesh
    self._memory_limit = memory_limit
    self._progress = Progress(progress, self._budget * len(given))
    self.gains: dict[float, np.ndarray] = {}
    for number, width in enumerate(given):
      self._run(width, self._progress.after(self._budget * number))

  def add(self, width: float) -> None:
    """Runs facility location at another width; its picks are not counted."""
    if width not in self.gains:
      self._run(width, self._progress.provisional().after(0))

  def _run(self, width: float, progress: Callback | None) -> None:
    self.gains[width] = facility_location(
      self._feature_NxD,
      self._budget,
      Rbf(width=width),
      mesh=self._mesh,
      memory_limit=self._memory_limit,
      progress=progress,
    ).gains

  def suggest(self) -> tuple[float, int]:
    """Returns the width to use, and the pick that gains 1 at it (or 0)."""
    pick = self._budget
    width = self._largest_width(pick)
    while width is None and pick > 3:
      pick //= 2
      width = self._largest_width(pick)
    if width is None:
      assert DEFAULT.width is not None
      return DEFAULT.width, 0
    return width, pick

  def _largest_width(self, pick: int) -> float | None:
    """Returns the largest width at which this pick gains 1; None: at none."""
    while True:
      widths = sorted(self.gains)
      gain_W = np.array([self.gains[width][pick - 1] for width in widths])
      enough = np.flatnonzero(gain_W >= _ENOUGH)
      if not len(enough):
        if widths[0] <= _SMALLEST:
          return None
        self.add(max(_rounded(widths[0] / _STEP), _SMALLEST))
        continue
      last = int(enough[-1])
      if last == len(widths) - 1:
        if widths[-1] >= _LARGEST:
          return widths[-1]
        self.add(min(_rounded(widths[-1] * _STEP), _LARGEST))
        continue
      low, high = widths[last : last + 2]
      if high / low > _NEAR:
        self.add(_rounded(math.sqrt(low * high)))
        continue
      share = (gain_W[last] - _ENOUGH) / (gain_W[last] - gain_W[last + 1])
      return _rounded(low * (high / low) ** share)


def _rounded(width: float) -> float:
  """Returns the width with three digits."""
  return float(f'{width:.3g}')


def _flags(curve_WxM: np.ndarray) -> tuple[str, ...]:
  """Returns what is wrong with each width, '' if nothing is."""
  return tuple(_degenerate(curve_M) for curve_M in curve_WxM)


def _degenerate(curve_M: np.ndarray) -> str:
  if curve_M[-1] < _COLLAPSED:
    return 'collapsed'
  second_half = curve_M[len(curve_M) // 2 :]
  return 'flat' if np.abs(second_half - 1).max() <= _FLAT else ''
