"""How much memory a selection may use by default."""

from collections.abc import Callable
import os

import jax
import numpy as np

from edsft_jax.selection import checks

# Fractions of what is free: other programs share the host's memory, but not an
# accelerator's.
_HOST_FRACTION = 1 / 6
# Keeps 100,000 rows below 4 GiB in all, on any host.
_MOST_ON_HOST = 5 * 2**29
_ACCELERATOR_FRACTION = 1 / 2


def limit(
  value: int | None,
  mesh: jax.sharding.Mesh,
  free_on_host: Callable[[], int] | None = None,
) -> int:
  """Returns the bytes to use: the caller's, or a fraction of what is free.

  Args:
    value: the caller's limit; None: a fraction of what is free.
    mesh: the devices to use.
    free_on_host: returns the free bytes; None: asks the operating system.
  """
  if value is not None:
    return checks.integer('memory_limit', value)
  devices = mesh.devices.flatten()
  if devices[0].platform == 'cpu':
    free = (free_on_host or _free_on_host)()
    own = min(int(free * _HOST_FRACTION), _MOST_ON_HOST)
  else:
    free = 0
    for device in mesh.local_devices:
      stats = device.memory_stats() or {}
      free += stats.get('bytes_limit', 2**32) - stats.get('bytes_in_use', 0)
    share = len(devices) / max(len(mesh.local_devices), 1)
    own = int(free * share * _ACCELERATOR_FRACTION)
  if len(mesh.local_devices) == len(devices):
    return own
  # All processes have to make the same decisions.
  from jax.experimental import multihost_utils

  mebibytes = multihost_utils.process_allgather(np.int32(own // 2**20))
  return int(mebibytes.min()) * 2**20


def _free_on_host() -> int:
  """Returns how many bytes can be allocated without swapping."""
  try:
    with open('/proc/meminfo') as lines:
      for line in lines:
        if line.startswith('MemAvailable:'):
          return int(line.split()[1]) * 1024
  except OSError:
    pass
  # Without /proc/meminfo: assume that half of the memory is free.
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2
