"""All that the page is made from, read and computed once."""

from collections.abc import Mapping, Sequence
import dataclasses

import ml_collections
import numpy as np

from edsft_jax import parts, store
from edsft_jax.reporting import (
  account,
  comparison,
  costs,
  coverage,
  money,
  picks,
  projection,
  results,
  timing,
)


@dataclasses.dataclass(frozen=True)
class Material:
  """What the page is made from.

  Attributes:
    config: the study.
    workdir: its folder.
    manifest: what its stages recorded.
    found: the evaluations.
    compared: metric -> comparisons, the headline metric first.
    selections: (strategy, seed) -> rows in greedy order.
    orders: strategy -> seed -> ids in order.
    pool: the prompts.
    answers: those that finetuning may use, by id.
    timings: seconds by stage.
    spent: what the cells cost.
    lengths: (strategy, budget) -> mean lengths of the picks.
    replaced: picks that annotators rejected.
    prices: strategy -> mean price of an answer; empty without prices.
    covered: strategy -> how well it covers the pool; empty without features.
    projected: the pool in two dimensions; None without features.
    expected_overlap: the share that two random choices have in common at the
      largest budget.
  """

  config: ml_collections.ConfigDict
  workdir: store.Workdir
  manifest: store.Manifest
  found: results.Results
  compared: Mapping[str, comparison.Comparisons]
  selections: picks.Selections
  orders: picks.Orders
  pool: store.Prompts
  answers: Mapping[str, str]
  timings: timing.Timing
  spent: costs.Costs
  lengths: Mapping[tuple[str, int], account.Lengths]
  replaced: Sequence[picks.Replaced]
  prices: Mapping[str, float]
  covered: Mapping[str, coverage.Coverage]
  projected: projection.Projection | None
  expected_overlap: float

  @property
  def confidence(self) -> float:
    """The confidence of the intervals."""
    return self.config.report.confidence

  @property
  def metric(self) -> str:
    """The headline metric."""
    return self.config.report.metric


def read(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  manifest: store.Manifest,
  found: results.Results,
) -> Material:
  """Reads the selections, and computes what the page shows of them."""
  pool = store.read_prompts(workdir.pool)
  selections = {
    key: rows
    for key, rows in results.read_selections(config, workdir).items()
    if rows
  }
  orders = picks.ids(selections)
  timings = timing.read_timing(
    manifest.stages, [workdir.run(cell.name) for cell in found.evaluations]
  )
  answers = store.read_responses(workdir.responses)
  lengths = account.lengths(pool, answers, selections, found.budgets)
  split = parts.read(config, workdir, len(pool), store.earlier_rounds(manifest))
  words = dict(zip(pool.ids, pool.num_words(), strict=True))
  features = _features(workdir, len(pool))
  return Material(
    config=config,
    workdir=workdir,
    manifest=manifest,
    found=found,
    compared=comparison.compare_all(
      found, config.report.metric, config.report.confidence
    ),
    selections=selections,
    orders=orders,
    pool=pool,
    answers=answers,
    timings=timings,
    spent=costs.read(config, workdir, found, words, selections, timings),
    lengths=lengths,
    replaced=picks.replaced(config, workdir, pool),
    prices=money.prices(config, lengths),
    covered={}
    if features is None or not orders
    else coverage.measure(
      features, coverage.lists(pool, orders, split), found.budgets
    ),
    projected=None if features is None else projection.project(features),
    expected_overlap=found.budgets[-1]
    / parts.num_prompts(config.study.pool_fraction, len(pool)),
  )


def _features(workdir: store.Workdir, num_prompts: int) -> np.ndarray | None:
  """Features of the pool; None if there are none of all its prompts."""
  if not store.feature_files(workdir):
    return None
  features = store.read_features(workdir)
  return features if len(features) == num_prompts else None
