"""Token statistics and pooling against numpy, term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edsft_jax.scoring import pooling, statistics

token_statistics = jax.jit(statistics.token_statistics)
sequence_scores = jax.jit(statistics.sequence_scores, static_argnums=2)
pool_features = jax.jit(pooling.pool_features, static_argnums=2)


def _reference(logit_TxV, token_T, normalized):
  """PAPERS, "Uncertainty scores", in float64 and in plain loops."""
  entropies, top1s, top2s, surprises = [], [], [], []
  for logit_V, token in zip(logit_TxV, token_T, strict=True):
    prob_V = np.exp(logit_V - logit_V.max())
    prob_V /= prob_V.sum()
    entropies.append(-sum(p * np.log(p) for p in prob_V if p > 0))
    top2, top1 = np.sort(prob_V)[-2:]
    top1s.append(top1)
    top2s.append(top2)
    surprises.append(-np.log(prob_V[token]))
  margins = np.subtract(top1s, top2s)
  return {
    'mean_entropy': np.mean(entropies),
    'max_entropy': np.max(entropies),
    'least_confidence': np.mean(surprises) if normalized else np.sum(surprises),
    'min_confidence': np.min(top1s),
    'mean_margin': np.mean(margins),
    'min_margin': np.min(margins),
    'mean_confidence': np.mean(top1s),
    'log_probability': -np.sum(surprises),
  }


@pytest.mark.parametrize('normalized', [False, True])
def test_sequence_scores_match_the_definitions(normalized):
  rng = np.random.default_rng(0)
  num_rows, num_steps, vocab = 5, 7, 11
  logits = rng.normal(scale=3.0, size=(num_rows, num_steps, vocab))
  tokens = rng.integers(vocab, size=(num_rows, num_steps))
  lengths = np.array([7, 1, 4, 2, 0])
  valid = np.arange(num_steps) < lengths[:, None]
  # What stands after the end must not count, however extreme.
  logits[~valid] = 1e4 * rng.normal(size=(int((~valid).sum()), vocab))

  got = sequence_scores(
    token_statistics(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens)),
    jnp.asarray(valid),
    normalized,
  )

  for row, length in enumerate(lengths[:-1]):
    expected = _reference(
      logits[row, :length], tokens[row, :length], normalized
    )
    assert got.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(got[name][row], value, rtol=2e-5, atol=1e-6)
  assert all(np.isnan(scores[-1]) for scores in got.values())


def test_two_equal_best_tokens_have_no_margin():
  logits = jnp.array([[2.0, 5.0, 5.0, 1.0]])
  got = token_statistics(logits, jnp.array([1]))
  assert got.top1[0] == got.top2[0]


def test_bfloat16_logits_are_reduced_in_float32():
  logits = jnp.zeros([1, 4096], jnp.bfloat16)
  got = token_statistics(logits, jnp.array([0]))
  np.testing.assert_allclose(got.entropy[0], np.log(4096), rtol=1e-6)


def _pooling_cases():
  hidden = np.random.default_rng(1).normal(size=(4, 3))
  weights = np.arange(1, 5)[:, None]
  return hidden, {
    'mean': hidden.mean(0),
    'last': hidden[-1],
    'weighted': (weights * hidden).sum(0) / weights.sum(),
  }


@pytest.mark.parametrize('name', pooling.POOLINGS)
@pytest.mark.parametrize(('left', 'right'), [(0, 0), (3, 0), (0, 3)])
def test_pooling_ignores_padding_on_either_side(name, left, right):
  hidden_LxD, expected = _pooling_cases()
  garbage = np.full((1, 3), 1e6)
  padded = np.concatenate(
    [np.repeat(garbage, left, 0), hidden_LxD, np.repeat(garbage, right, 0)]
  )
  mask = np.array([False] * left + [True] * 4 + [False] * right)
  masks = np.stack([mask, np.zeros_like(mask), np.arange(len(mask)) == left])
  got = pool_features(
    jnp.asarray(padded[None], jnp.float32), jnp.asarray(masks[None]), name
  )
  alone = hidden_LxD[0]
  np.testing.assert_allclose(
    got[0], [expected[name], np.zeros(3), alone], rtol=1e-5
  )


def test_pooling_of_bfloat16_is_float32():
  hidden = jnp.full([1, 300, 2], 1.0, jnp.bfloat16)
  got = pool_features(hidden, jnp.ones([1, 1, 300], bool), 'mean')
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 1.0, rtol=1e-6)
