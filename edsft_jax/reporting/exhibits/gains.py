"""What each pick added."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from edsft_jax.reporting import picks, plots
from edsft_jax.reporting.exhibits.exhibit import Exhibit
from edsft_jax.strategies import registry

# A kernel width is marked if its first pick covers more than this share.
MOST_OF_THE_POOL = 0.5


def gains_by_width(curves: Mapping[str, Any]) -> Exhibit:
  """The gains plot, from gains_curves.json."""
  widths = curves['widths']
  rows = [
    (width, position, gain, flaw)
    for width, curve, flaw in zip(
      widths, curves['curves'], curves['degenerate'], strict=True
    )
    for position, gain in enumerate(curve, start=1)
  ]
  shares = [curve[0] / curves['num_prompts'] for curve in curves['curves']]
  remarks = [
    flaw or (f'first pick {share:.0%}' if share > MOST_OF_THE_POOL else '')
    for flaw, share in zip(curves['degenerate'], shares, strict=True)
  ]
  note = _about_width(curves, shares)
  listed = ', '.join(
    f'{width:g} ({remark or "decays"})'
    for width, remark in zip(widths, remarks, strict=True)
  )
  return Exhibit(
    name='gains_by_width',
    caption='Marginal gain of each pick of facility location, by the width of '
    'the kernel. Dashed: widths for which prompts are too different, or so '
    'much alike that the first pick covers most of the pool.',
    alt='Marginal gain of each greedy pick of facility location against its '
    f'position, one line per kernel width: {listed}. {note}',
    draw=functools.partial(
      plots.gains_by_width, widths, curves['curves'], remarks, curves['width']
    ),
    columns=('width', 'position', 'gain', 'degenerate'),
    rows=rows,
    note=note,
  )


def _about_width(curves: Mapping[str, Any], shares: Sequence[float]) -> str:
  """The width that was used, and what its first and last picks gain."""
  used, suggested = curves['width'], curves['suggested']
  of_prompts = f'{curves["num_prompts"]:,} prompts'
  picks = f'{curves["budget"]:,} picks'
  note = f'Width {used:g} was used'
  if used == suggested:
    note += ', as suggested by the curves.'
  else:
    note += f'; the curves suggest {suggested:g}.'
  note += f' The curves were computed on {of_prompts} for {picks}.'
  if used not in curves['widths']:
    return f'{note} It is not among the widths tried: no line is highlighted.'
  where = curves['widths'].index(used)
  note += (
    f' At this width, the first pick covers {shares[where]:.0%} of the prompts '
    f'and the last gains {curves["curves"][where][-1]:.2f}.'
  )
  if shares[where] > MOST_OF_THE_POOL:
    note += (
      ' A single prompt covers most of the pool: the width is large for this '
      'pool, and other prompts differ little in what they add.'
    )
  return note


def selection_gains(
  selections: picks.Selections,
) -> Exhibit | None:
  """Gains of the strategies that use features; None if there are none."""
  chosen = {
    key: rows
    for key, rows in selections.items()
    if 'features' in registry.STRATEGIES[key[0]].reads
    and any(row['gain'] is not None for row in rows)
  }
  if not chosen:
    return None
  gains = {key: [row['gain'] for row in rows] for key, rows in chosen.items()}
  names = dict.fromkeys(strategy for strategy, _ in chosen)
  return Exhibit(
    name='selection_gains',
    caption='Gain of each pick of the selections, by its position, a line for '
    'each list. For k_center, it is the distance of the pick to those chosen '
    'before.',
    alt='Gain of each pick against its position for ' + ', '.join(names) + '.',
    draw=functools.partial(plots.selection_gains, gains),
    columns=('strategy', 'seed', 'position', 'id', 'gain'),
    rows=[
      (*key, position, row['id'], row['gain'])
      for key, rows in chosen.items()
      for position, row in enumerate(rows, start=1)
    ],
  )
