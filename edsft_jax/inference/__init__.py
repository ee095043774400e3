"""The inference engine: continuous batching, greedy decoding, likelihoods.

Scoring and evaluation both use `Engine`; hooks compute token statistics per row
on the device.
"""

from edsft_jax.inference.choices import choose_prefix, choose_shapes
from edsft_jax.inference.collect import Generations, Progress
from edsft_jax.inference.decoding import (
  DecodeState,
  Generation,
  GreedyDecoding,
  argmax,
  generate,
)
from edsft_jax.inference.engine import Engine
from edsft_jax.inference.generation import GenerationEngine
from edsft_jax.inference.likelihood import (
  LikelihoodEngine,
  Likelihoods,
  Target,
  rolling_targets,
)
from edsft_jax.inference.logits import map_tokens, target_likelihood
from edsft_jax.inference.programs import Hooks
from edsft_jax.inference.shapes import (
  BatchSizes,
  ShapeOptions,
  Shapes,
  pad_left,
)
from edsft_jax.inference.slots import Stop
from edsft_jax.inference.throughput import Work

__all__ = [
  'BatchSizes',
  'DecodeState',
  'Engine',
  'Generation',
  'GenerationEngine',
  'Generations',
  'GreedyDecoding',
  'Hooks',
  'LikelihoodEngine',
  'Likelihoods',
  'Progress',
  'ShapeOptions',
  'Shapes',
  'Stop',
  'Target',
  'Work',
  'argmax',
  'choose_prefix',
  'choose_shapes',
  'generate',
  'map_tokens',
  'pad_left',
  'rolling_targets',
  'target_likelihood',
]
