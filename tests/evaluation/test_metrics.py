"""Each metric against its definition written out."""

import itertools

import numpy as np
import pytest

from edsft_jax.evaluation import metrics


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


def test_summary_weighs_the_loss_by_tokens():
  rows = [
    {'loss': 1.0, 'exact_match': 1.0, 'rouge_l': 0.5},
    {'loss': 4.0, 'exact_match': 0.0, 'rouge_l': 0.0},
  ]
  assert metrics.summarize(rows, num_tokens=[5, 1]) == {
    'loss': pytest.approx(9 / 6),
    'exact_match': 0.5,
    'rouge_l': 0.25,
  }
