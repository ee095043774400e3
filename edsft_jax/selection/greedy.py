"""Greedy facility location: which regime applies when, and the regimes.

All regimes make the same picks, except threshold sweeps; they differ in what
they keep. README.md in this folder explains when each is worthwhile.
"""

import dataclasses
import time

import numpy as np

from edsft_jax.selection.gains import FreshGains, StaleGains
from edsft_jax.selection.kernel import Kernel
from edsft_jax.selection.look_ahead import LookAhead, largest, look_ahead
from edsft_jax.selection.options import Plan
from edsft_jax.selection.problem import Order, Problem
from edsft_jax.selection.residual_passes import (
  make_residuals,
  memory_wanted,
  residuals_pay,
  sparse_enough,
)
from edsft_jax.selection.residuals import SparseResiduals
from edsft_jax.selection.result import Certificate, MemoryUse
from edsft_jax.selection.search import Search


def greedy(problem: Problem, plan: Plan) -> Order:
  """Picks greedily, by the regime that costs least.

  1. A small pool on one device: over all similarities, to the end.
  2. Otherwise, on one device and with enough pairs: a look-ahead first.
  3. As soon as sparse residuals pay: over these, to the end.
  4. Until then, pick by pick: from refreshed gains before the first picks and
     where the look-ahead knows them; after that, lazily over the similarity
     cache, or with slack in threshold sweeps.
  """
  if not problem.num_rows:
    return _of_an_empty_pool(problem)
  small = _all_similarities_pay(problem, plan)
  if small:
    # One device keeps all similarities and is exact; several have to agree.
    plan = dataclasses.replace(plan, slack=0.0)
  search = Search.of(problem, plan)
  if not search.goal:
    search.certify()
    return search.order
  if small and search.cache.symmetric(problem.row_C):
    return over_all_similarities(search)
  ahead = LookAhead()
  if _look_ahead_pays(search):
    search.enter('look-ahead')
    ahead = look_ahead(search)
  switch = _Switch(search, ahead)
  more = True
  while more and search.num_picked < search.goal:
    residuals = switch.residuals()
    search.order.memory_use = switch.memory_use()
    if residuals is not None:
      return over_residuals(search, residuals)
    gain_C = _known_gains(search, ahead)
    if gain_C is not None:
      more = best_of_refreshed(search, gain_C)
    elif plan.slack:
      more = threshold_sweep(search)
    else:
      more = lazy_over_cache(search)
  search.certify()
  return search.order


def _of_an_empty_pool(problem: Problem) -> Order:
  """Returns no picks, and a bound of 0."""
  order = Order.of_nothing()
  order.certificates.append(Certificate.of(0.0, np.zeros(0), problem.budget))
  return order


