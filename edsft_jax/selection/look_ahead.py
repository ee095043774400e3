"""Guesses the first picks, and computes gains and residuals for them ahead."""

import dataclasses

import jax
import numpy as np

from edsft_jax.selection.options import Plan
from edsft_jax.selection.problem import Problem
from edsft_jax.selection.residual_passes import pass_over_pairs, residuals_pay
from edsft_jax.selection.residuals import SparseResiduals
from edsft_jax.selection.search import Search
from edsft_jax.selection.similarity_cache import SimilarityCache


@dataclasses.dataclass
class LookAhead:
  """What was computed for a guess of the first picks.

  A guess decides what is computed ahead, never what is picked: results are used
  only if the picks are those that were guessed, in any order.

  Attributes:
    guess: the candidates that were guessed, in order.
    gain_C: gains of all candidates, by the number of guessed picks before.
    residuals: sparse residuals after all guessed picks, or None.
  """

  guess: list[int] = dataclasses.field(default_factory=list)
  gain_C: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
  residuals: SparseResiduals | None = None

  def compare(self, picked: list[int]) -> None:
    """Forgets everything unless these picks were guessed."""
    if not set(picked) <= set(self.guess):
      self.guess, self.gain_C, self.residuals = [], {}, None

  def gains_after(self, picked: list[int]) -> np.ndarray | None:
    """Returns the gains after some picks, if they are known."""
    count = len(picked)
    as_guessed = set(picked) == set(self.guess[:count])
    return self.gain_C.get(count) if as_guessed else None


def look_ahead(search: Search) -> LookAhead:
  """Guesses picks on a sample, then passes over all pairs of rows once.

  The pass computes the gains before some of the guessed picks, and the sparse
  residuals after all of them. Together, greedy needs nothing else; two separate
  passes would compute twice as many similarities.
  """
  problem, cache, plan = search.problem, search.cache, search.plan
  options = search.options
  before_any = cache.coverage
  guess, coverages, fit = _guess(search)
  refreshed = [k for k in options.refresh_before if k < max(len(guess), 1)]
  residuals, gain_VxC = pass_over_pairs(
    problem, cache, plan, [coverages[k] for k in refreshed], make=fit
  )
  cache.coverage = before_any
  return LookAhead(
    guess, dict(zip(refreshed, gain_VxC, strict=True)), residuals
  )


def _guess(search: Search) -> tuple[list[int], list[jax.Array], bool]:
  """Guesses picks while each leaves far fewer entries that can still count.

  Returns:
    The guessed candidates, the coverage before, between and after them (the
    cache has the last), and whether residuals then fit.
  """
  problem, cache, plan = search.problem, search.cache, search.plan
  options = search.options
  row_G = _sampled_rows(problem, plan)
  s_GxU = cache.similarities(row_G)
  guess: list[int] = []
  coverages = [cache.coverage]
  # With slack, picks after the refreshed ones need not be the best ones.
  most = options.refreshed_picks if plan.slack else options.max_guesses
  most = min(most, len(problem.row_C))
  alive = np.inf
  while True:
    current_G = cache.current()[row_G]
    before = alive
    alive = np.count_nonzero(s_GxU > current_G[:, None]) / len(row_G)
    fit = residuals_pay(alive, problem, plan)
    more = (
      alive > options.guess_above * problem.num_rows
      and before - alive > options.guess_drop * problem.num_rows
    )
    if len(guess) == most or (fit and not more and not plan.slack):
      return guess, coverages, fit
    gain_U = _sampled_gains(s_GxU, current_G, problem.weight_U[row_G])
    guess_pick = options.guess or likely_pick
    guess.append(guess_pick(cache, problem.row_C, gain_U, guess))
    cache.cover(problem.row_C[guess[-1:]])
    coverages.append(cache.coverage)


def likely_pick(
  cache: SimilarityCache,
  row_C: np.ndarray,
  sampled_gain_U: np.ndarray,
  guessed: list[int],
) -> int:
  """Returns the best, by exact gains, of those that look best on a sample."""
  options = cache.options
  gain_C = sampled_gain_U[row_C]
  gain_C[guessed] = -np.inf
  most = max(options.panel, len(row_C) // options.promising_one_in)
  promising = np.sort(largest(gain_C, most))
  return int(promising[np.argmax(cache.panel_gains(row_C[promising]))])


def largest(bound_C: np.ndarray, most: int) -> np.ndarray:
  """Returns the candidates with the largest gains, in any order.

  Args:
    bound_C: gains, perhaps stale; -inf: never returned.
    most: how many to return, at most.
  """
  size = min(most, len(bound_C))
  top = np.argpartition(-bound_C, size - 1)[:size]
  return top[bound_C[top] > -np.inf]


def _sampled_gains(
  s_GxU: np.ndarray, current_G: np.ndarray, weight_G: np.ndarray
) -> np.ndarray:
  """Returns [U] approximate float32 gains over a sample of rows."""
  gain_U = np.zeros(s_GxU.shape[1], np.float32)
  # Row by row, so that the sums stay in the processor's cache.
  for s_U, current, weight in zip(s_GxU, current_G, weight_G, strict=True):
    gain_U += np.float32(weight) * np.maximum(s_U - current, 0.0)
  return gain_U


def _sampled_rows(problem: Problem, plan: Plan) -> np.ndarray:
  """Returns evenly spaced rows, enough to guess from."""
  options, rows = plan.options, problem.num_rows
  size = min(rows // 8, options.max_guess_rows, plan.memory_limit // (8 * rows))
  return np.arange(0, rows, -(-rows // max(size, options.min_guess_rows)))
