"""Each metric against its definition written out."""

import itertools

import numpy as np
import pytest

from edsft_jax.evaluation import metrics
from edsft_jax.evaluation.task import Metric


@pytest.mark.parametrize(
  ('prediction', 'reference', 'expected'),
  [
    ('42', '42', 1.0),
    ('  a \n b ', 'a b', 1.0),
    ('a b', 'ab', 0.0),
    ('A b', 'a b', 0.0),
    ('', '  ', 1.0),
    ('', 'a', 0.0),
  ],
)
def test_exact_match(prediction, reference, expected):
  assert metrics.exact_match(prediction, reference) == expected


def _longest_common(a: list[str], b: list[str]) -> int:
  """Tries every subsequence of the shorter."""
  short, long = sorted((a, b), key=len)
  for size in range(len(short), 0, -1):
    for words in itertools.combinations(short, size):
      rest = iter(long)
      if all(word in rest for word in words):
        return size
  return 0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
  rng = np.random.default_rng(0)
  for _ in range(50):
    a, b = (list(rng.choice(list('abcde'), rng.integers(1, 8))) for _ in '12')
    common = _longest_common(a, b)
    expected = 2 * common / (len(a) + len(b))
    assert metrics.rouge_l(' '.join(a), ' '.join(b)) == pytest.approx(expected)


def test_rouge_l_has_no_stemmer_and_survives_no_words():
  assert metrics.rouge_l('The RUNNING dogs', 'the running dogs!') == 1.0
  assert metrics.rouge_l('running', 'run') == 0.0
  assert metrics.rouge_l('', 'word') == 0.0
  assert metrics.rouge_l('?!', '?!') == 0.0


METRICS = {
  'loss': Metric('Loss', False, '', weight='num_tokens'),
  'match': Metric('Match', True, ''),
}


def test_means_weigh_items_as_the_metric_says():
  rows = [
    {'loss': 1.0, 'num_tokens': 5, 'match': 1.0},
    {'loss': 4.0, 'num_tokens': 1, 'match': 0.0},
  ]
  found = metrics.aggregate(rows, METRICS)
  assert found['loss']['value'] == pytest.approx(9 / 6)
  assert found['match']['value'] == 0.5
  assert found['match']['n'] == found['loss']['n'] == 2
  assert metrics.aggregate(rows[:1], METRICS)['match'] == {
    'value': 1.0,
    'standard_error': None,
    'n': 1,
  }


def test_small_weights_do_not_shrink_the_mean():
  rows = [
    {'loss': 1.0, 'num_tokens': 0.1, 'match': 1.0},
    {'loss': 3.0, 'num_tokens': 0.1, 'match': 1.0},
  ]
  assert metrics.aggregate(rows, METRICS)['loss']['value'] == pytest.approx(2)
  rows = [{**row, 'num_tokens': 0} for row in rows]
  assert metrics.aggregate(rows, METRICS)['loss']['value'] == 0


def test_standard_errors_are_the_spread_of_means_over_samples_of_items():
  """Against 4,000 samples; a loss weighed by tokens is a ratio of sums."""
  rng = np.random.default_rng(0)

  def sample() -> list[dict]:
    tokens = rng.integers(1, 30, 200)
    return [
      {'loss': loss, 'num_tokens': int(n), 'match': float(loss < 2)}
      for n, loss in zip(tokens, rng.gamma(2, 1 + 10 / tokens), strict=True)
    ]

  found = [metrics.aggregate(sample(), METRICS) for _ in range(4000)]
  for name in METRICS:
    spread = np.std([one[name]['value'] for one in found])
    errors = [one[name]['standard_error'] for one in found]
    assert np.mean(errors) == pytest.approx(spread, rel=0.05)