def _all_similarities_pay(problem: Problem, plan: Plan) -> bool:
  """Whether to keep all similarities: they fit, and there are few rows."""
  tile_rows = plan.options.tile_rows
  padded = -(-problem.num_rows // tile_rows) * tile_rows
  fit = 4 * padded**2 <= plan.memory_limit
  return problem.num_rows <= plan.options.kernel_rows and fit


def _look_ahead_pays(search: Search) -> bool:
  """Whether to guess the first picks before residuals are made."""
  problem = search.problem
  pairs = len(problem.row_C) * problem.num_rows
  enough = pairs > search.options.small_residuals
  return enough and search.cache.symmetric(problem.row_C)


def _known_gains(search: Search, ahead: LookAhead) -> np.ndarray | None:
  """Returns fresh gains of all candidates, if known or worth a pass."""
  gain_C = ahead.gains_after(search.order.candidates)
  if gain_C is None and search.num_picked < search.options.refreshed_picks:
    gain_C = search.cache.all_gains(search.problem.row_C)
  return gain_C


class _Switch:
  """Decides when sparse residuals take over, and provides them."""

  def __init__(self, search: Search, ahead: LookAhead) -> None:
    """Samples candidates, to estimate the number of residuals."""
    row_C = search.problem.row_C
    step = -(-len(row_C) // search.options.sampled_candidates)
    self._search = search
    self._ahead = ahead
    self._sample_CxU = search.cache.similarities(row_C[::step])
    self._alive = self._too_many = np.inf
    # About the memory limit that would have been enough, and since when.
    self._wanted, self._since = 0, 0.0

  def memory_use(self) -> MemoryUse:
    """Returns what the memory limit has cost so far."""
    seconds = time.monotonic() - self._since if self._wanted else 0.0
    limit = self._search.plan.memory_limit
    return MemoryUse(limit, self._wanted, self._search.num_picked, seconds)

  def residuals(self) -> SparseResiduals | None:
    """Returns residuals at the current coverage; None if it is too early."""
    search, ahead = self._search, self._ahead
    picked = search.order.candidates
    ahead.compare(picked)
    came_true = len(picked) == len(ahead.guess)
    if search.plan.slack:
      # The slack ends once there are residuals. They must come at the same
      # pick for any number of devices, although only one device looks ahead.
      refreshed = len(picked) >= search.options.refreshed_picks
      pay = refreshed and self._pay_now()
      if came_true and not pay:
        ahead.residuals = None
    else:
      pay = ahead.residuals is None and self._pay_now()
    if ahead.residuals is None:
      return self._make() if pay else None
    if not came_true:
      return None
    gain_C = ahead.gains_after(picked)
    if gain_C is not None:
      search.refresh(gain_C)
    return ahead.residuals

  def _pay_now(self) -> bool:
    """Whether residuals would pay, estimated from the sample."""
    alive = np.count_nonzero(self._sample_CxU > self._search.current_U)
    self._alive = alive / len(self._sample_CxU)
    problem, plan = self._search.problem, self._search.plan
    if self._alive < self._too_many:
      if residuals_pay(self._alive, problem, plan):
        return True
      # With enough memory, residuals are made after the guessed picks.
      after_guess = self._search.num_picked >= len(self._ahead.guess)
      if after_guess and sparse_enough(self._alive, problem, plan):
        self._want(memory_wanted(self._alive, problem))
    return False

  def _want(self, memory: float) -> None:
    """Notes that more memory would have been faster, the first time."""
    if not self._wanted:
      self._wanted, self._since = int(memory), time.monotonic()

  def _make(self) -> SparseResiduals | None:
    """Makes residuals in one pass; None if they do not fit."""
    search = self._search
    search.enter('pass for residuals')
    residuals, gain_C = make_residuals(
      search.problem, search.cache, search.plan
    )
    if residuals is None:
      # The estimate was too low: try again once it has halved.
      search.enter('residuals do not fit')
      self._too_many = self._alive / 2
      self._want(2 * memory_wanted(self._alive, search.problem))
    else:
      search.refresh(gain_C)
    return residuals


def over_all_similarities(search: Search) -> Order:
  """Picks lazily over all similarities of a small pool, to the end.

  Used up to Options.kernel_rows rows, on one device: there, reading a whole row
  is faster than finding the entries that can still count. The first picks lower
  nearly every gain, so all are recomputed after each of these.
  """
  search.enter('all similarities')
  problem = search.problem
  kernel = Kernel(
    search.cache.all_similarities(),
    search.current_U,
    problem.weight_U,
    problem.row_C,
  )
  search.current_U = kernel.current_U
  more = True
  while more and search.num_picked <= search.options.refreshed_picks:
    search.refresh(kernel.gains())
    search.certify()
    stale = StaleGains(kernel, search.bound_C)
    more = _pick_until(search, stale, search.num_picked + 1)
  if more:
    _pick_until(search, stale, search.goal)
  # Picks have a gain of 0 now, so they need not be left out.
  search.certify(kernel.gains())
  return search.order


def best_of_refreshed(search: Search, gain_C: np.ndarray) -> bool:
  """Picks the candidate with the largest gain; all gains are fresh.

  Used for the first picks, which lower nearly every gain, and where the
  look-ahead has computed the gains anyway. They give the tightest bounds.

  Returns:
    Whether the pick gained anything.
  """
  search.enter('refreshed gains')
  search.refresh(gain_C)
  search.certify()
  return _cover(search, int(np.argmax(search.bound_C)))


def lazy_over_cache(search: Search) -> bool:
  """Refreshes the largest stale gains until one stays the largest; picks it.

  Used while residuals would not fit or are not sparse enough to be worth a
  pass: devices are efficient at batches of candidates against all rows, and
  the cache has the candidates that come up again.

  Returns:
    Whether the pick gained anything.
  """
  search.enter('lazy over the cache')
  row_C, bound_C = search.problem.row_C, search.bound_C
  while True:
    top = largest(bound_C, search.options.batch)
    bound_C[top] = search.cache.gains(row_C[top])
    # The first of equals is the lowest index.
    best = int(np.argmax(bound_C))
    if best in top:
      return _cover(search, best)


def threshold_sweep(search: Search) -> bool:
  """Picks, in one sweep over a batch, all candidates near the best gain.

  Used instead of lazy picks by method 'threshold'. A stale gain is never too
  small, so a gain of 1 - slack of the largest stale gain is at least 1 - slack
  of the best gain.

  Returns:
    Whether the picks gained anything.
  """
  search.enter('threshold sweeps')
  row_C, bound_C = search.problem.row_C, search.bound_C
  most = search.goal - search.num_picked
  while True:
    top = largest(bound_C, search.options.batch)
    top = top[np.argsort(-bound_C[top], kind='stable')]
    enough = (1 - search.plan.slack) * bound_C[top[0]]
    bound_C[top], taken = search.cache.sweep(row_C[top], enough, most)
    if taken.any():
      break
    if bound_C.max() <= 0.0:
      return False
  for candidate in top[taken].tolist():
    search.take(candidate, float(bound_C[candidate]))
  search.current_U = search.cache.current()
  return True


def over_residuals(search: Search, residuals: SparseResiduals) -> Order:
  """Picks over sparse residuals on the host, to the end.

  Used once residuals fit and are sparse: entries that they leave out add
  exactly 0. They are compacted whenever the number of picks has doubled, later
  quadrupled.
  """
  search.cache.forget()
  search.current_U = residuals.current_U
  search.certify()
  regime = with_stale_gains
  compact_at = max(8, 2 * search.num_picked)
  while regime(search, residuals, min(compact_at, search.goal)):
    residuals.compact()
    search.refresh(residuals.gains())
    fresh_entries = search.options.fresh_entries * len(search.bound_C)
    if residuals.num_entries <= fresh_entries:
      regime = with_fresh_gains
    compact_at *= 4 if regime is with_fresh_gains else 2
  # Picks have a gain of 0 now, so they need not be left out.
  search.certify(residuals.gains())
  return search.order


def with_stale_gains(
  search: Search, residuals: SparseResiduals, until: int
) -> bool:
  """Picks lazily from a heap, while there are many residuals per candidate.

  A pick then changes many gains, most of which are never needed again.

  Returns:
    Whether `until` picks were made, and there is more to pick.
  """
  search.enter('stale gains over residuals')
  return _pick_until(search, StaleGains(residuals, search.bound_C), until)


def with_fresh_gains(
  search: Search, residuals: SparseResiduals, until: int
) -> bool:
  """Picks from gains that are all kept fresh, once residuals are few.

  A pick then changes a few thousand gains at most, and the next one is found
  without a search.

  Returns:
    Whether `until` picks were made, and there is more to pick.
  """
  search.enter('fresh gains over residuals')
  return _pick_until(search, FreshGains(residuals, search.bound_C), until)


def _pick_until(
  search: Search, gains: StaleGains | FreshGains, until: int
) -> bool:
  """Picks until there are `until` picks; False if nothing is left to pick."""
  for _ in range(search.num_picked, until):
    candidate, gain = gains.best()
    if gain <= 0.0:
      return False
    gains.pick(candidate)
    search.take(candidate, gain)
  return search.num_picked < search.goal


def _cover(search: Search, candidate: int) -> bool:
  """Picks a candidate on devices; False if it gains nothing."""
  gain = float(search.bound_C[candidate])
  if not gain:
    return False
  search.cache.cover(search.problem.row_C[[candidate]])
  search.take(candidate, gain)
  search.current_U = search.cache.current()
  return True
