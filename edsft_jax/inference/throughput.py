"""Hardware utilisation, estimated from operation counts.

Only operations on real tokens count, so padding, empty slots and repeated work
lower the utilisation.
"""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any, NamedTuple

import jax

from edsft_jax import models

# Device kind -> dense bfloat16 FLOP/s and memory bytes/s, from data sheets.
PEAKS = {
  'NVIDIA A100-SXM4-40GB': (312e12, 1.555e12),
  'NVIDIA A100-SXM4-80GB': (312e12, 2.039e12),
  'NVIDIA H100 80GB HBM3': (989e12, 3.35e12),
  'NVIDIA H200': (989e12, 4.8e12),
  'TPU v4': (275e12, 1.228e12),
  'TPU v5 lite': (197e12, 0.819e12),
  'TPU v5': (459e12, 2.765e12),
  'TPU v6 lite': (918e12, 1.64e12),
}


class Span(NamedTuple):
  """Tokens of a row that are read together.

  Attributes:
    first: position of the first one.
    end: position after the last one.
    num_scored: how many of them have logits.
  """

  first: int
  end: int
  num_scored: int


@dataclasses.dataclass(frozen=True)
class Work:
  """Amounts of work done; can be added.

  Attributes:
    prompts: prompts finished.
    tokens: tokens read and generated.
    flops: multiplications and additions of matrix products.
    bytes: bytes of weights, keys and values read from memory.
  """

  prompts: int = 0
  tokens: int = 0
  flops: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: 'Work') -> 'Work':
    return Work(
      self.prompts + other.prompts,
      self.tokens + other.tokens,
      self.flops + other.flops,
      self.bytes + other.bytes,
    )


@dataclasses.dataclass(frozen=True)
class Costs:
  """Operations and memory traffic of a model's tokens and steps.

  Attributes:
    config: the model's config.
    item_bytes: bytes per element of the weights.
    num_copies: copies of the weights, each read by its own devices.
    cache_item_bytes: bytes per element of the cache; 0: as of the weights.
  """

  config: models.DecoderConfig
  item_bytes: int
  num_copies: int = 1
  cache_item_bytes: int = 0

  @classmethod
  def of(cls, decoder: models.Decoder, num_copies: int = 1) -> 'Costs':
    """Those of a decoder, by its dtypes."""
    return cls(
      decoder.config,
      decoder.dtype.itemsize,
      num_copies,
      decoder.activation_dtype.itemsize,
    )

  @property
  def num_layer_weights(self) -> int:
    """Number of weights that every token is multiplied with."""
    c = self.config
    heads = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim
    return c.num_layers * c.width * (heads + 3 * c.mlp_width)

  @property
  def num_output_weights(self) -> int:
    """Number of weights of the output layer, for tokens with logits."""
    return self.config.width * self.config.vocab_size

  @property
  def key_share(self) -> float:
    """Operations to attend to one more key, as a share of a token's others."""
    c = self.config
    attention = 4 * c.num_layers * c.num_heads * c.head_dim
    return attention / (2 * self.num_layer_weights)

  def flops(self, first: int, end: int, num_scored: int) -> float:
    """Operations for a row's tokens, given as in `Span`."""
    c = self.config
    num = end - first
    # Each token attends to itself and all before it, in two products.
    pairs = num * (first + end + 1) / 2
    attention = 4 * c.num_layers * c.num_heads * c.head_dim * pairs
    multiplied = (
      num * self.num_layer_weights + num_scored * self.num_output_weights
    )
    return 2 * multiplied + attention

  def read_bytes(self, scored: bool = True) -> float:
    """Bytes read in one pass over prompts, with logits or without."""
    weights = self.num_layer_weights + scored * self.num_output_weights
    return float(self.num_copies * weights * self.item_bytes)

  def step_bytes(self, num_slots: int, cache_length: int) -> float:
    """Bytes read in one decode step."""
    c = self.config
    entries = num_slots * cache_length
    cache = 2 * c.num_layers * c.num_kv_heads * c.head_dim * entries
    item_bytes = self.cache_item_bytes or self.item_bytes
    return self.read_bytes() + float(cache * item_bytes)


def describe(work: Work, seconds: float, devices: Sequence[jax.Device]) -> str:
  """Text with tokens per second and, on known devices, utilisation."""
  text = f'{work.tokens / seconds:,.0f} tokens/s'
  peak = PEAKS.get(devices[0].device_kind)
  if peak is None:
    return text
  flops, memory = (len(devices) * x * seconds for x in peak)
  return (
    f'{text}, {work.flops / flops:.0%} of peak FLOP/s, '
    f'{work.bytes / memory:.0%} of bandwidth'
  )


class Rate:
  """A progress callback that shows throughput and utilisation on a bar.

  Attributes:
    work: the work done so far.
  """

  def __init__(self, bar: Any, mesh: jax.sharding.Mesh):
    """Starts the clock.

    Args:
      bar: a tqdm bar over prompts.
      mesh: the devices in use.
    """
    self.work = Work()
    self._bar = bar
    self._devices = mesh.devices.ravel().tolist()
    self._start = time.monotonic()

  def __call__(self, work: Work) -> None:
    """Adds the work done since the last call."""
    self.work += work
    seconds = time.monotonic() - self._start
    self._bar.set_postfix_str(
      describe(self.work, seconds, self._devices), refresh=False
    )
    self._bar.update(work.prompts)

  def rewind(self, work: Work) -> None:
    """Goes back to an earlier state, before work that will be redone."""
    self._bar.update(work.prompts - self.work.prompts)
    self.work = work
