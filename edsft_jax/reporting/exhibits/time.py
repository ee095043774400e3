"""Where the time went."""

import functools

from edsft_jax.reporting import plots, timing
from edsft_jax.reporting.exhibits.exhibit import Exhibit


def stage_seconds(timings: timing.Timing) -> Exhibit | None:
  """Wall seconds by stage; None if none were recorded."""
  if not timings.total:
    return None
  listed = ', '.join(
    f'{stage} {seconds:.1f} s' for stage, seconds in timings.seconds.items()
  )
  return Exhibit(
    name='stage_seconds',
    caption='Wall seconds of each stage. Blue: the cost of choosing. The whole '
    'study is shown, with every strategy, budget and seed; to buy answers '
    'once, a single run is enough. The report itself is not counted.',
    alt=f'Wall seconds of each stage: {listed}.',
    draw=functools.partial(
      plots.stage_seconds, timings.seconds, timing.CHOOSING
    ),
    columns=('stage', 'seconds'),
    rows=list(timings.seconds.items()),
  )
