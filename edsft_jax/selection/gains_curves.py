"""Which RBF width to use: the gains of greedy picks, a curve for each width.

Bhatt et al. 2024 (arXiv 2401.06692) choose the width by looking at the gains
plot. The rule below makes this choice automatic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from edsft_jax.selection import checks
from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.facility_location import facility_location
from edsft_jax.selection.inputs import Features
from edsft_jax.selection.progress import Callback, Progress
from edsft_jax.selection.similarity import Rbf

# Gains are in units of prompts: 1 is one prompt fully covered, as by itself.
_FLAT = 0.1
_COLLAPSED = 0.01


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


def gains_curves(
  features: Features,
  budget: int,
  widths: Sequence[float],
  mesh: jax.sharding.Mesh | None = None,
  memory_limit: int | None = None,
  progress: Callback | None = None,
) -> GainsCurves:
  """Runs facility location at each width and judges its gains.

  >>> features = [[0.0], [0.2], [1.0], [1.2], [5.0], [5.2]]
  >>> result = gains_curves(features, budget=4, widths=[1e-6, 0.1, 1e6])
  >>> result.degenerate, result.suggested
  (('flat', '', 'collapsed'), 0.1)

  The rule. With g the gains in pick order, a width is
    'flat' if over the second half of the picks g stays within 0.1 of 1: they
      cover little but themselves, the width is too small;
    'collapsed' if the last g is below 0.01: before the budget is spent a pick
      adds less than a hundredth of one prompt, the width is too large.
  Of the widths that are not degenerate, the one whose gains decay most over the
  second half of the picks, by log(g[half] / g[last]), is suggested; the smaller
  width wins ties. If all are degenerate: the largest flat one, else the
  smallest.

  Args:
    features: [N, D] numbers.
    budget: number of picks, at least 1: the budget that you will use.
    widths: distinct numbers above 0, as in Rbf(width=...).
    mesh, memory_limit: as in facility_location.
    progress: called with (picks, total), both over all widths.

  Returns:
    The curves, whether each is degenerate, and the suggested width.

  Raises:
    SelectionError: naming the argument that is wrong.
  """
  feature_NxD = checks.features(features)
  budget = checks.budget(
    checks.integer('budget', budget, least=1), len(feature_NxD)
  )
  widths = [checks.positive('width', width) for width in widths]
  if not widths:
    raise SelectionError('widths is empty: name at least one')
  report = Progress(progress, budget * len(widths))
  curves: list[np.ndarray] = []
  for width in widths:
    one = facility_location(
      feature_NxD,
      budget,
      Rbf(width=width),
      mesh=mesh,
      memory_limit=memory_limit,
      progress=report.after(budget * len(curves)),
    )
    curves.append(one.gains)
  curve_WxM = np.stack(curves)
  flags = tuple(_degenerate(curve_M) for curve_M in curve_WxM)
  return GainsCurves(curve_WxM, flags, _suggest(widths, curve_WxM, flags))


def _degenerate(curve_M: np.ndarray) -> str:
  """Returns what is wrong with a width, '' if nothing is."""
  if curve_M[-1] < _COLLAPSED:
    return 'collapsed'
  second_half = curve_M[len(curve_M) // 2 :]
  return 'flat' if np.abs(second_half - 1).max() <= _FLAT else ''


def _suggest(
  widths: Sequence[float], curve_WxM: np.ndarray, flags: Sequence[str]
) -> float:
  """Returns the width that the rule suggests."""
  good = [w for w, flag in enumerate(flags) if not flag]
  if good:
    half = curve_WxM.shape[1] // 2
    decay_W = np.log(curve_WxM[good, half] / curve_WxM[good, -1])
    best = decay_W.max()
    return min(
      widths[w] for w, d in zip(good, decay_W, strict=True) if d == best
    )
  flat = [w for w, flag in zip(widths, flags, strict=True) if flag == 'flat']
  return max(flat) if flat else min(widths)
