"""The order of examples and the learning rates, step by step."""

import numpy as np
import pytest

from edsft_jax.finetuning import batches
from edsft_jax.finetuning.trainer import learning_rates
from edsft_jax.models.responses import Example


@pytest.mark.parametrize(('num', 'epochs'), [(1, 1), (7, 3), (10, 2)])
def test_each_epoch_sees_each_example_once(num, epochs):
  order = batches.order(num, epochs, seed=5).reshape(epochs, num)
  assert np.array_equal(np.sort(order), np.tile(np.arange(num), (epochs, 1)))


def test_order_depends_on_seed_and_epoch_alone():
  order = batches.order(50, 3, seed=5)
  assert np.array_equal(order, batches.order(50, 3, seed=5))
  assert np.array_equal(order[:100], batches.order(50, 2, seed=5))
  assert not np.array_equal(order, batches.order(50, 3, seed=6))
  assert not np.array_equal(order[:50], order[50:100])


@pytest.mark.parametrize(
  ('num', 'epochs', 'size', 'steps'),
  [(100, 3, 16, 19), (5, 2, 4, 3), (8, 2, 4, 4), (1, 1, 16, 1)],
)
def test_steps_cover_every_epoch(num, epochs, size, steps):
  assert batches.num_steps(num, epochs, size) == steps


def test_batches_keep_the_examples():
  examples = [
    Example(list(range(3, 3 + n)), n // 2, False, False) for n in (4, 20)
  ]
  batch, num_targets = batches.make(examples, num_rows=3)
  assert batch.tokens.shape == (3, 32)
  assert num_targets == 16
  assert batch.num_tokens.tolist() == [4, 20, 0]
  assert batch.num_response.tolist() == [2, 10, 0]
  assert batch.tokens[1, -20:].tolist() == examples[1].tokens


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
  rates = learning_rates(0.4, 40, warmup_fraction=0.1)
  np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
  assert np.all(np.diff(rates[4:]) < 0)
  np.testing.assert_allclose(rates[4 + 18], 0.2, rtol=1e-6)  # Half way down.
  np.testing.assert_allclose(
    rates[-1], 0.2 * (1 + np.cos(np.pi * 35 / 36)), rtol=1e-4
  )


@pytest.mark.parametrize(('steps', 'fraction'), [(1, 0.05), (3, 1.0), (2, 0.0)])
def test_learning_rate_of_short_runs(steps, fraction):
  rates = learning_rates(0.4, steps, fraction)
  assert rates.shape == (steps,)
  assert np.all(rates > 0)
  assert rates.max() == np.float32(0.4)


def test_bucket():
  lengths = np.arange(1, 5000)
  sizes = np.array([batches.bucket(int(n)) for n in lengths])
  assert (sizes >= lengths).all()
  assert (np.diff(sizes) >= 0).all()
  assert len(set(sizes)) <= 17
  large = lengths > 16
  assert (sizes[large] <= 2 * lengths[large]).all()
  assert [batches.bucket(n) for n in (1, 16, 17, 512, 513, 769, 1025)] == [
    16,
    16,
    32,
    512,
    768,
    1024,
    1536,
  ]
