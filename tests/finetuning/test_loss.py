"""The loss of a response, against log-softmax written out in numpy."""

import functools

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

  @functools.partial(jax.jit, static_argnames='most_logits')
  def traced(params, batch, most_logits):
    merged = nnx.merge(graph, params)
    return loss_lib.loss(merged, batch, most_logits=most_logits)

  return lambda batch, most_logits: float(traced(params, batch, most_logits))


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


@pytest.mark.parametrize(
  ('rows', 'shape', 'groups', 'chunk'),
  [
    ([[0], [1], [2], [3]], (4, 16), 1, 64),
    ([[0], [1], [2], [3]], (8, 24), 4, 5),
    ([[2, 0], [1, 3]], (2, 24), 2, 7),
    ([[3, 1, 0, 2]], (1, 40), 1, 1),
  ],
)
def test_loss_is_that_of_the_responses_alone(
  decoder, forward, loss, rows, shape, groups, chunk
):
  """On any padding and packing, and in chunks of any size."""
  expected = sum(_brute_force(decoder, forward, e) for e in EXAMPLES)
  packed = [[EXAMPLES[i] for i in row] for row in rows]
  batch = batches.fill(packed, shape, groups)
  most_logits = chunk * groups * decoder.config.vocab_size
  np.testing.assert_allclose(loss(batch, most_logits), expected, rtol=1e-5)


def test_the_first_token_is_never_a_target(decoder, loss):
  """Even without a prompt, since no token predicts it."""
  example = Example([5, 6, 7, 8], 4, False, False)
  shorter = example._replace(num_response=3)
  one, other = (
    loss(batches.fill([[EXAMPLES[0], e]], (1, 16), 1), 1000)
    for e in (example, shorter)
  )
  assert one == other
