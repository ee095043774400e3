"""Operations and bytes, against what the compiler counts."""

from flax import nnx
import jax
import numpy as np
from places import REPOSITORY
import pytest

from edsft_jax import inference, models
from edsft_jax.inference import throughput
from edsft_jax.mesh import make_mesh


@pytest.fixture(scope='module')
def decoder():
  one = make_mesh(1, 1, 1, devices=jax.devices()[:1])
  golden = REPOSITORY / 'tests' / 'models' / 'goldens' / 'mistral_v4'
  return models.load_decoder(golden, 'float32', one)


def test_operations_are_those_that_the_compiler_counts(decoder):
  """Of a pass over two rows; the compiler adds norms and the like."""
  graph, state = nnx.split(decoder)
  length = 32

  @jax.jit
  def run(state, tokens, mask):
    merged = nnx.merge(graph, state)
    return merged.logits(merged(tokens, mask).hidden_BxLxD)

  tokens, mask = inference.pad_left([np.full(length, 5)] * 2, length)
  counted = run.lower(state, tokens, mask).compile().cost_analysis()['flops']
  costs = throughput.Costs(decoder.config, 4)
  # The program multiplies tokens with those behind them too.
  pairs = length * length - length * (length + 1) // 2
  c = decoder.config
  masked = 4 * c.num_layers * c.num_heads * c.head_dim * pairs
  assert 0.75 < 2 * (costs.flops(0, length, length) + masked) / counted < 1.0
  apart = costs.flops(0, 20, 20) + costs.flops(20, length, length - 20)
  assert costs.flops(0, length, length) == pytest.approx(apart)
  sizes = [x.size for x in jax.tree.leaves(state)]
  assert costs.read_bytes() == pytest.approx(4 * sum(sizes), rel=0.35)
  cache = decoder.init_cache(3, 50)
  stored = sum(x.nbytes for x in (*cache.keys, *cache.values))
  assert costs.step_bytes(3, 50) - costs.read_bytes() == stored


def test_shares_of_the_peak_are_shown_where_it_is_known():
  class Known:
    device_kind = 'TPU v4'

  work = throughput.Work(tokens=3000, flops=275e12, bytes=0.3 * 1.228e12)
  assert throughput.describe(work, 2.0, [Known(), Known()]) == (
    '1,500 tokens/s, 25% of peak FLOP/s, 8% of bandwidth'
  )
  assert throughput.describe(work, 2.0, jax.devices()[:1]) == '1,500 tokens/s'
