"""Intervals, tests and corrections against hand-made and scipy's numbers."""

import math
import warnings

import pytest
from scipy import stats

from edsft_jax.reporting import statistics


def test_interval_of_three_by_hand():
  """s = 1, so the half width is t(2, 0.975) / sqrt(3)."""
  interval = statistics.mean_interval([1.0, 2.0, 3.0], 0.95)
  assert interval.mean == 2.0
  assert interval.half_width == pytest.approx(4.302652729911275 / 3**0.5)
  assert interval.low == pytest.approx(2 - interval.half_width)
  assert interval.count == 3


@pytest.mark.parametrize('confidence', [0.5, 0.95, 0.99])
def test_interval_against_scipy(confidence):
  values = [0.31, 0.52, 0.11, 0.47, 0.40]
  interval = statistics.mean_interval(values, confidence)
  low, high = stats.t.interval(
    confidence, 4, sum(values) / 5, stats.sem(values)
  )
  assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
  interval = statistics.mean_interval([0.7], 0.95)
  assert interval == statistics.Interval(0.7, None, None, 1)
  assert interval.half_width is None


@pytest.mark.filterwarnings('error')
def test_equal_values_have_an_interval_of_no_length():
  interval = statistics.mean_interval([0.1, 0.1, 0.1], 0.95)
  assert interval == statistics.Interval(0.1, 0.1, 0.1, 3)


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ([1.0, 2.0, 4.0], [2.0, 2.5, 2.6, 9.0]),
    ([0.5, 0.5, 0.5], [0.1, 0.4, 0.2]),
    ([0.30, 0.31], [0.28, 0.35]),
  ],
)
def test_welch_against_scipy(first, second):
  ours = statistics.welch(first, second, 0.9)
  with warnings.catch_warnings():
    # scipy's own, about a side whose values are equal.
    warnings.simplefilter('ignore')
    theirs = stats.ttest_ind(first, second, equal_var=False)
  interval = theirs.confidence_interval(0.9)
  assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
  assert ours.low == pytest.approx(interval.low)
  assert ours.high == pytest.approx(interval.high)


@pytest.mark.filterwarnings('error')
def test_welch_of_equal_values():
  """No difference and no spread: nothing speaks for a difference."""
  difference = statistics.welch([0.2, 0.2], [0.2, 0.2, 0.2], 0.95)
  assert difference == statistics.Difference(0.0, 0.0, 0.0, 1.0)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
  ('first', 'second'),
  [
    pytest.param([0.3, 0.3], [0.2, 0.2], id='no spread on either side'),
    pytest.param([0.3], [0.1, 0.2], id='one seed'),
    pytest.param([0.1, 0.2], [0.3], id='one seed of random'),
  ],
)
def test_welch_where_there_is_no_test(first, second):
  difference = statistics.welch(first, second, 0.95)
  assert (difference.low, difference.high, difference.p_value) == (None,) * 3
  assert difference.mean == pytest.approx(
    sum(first) / len(first) - sum(second) / len(second)
  )


def test_holm_by_hand():
  """Sorted: 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.9 * 1 kept ascending."""
  corrected = statistics.holm([0.9, 0.01, 0.03, 0.02])
  assert corrected == pytest.approx([0.9, 0.04, 0.06, 0.06])
  # 0.021 * 2 is below 0.02 * 3: what is larger stays larger.
  assert statistics.holm([0.02, 0.021, 0.5]) == pytest.approx([0.06, 0.06, 0.5])
  assert statistics.holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
  assert statistics.holm([0.7, 0.6]) == pytest.approx([1.0, 1.0])
  assert statistics.holm([]) == []


@pytest.mark.parametrize(
  ('quality', 'relation', 'answers'),
  [
    (0.1, 'at most', 100),
    (0.2, 'at most', 100),
    (0.25, 'about', 150),
    (0.3, 'about', 200),
    # The curve dips after 200: its first crossing counts.
    (0.31, 'about', 200 + 200 * (0.31 - 0.28) / (0.38 - 0.28) + 100),
    (0.38, 'about', 500),
    (0.39, 'more than', 500),
  ],
)
@pytest.mark.parametrize('higher_is_better', [True, False])
def test_answers_needed(quality, relation, answers, higher_is_better):
  sign = 1 if higher_is_better else -1
  budgets, means = [100, 200, 300, 500], [0.2, 0.3, 0.28, 0.38]
  needed = statistics.answers_needed(
    budgets, [sign * mean for mean in means], sign * quality, higher_is_better
  )
  assert needed.relation == relation
  assert needed.answers == pytest.approx(answers)


def test_answers_needed_in_words():
  assert str(statistics.AnswersNeeded('about', 1234.4)) == 'about 1,234'


def test_one_budget_is_a_point():
  def needed(quality):
    return statistics.answers_needed([50], [0.5], quality, True)

  assert str(needed(0.5)) == 'at most 50'
  assert str(needed(math.nextafter(0.5, 1))) == 'more than 50'
