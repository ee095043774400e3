"""Simulates whole studies, to see how often the report's statistics are wrong.

  python scripts/simulate_statistics.py                # 20,000 studies per case
  python scripts/simulate_statistics.py --studies=500  # a first look

Each study has random and five strategies, three nested budgets and 300 items.
A prompt of the pool has a worth; a strategy ranks its seed's part of the pool
by a score that is independent of the worth, and random by the order in which
the pool was shuffled. A cell's result is

  its place on the curve + the strategy's gap + the mean worth of its prompts
  + its initialisation's error + what its items add

with everything in units of the spread between initialisations. `ratio` is the
spread between lists of prompts of the middle budget. An item has an effect of
its own (SD 5), another one with each strategy (SD 2), and a new one in every
cell (SD 5).
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import time

import command_line
import numpy as np

from edsft_jax.reporting import procedure, savings, statistics

BUDGETS = (20, 40, 80)
STRATEGIES = ('random', 'a', 'b', 'c', 'd', 'e')
ITEMS = 300
# The largest budget is a fifth of each seed's part of the pool.
PART = 5 * max(BUDGETS)
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Case:
  """What the studies of a case have in common.

  Attributes:
    seeds: of every strategy, each with its own part of the pool.
    ratio: spread between lists over spread between initialisations.
    gap: of the strategies in `better`, in initialisation SDs.
    better: how many strategies have the gap.
    slope: quality per doubling of the answers.
    bend: of the curve, as a quadratic term per doubling from the middle.
    shared: the part of an initialisation's variance that the budgets of a seed
      have in common.
    interaction: SD of the effect of an item with a strategy.
    whole_pool: every seed has the whole pool, and a strategy has one list.
  """

  seeds: int = 3
  ratio: float = 0.0
  gap: float = 0.0
  better: int = 1
  slope: float = 0.0
  bend: float = 0.0
  shared: float = 0.0
  interaction: float = 2.0
  whole_pool: bool = False


@dataclasses.dataclass(frozen=True)
class Draws:
  """What is random in a batch of studies, before a case scales it.

  Attributes:
    own: the errors of the cells' initialisations, [studies, S, R, B].
    shared: errors that all budgets of a seed have, [studies, S, R, 1].
    worth: mean worth of the cells' prompts at ratio 1, [studies, S, R, B].
    items: what items add to a cell, [studies, S, R, B, I].
    interaction: of an item with a strategy, SD 1, [studies, S, 1, 1, I].
  """

  own: np.ndarray
  shared: np.ndarray
  worth: np.ndarray
  items: np.ndarray
  interaction: np.ndarray


def draw(
  seeds: int, whole_pool: bool, studies: int, rng: np.random.Generator
) -> Draws:
  """Draws this many studies."""
  shape = studies, len(STRATEGIES), seeds, len(BUDGETS)
  items = rng.standard_normal((*shape, ITEMS), np.float32)
  # An effect of the item, and a new one in every cell.
  items += rng.standard_normal((studies, 1, 1, 1, ITEMS), np.float32)
  items *= 5.0
  return Draws(
    own=rng.standard_normal(shape),
    shared=rng.standard_normal((*shape[:3], 1)),
    worth=_worth_of_lists(seeds, whole_pool, studies, rng),
    items=items,
    interaction=rng.standard_normal((*shape[:2], 1, 1, ITEMS), np.float32),
  )


def item_values(case: Case, draws: Draws) -> dict[str, np.ndarray]:
  """Item values of each strategy, [studies, R, B, I]."""
  x_B = np.log2(np.array(BUDGETS) / BUDGETS[1])
  gap_S = np.zeros(len(STRATEGIES))
  gap_S[1 : 1 + case.better] = case.gap
  mean_NxSxRxB = (
    case.slope * x_B
    + case.bend * x_B**2
    + gap_S[:, None, None]
    + case.ratio * draws.worth
    + np.sqrt(1 - case.shared) * draws.own
    + np.sqrt(case.shared) * draws.shared
  ).astype(np.float32)
  effect_NxSx1xI = case.interaction * draws.interaction
  return {
    name: draws.items[:, s]
    + effect_NxSx1xI[:, s]
    + mean_NxSxRxB[:, s, ..., None]
    for s, name in enumerate(STRATEGIES)
  }


def _worth_of_lists(
  seeds: int, whole_pool: bool, studies: int, rng: np.random.Generator
) -> np.ndarray:
  """Mean worth of each cell's prompts, [studies, S, R, B].

  Scores of strategies are correlated, as real ones are, so that their lists
  share prompts.
  """
  size = PART * (seeds if whole_pool else 1)
  shape = studies, 1 if whole_pool else seeds, size
  # The spread of a mean over the prompts of the middle budget is 1.
  worth = rng.standard_normal(shape, np.float32) * np.sqrt(BUDGETS[1])
  common = rng.standard_normal(shape, np.float32)
  # Random has a different list for every seed.
  scores = [rng.standard_normal((studies, seeds, size), np.float32)]
  scores += [
    common + rng.standard_normal(shape, np.float32) for _ in STRATEGIES[1:]
  ]
  return np.stack([_mean_worth(worth, score, seeds) for score in scores], 1)


def _mean_worth(worth: np.ndarray, score: np.ndarray, seeds: int) -> np.ndarray:
  """Mean worth of the prompts with the largest scores, [studies, R, B]."""
  largest = max(BUDGETS)
  top = np.argpartition(score, -largest, axis=-1)[..., -largest:]
  order = np.argsort(-np.take_along_axis(score, top, -1), axis=-1)
  top = np.take_along_axis(top, order, -1)
  one = np.broadcast_to(worth, (*top.shape[:2], worth.shape[-1]))
  picked = np.take_along_axis(one, top, -1)
  means = np.stack([picked[..., :b].mean(-1) for b in BUDGETS], -1)
  return np.broadcast_to(means, (len(means), seeds, len(BUDGETS)))


@dataclasses.dataclass
class Counts:
  """What happened in the studies of a case; rates are over studies.

  Attributes:
    studies: how many.
    false_verdicts: studies in which a strategy without a gap is called better
      or worse by its whole curve.
    found: of the strategies with a gap, the share that is called better.
    covered: of all strategies, the share whose interval has the true gap.
    saving_covered: ... whose saving's interval has the true saving.
    saving_known: ... whose saving's interval has an end within the budgets.
    false_savings: upper bound on studies that report a saving for a strategy
      that saves nothing: summed over strategies.
    bent: studies whose curves are found not to be lines, so that savings come
      from isotonic curves.
  """

  studies: int = 0
  false_verdicts: float = 0.0
  found: float = 0.0
  covered: float = 0.0
  saving_covered: float = 0.0
  saving_known: float = 0.0
  false_savings: float = 0.0
  bent: float = 0.0

  def rates(self) -> dict[str, float]:
    """Each rate by name."""
    return {
      name: value / self.studies
      for name, value in dataclasses.asdict(self).items()
      if name != 'studies'
    }


def simulate(
  cases: Sequence[Case], studies: int, seed: int = 0
) -> list[Counts]:
  """Runs this many studies of each case through the report's statistics.

  The cases see the same draws, which take longer than the statistics.

  Args:
    cases: with the same seeds, in parts or all with the whole pool.
    studies: of each case.
    seed: of the draws.
  """
  ((seeds, whole_pool),) = {(case.seeds, case.whole_pool) for case in cases}
  all_counts = [Counts() for _ in cases]
  for size, rng in _batches(seeds, studies, seed):
    draws = draw(seeds, whole_pool, size, rng)
    for case, counts in zip(cases, all_counts, strict=True):
      judge(case, item_values(case, draws), counts)
  return all_counts


def _batches(
  seeds: int, studies: int, seed: int
) -> Iterator[tuple[int, np.random.Generator]]:
  """Sizes that keep the arrays in the cache, and a generator for each."""
  most = max(1, 200 // seeds)
  sizes = [most] * (studies // most) + [studies % most]
  children = np.random.SeedSequence(seed).spawn(len(sizes))
  for size, child in zip(sizes, children, strict=True):
    if size:
      yield size, np.random.Generator(np.random.SFC64(child))


def judge(case: Case, values: dict[str, np.ndarray], counts: Counts) -> None:
  """Adds what the procedure says of these studies."""
  counts.studies += len(values['random'])
  others = STRATEGIES[1:]
  fixed = frozenset(others) if case.whole_pool else frozenset()
  items = statistics.Items.independent(ITEMS)
  level = procedure.compare(
    {name: value.mean(-2) for name, value in values.items()},
    items,
    fixed,
    CONFIDENCE,
  )
  truth_S = case.gap * (np.arange(len(others)) < case.better)
  found = [level.tests[name].difference for name in others]
  mean_NxS = np.stack([one.mean for one in found], -1)
  corrected_NxS = statistics.holm(np.stack([one.p_value for one in found], -1))
  verdict_NxS = np.where(corrected_NxS < 1 - CONFIDENCE, np.sign(mean_NxS), 0.0)
  low_NxS = np.stack([one.low for one in found], -1)
  high_NxS = np.stack([one.high for one in found], -1)
  counts.false_verdicts += (verdict_NxS * (truth_S == 0)).any(-1).sum()
  if case.gap:
    counts.found += (verdict_NxS == 1)[:, truth_S != 0].mean(-1).sum()
  covered = (low_NxS <= truth_S) & (truth_S <= high_NxS)
  counts.covered += covered.mean(-1).sum()
  _judge_savings(case, values, level, verdict_NxS, counts)


def _judge_savings(
  case: Case,
  values: dict[str, np.ndarray],
  level: procedure.Level,
  verdict_NxS: np.ndarray,
  counts: Counts,
) -> None:
  """Adds what the procedure says of savings, by lines or by isotonic curves."""
  items = statistics.Items.independent(ITEMS)
  curves = {
    name: statistics.seed_means(value, items) for name, value in values.items()
  }
  slope = savings.common_slope(curves, BUDGETS)
  bent_N = slope.curvature_p < savings.CURVATURE_LEVEL
  counts.bent += bent_N.sum()
  at = BUDGETS.index(savings.reference_budget(BUDGETS))
  middle = procedure.compare(
    {name: value[bent_N, :, at] for name, value in values.items()},
    items,
    level.fixed,
    CONFIDENCE,
  )
  for s, name in enumerate(STRATEGIES[1:]):
    gap = case.gap * (s < case.better)
    test = level.tests[name].difference
    ratio = savings.fieller(
      test.mean, test.error, slope.value, slope.error, CONFIDENCE
    )
    doublings = np.log2(np.array(BUDGETS) / BUDGETS[at])
    known_N = (slope.value > 0) & (
      (ratio.low >= -doublings[-1]) | (ratio.high <= -doublings[0])
    )
    saves_N = ratio.low > 0
    true = gap / case.slope if case.slope else 0.0
    inside_N = ~known_N | ((ratio.low <= true) & (true <= ratio.high))
    for i, n in enumerate(np.flatnonzero(bent_N)):
      saving = _isotonic(curves[name][n], middle, name, i)
      known_N[n], saves_N[n] = saving.known, saving.high < BUDGETS[at]
      inside_N[n] = saving.low <= _true_answers(case, gap) <= saving.high
    counts.saving_known += known_N.sum() / 5
    counts.saving_covered += inside_N.sum() / 5
    if not gap:
      claimed_N = known_N & saves_N & (verdict_NxS[:, s] == 1)
      counts.false_savings += claimed_N.sum()


def _isotonic(
  curve_RxB: np.ndarray, middle: procedure.Level, name: str, n: int
) -> savings.Saving:
  """A strategy's saving by isotonic curves in the n-th study of a level."""
  error = middle.tests[name].difference.error
  return savings.by_isotonic_curves(
    curve_RxB.mean(0).tolist(),
    middle.means['random'][n].mean(),
    statistics.Error(
      error.value[n], np.broadcast_to(error.freedom, error.value.shape)[n]
    ),
    BUDGETS,
    True,
    CONFIDENCE,
  )


