"""Measures a run: tokens per second, share of the peak, memory in use."""

from collections.abc import Callable, Sequence
import pathlib
import time

import jax

from edsft_jax import models
from edsft_jax.inference.throughput import PEAKS, Costs
from edsft_jax.models.responses import Example

# Passes that cost as much as the forward pass: that one, the gradients of
# activations and, unless the base weights are frozen, those of weights.
_PASSES = {'lora': 2, 'full': 3}


class Meter:
  """Speed between two lines of a cell's log."""

  def __init__(
    self,
    config: models.DecoderConfig,
    method: str,
    mesh: jax.sharding.Mesh,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts at zero tokens.

    Args:
      config: the model's config.
      method: 'lora' or 'full'.
      mesh: the mesh of the weights.
      clock: see `train_loop.Watchers`.
    """
    self._clock = clock
    self._costs = Costs(config, item_bytes=4)
    self._passes = _PASSES[method]
    self._devices = mesh.devices.ravel().tolist()
    self.restart()

  def restart(self) -> None:
    """Starts again at zero tokens."""
    self._start = self._clock()
    self._tokens = 0
    self._flops = 0.0

  def add(self, examples: Sequence[Example]) -> None:
    """Adds a step's examples; only real tokens count."""
    for example in examples:
      length = len(example.tokens)
      self._tokens += length
      forward = self._costs.flops(0, length, example.num_response)
      self._flops += self._passes * forward

  def take(self) -> dict[str, float]:
    """tokens_per_second, utilization and memory_gib since the last call.

    utilization is the share of the devices' peak in bfloat16; it is left out if
    the peak is unknown, and memory_gib if the memory in use is.
    """
    seconds = self._clock() - self._start
    result = {'tokens_per_second': round(self._tokens / seconds, 1)}
    peak = PEAKS.get(self._devices[0].device_kind)
    if peak is not None:
      available = len(self._devices) * peak[0] * seconds
      result['utilization'] = round(self._flops / available, 4)
    if memory := _memory_in_use(self._devices):
      result['memory_gib'] = round(memory / 2**30, 2)
    self.restart()
    return result


def _memory_in_use(devices: Sequence[jax.Device]) -> int:
  """Bytes in use on the fullest device, or by this process on a CPU.

  0 if it is unknown. Devices of other processes are not counted.
  """
  own = [d for d in devices if d.process_index == jax.process_index()]
  stats = [device.memory_stats() for device in own]
  in_use = [s['bytes_in_use'] for s in stats if s and 'bytes_in_use' in s]
  if in_use:
    return max(in_use)
  try:
    pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  except OSError:  # Not on Linux.
    return 0
  import resource

  return int(pages) * resource.getpagesize()
