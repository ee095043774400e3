"""Tiny checkpoints with what transformers computes, loaded once."""

import dataclasses
import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import models
from edsft_jax.mesh import make_mesh

GOLDENS = pathlib.Path(__file__).parent / 'models' / 'goldens'
CASES = (
  'tied_v4',
  'biases_v5',
  'linear_v4',
  'llama3_v5',
  'mistral_v4',
  'qwen2_v4',
  'qwen3_v5',
  'olmo2_v5',
  'gemma2_v4',
  'gemma3_v4',
  'olmo3_v5',
  'smollm3_v5',
  'exaone4_v4',
  'phi3_v4',
  'phi3_v5',
  'granite_v5',
  'ministral_v5',
  'seed_oss_v5',
  'yarn_v5',
  'dynamic_v4',
  'dynamic_v5',
)


@dataclasses.dataclass(frozen=True)
class Golden:
  """A tiny checkpoint and what transformers computes from it."""

  path: pathlib.Path
  decoder: models.Decoder
  values: dict[str, np.ndarray]

  @property
  def tolerance(self) -> float:
    """Of a logit: 1e-4 of their spread."""
    return 1e-4 * float(np.ptp(self.values['logits']))


@pytest.fixture(scope='session')
def one_device() -> jax.sharding.Mesh:
  return make_mesh(1, 1, 1, devices=jax.devices()[:1])


class Goldens(dict[str, Golden]):
  """Loads each when it is first asked for."""

  def __init__(self, mesh: jax.sharding.Mesh):
    self.mesh = mesh

  def __missing__(self, case: str) -> Golden:
    path = GOLDENS / case
    with np.load(path / 'golden.npz') as values:
      decoder = models.load_decoder(path, 'float32', self.mesh)
      self[case] = Golden(path, decoder, dict(values))
    return self[case]


@pytest.fixture(scope='session')
def goldens(one_device) -> Goldens:
  return Goldens(one_device)


@pytest.fixture(scope='session')
def goldens_path() -> pathlib.Path:
  return GOLDENS


@pytest.fixture(params=CASES)
def golden(request, goldens) -> Golden:
  return goldens[request.param]


@pytest.fixture(scope='session')
def forward():
  """(decoder, tokens, mask, layer) -> logits and features, compiled once for
  each graph and shape."""

  def traced(graphdef, layer, state, tokens, mask):
    decoder = nnx.merge(graphdef, state)
    output = decoder(tokens, mask, layer=layer)
    return decoder.logits(output.hidden_BxLxD), output.features_BxLxD

  compiled = jax.jit(traced, static_argnums=(0, 1))

  def call(decoder: models.Decoder, tokens, mask=None, layer: int = -1):
    graphdef, state = nnx.split(decoder)
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return compiled(graphdef, layer, state, tokens, mask)

  return call
