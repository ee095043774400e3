"""What each strategy picked and cost: words, seconds of the machine, money."""

from collections.abc import Mapping, Sequence
import dataclasses

import ml_collections
import numpy as np

from edsft_jax import store
from edsft_jax.reporting import picks, timing
from edsft_jax.strategies import registry


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Mean lengths of some prompts, in words.

  Attributes:
    prompts: words per prompt.
    answers: words per answer, of those that are known; None if none is.
  """

  prompts: float
  answers: float | None

  @classmethod
  def of(
    cls,
    ids: Sequence[str],
    prompt_words: Mapping[str, int],
    answer_words: Mapping[str, int],
  ) -> 'Lengths':
    """The means over prompts, which may occur several times."""
    answers = [answer_words[i] for i in ids if i in answer_words]
    return cls(
      float(np.mean([prompt_words[i] for i in ids])),
      float(np.mean(answers)) if answers else None,
    )

  def text(self) -> str:
    """'31 words per prompt, 58 per answer'."""
    text = f'{self.prompts:,.0f} words per prompt'
    return (
      text
      if self.answers is None
      else f'{text}, {self.answers:,.0f} per answer'
    )


def lengths(
  pool: store.Prompts,
  answers: Mapping[str, str],
  selections: picks.Selections,
  budgets: Sequence[int],
) -> dict[tuple[str, int], Lengths]:
  """(strategy, budget) -> mean lengths of what it picked, over all seeds.

  Args:
    pool: the prompts.
    answers: those that are known, by id.
    selections: (strategy, seed) -> rows in greedy order.
    budgets: the numbers of picks.
  """
  prompt_words = dict(zip(pool.ids, pool.num_words(), strict=True))
  answer_words = {i: len(text.split()) for i, text in answers.items()}
  found = {}
  for strategy in dict.fromkeys(name for name, _ in selections):
    orders = [
      rows for (name, _), rows in selections.items() if name == strategy
    ]
    for budget in budgets:
      ids = [row['id'] for rows in orders for row in rows[:budget]]
      found[strategy, budget] = Lengths.of(ids, prompt_words, answer_words)
  return found


@dataclasses.dataclass(frozen=True)
class Choosing:
  """What it took to choose prompts, besides their answers.

  Attributes:
    what: a strategy, or the scoring of the pool.
    seconds: of the machine, for all seeds.
    needs_scoring: whether choosing needs the score stage.
    money: the price of these seconds; None if an hour has no price.
  """

  what: str
  seconds: float
  needs_scoring: bool
  money: float | None


SCORING = 'scoring the pool'


def seconds_to_choose(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> dict[str, float]:
  """Strategy -> seconds for all its seeds, where they are recorded."""
  paths = {
    strategy: workdir.selection_record(strategy)
    for strategy in config.selection.strategies
  }
  records = {
    strategy: store.read_json(path)
    for strategy, path in paths.items()
    if path.exists()
  }
  return {
    strategy: record['seconds']
    for strategy, record in records.items()
    if 'seconds' in record
  }


def choosing(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  timings: timing.Timing,
) -> list[Choosing]:
  """Scoring, if it was done, and each strategy whose seconds are recorded."""
  seconds = {}
  if 'score' in timings.seconds:
    seconds[SCORING] = timings.seconds['score']
  seconds |= seconds_to_choose(config, workdir)
  price = config.report.price_per_hour
  return [
    Choosing(
      what,
      spent,
      what != SCORING and registry.STRATEGIES[what].needs_scoring,
      price * spent / 3600 if price else None,
    )
    for what, spent in seconds.items()
  ]