def _true_answers(case: Case, gap: float) -> float:
  """What the isotonic curves give without any error."""
  x_B = np.log2(np.array(BUDGETS) / BUDGETS[1])
  curve_B = case.slope * x_B + case.bend * x_B**2
  return savings.by_isotonic_curves(
    (curve_B + gap).tolist(),
    0.0,
    statistics.Error(0.0, 1),
    BUDGETS,
    True,
    CONFIDENCE,
  ).answers


def cases() -> list[Case]:
  """The cases that the script reports; neighbours share their draws."""
  ratios = (0.0, 0.5, 1.0, 2.0)
  return [
    case
    for seeds in (3, 10)
    for case in (
      *(Case(seeds, ratio, slope=2.0) for ratio in ratios),
      *(Case(seeds, ratio, gap=2.0, slope=2.0) for ratio in ratios),
      Case(seeds, 0.0, gap=2.0, better=5, slope=2.0),
      Case(seeds, 1.0),
      *(Case(seeds, 0.5, gap=gap, slope=2.0, bend=-0.8) for gap in (0.0, 1.0)),
      Case(seeds, 1.0, slope=2.0, shared=0.5),
      Case(seeds, 0.0, slope=2.0, interaction=5.0),
      *(Case(seeds, ratio, slope=2.0, whole_pool=True) for ratio in (0.0, 1.0)),
    )
  ]


def main() -> None:
  """Prints a row of rates per case."""
  parser = command_line.parser(__doc__)
  parser.add_argument(
    '--studies', type=command_line.positive, default=20_000, help='per case'
  )
  studies = parser.parse_args().studies
  print(f'{studies:,} studies per case; spread between initialisations: 1')
  columns = [f.name for f in dataclasses.fields(Counts) if f.name != 'studies']
  settings = [f.name for f in dataclasses.fields(Case)]
  print('  '.join([*settings, *columns]))
  groups = itertools.groupby(cases(), lambda one: (one.seeds, one.whole_pool))
  for _, group in groups:
    together = list(group)
    start = time.process_time()
    for case, counts in zip(together, simulate(together, studies), strict=True):
      rates = counts.rates()
      row = [
        *(
          f'{value:g}'.rjust(len(name))
          for name, value in dataclasses.asdict(case).items()
        ),
        *(f'{rates[name]:.3f}'.rjust(len(name)) for name in columns),
      ]
      print('  '.join(row))
    print(f'{time.process_time() - start:.0f} s of CPU time', flush=True)


if __name__ == '__main__':
  command_line.run(main)
