"""The loss of a response, against log-softmax written out in numpy."""

from flax import nnx
import jax
import numpy as np
import pytest
import tiny_study

from edsft_jax import models
from edsft_jax.finetuning import batches
from edsft_jax.finetuning import loss as loss_lib
from edsft_jax.mesh import make_mesh
from edsft_jax.models.responses import Example


@pytest.fixture(scope='module')
def decoder() -> models.Decoder:
  return models.load_decoder(
    tiny_study.MODEL, 'float32', make_mesh(devices=jax.devices()[:1])
  )


def _example(num_prompt: int, num_response: int) -> Example:
  rng = np.random.default_rng(num_prompt)
  tokens = rng.integers(3, 60, size=num_prompt + num_response).tolist()
  return Example(tokens, num_response, False, False)


@pytest.fixture(scope='module')
def loss(decoder):
  """The loss of this decoder, compiled."""
  graph, params = nnx.split(decoder)

  def traced(params, batch, num_targets):
    return loss_lib.loss(nnx.merge(graph, params), batch, num_targets)

  compiled = jax.jit(traced, static_argnums=2)
  return lambda batch, num_targets: np.asarray(
    compiled(params, batch, num_targets)
  )


def _brute_force(decoder, forward, example: Example) -> float:
  """One row, every logit: -sum log p(response | what precedes)."""
  # To one length, behind what counts: causal, so it changes nothing.
  tokens = np.zeros((1, 16), np.int32)
  tokens[0, : len(example.tokens)] = example.tokens
  logits = np.asarray(forward(decoder, tokens)[0][0], np.float64)
  log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  first = len(example.tokens) - example.num_response
  return -sum(
    log_prob[i - 1, example.tokens[i]]
    for i in range(first, len(example.tokens))
  )


EXAMPLES = [_example(3, 4), _example(11, 1), _example(1, 9), _example(2, 0)]


def test_loss_is_that_of_the_response_alone(decoder, forward, loss):
  """On any padding of rows and length, and with room for more targets."""
  expected = [_brute_force(decoder, forward, example) for example in EXAMPLES]
  for length, num_rows, num_targets in ((16, 4, 9), (24, 8, 23), (16, 5, 15)):
    loss_B = loss(batches.pad(EXAMPLES, length, num_rows), num_targets)
    np.testing.assert_allclose(loss_B[:4], expected, rtol=1e-5, atol=1e-5)
    assert np.all(loss_B[4:] == 0)


def test_number_of_targets_holds_the_longest_response():
  assert batches.num_targets(EXAMPLES, 16) == 15
  assert batches.num_targets(EXAMPLES, 64) == 16
  assert batches.num_targets([_example(1, 17)], 64) == 32
