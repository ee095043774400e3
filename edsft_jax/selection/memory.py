"""How much memory a selection may use when the caller does not say."""

import os
from typing import Any

import jax
import numpy as np

from edsft_jax.selection import checks

# Of what is free: a host has other tenants, an accelerator is ours.
_HOST_FRACTION = 1 / 6
# 100,000 rows then stay below 4 GiB in all, on any host.
_MOST_ON_HOST = 5 * 2**29
_ACCELERATOR_FRACTION = 1 / 2


def limit(value: Any, mesh: jax.sharding.Mesh) -> int:
  """Returns the bytes to use: the caller's, or a fraction of what is free."""
  if value is not None:
    return checks.integer('memory_limit', value)
  devices = mesh.devices.flatten()
  if devices[0].platform == 'cpu':
    own = min(int(free_on_host() * _HOST_FRACTION), _MOST_ON_HOST)
  else:
    free = 0
    for device in mesh.local_devices:
      stats = device.memory_stats() or {}
      free += stats.get('bytes_limit', 2**32) - stats.get('bytes_in_use', 0)
    share = len(devices) / max(len(mesh.local_devices), 1)
    own = int(free * share * _ACCELERATOR_FRACTION)
  if len(mesh.local_devices) == len(devices):
    return own
  # All processes have to take the same way.
  from jax.experimental import multihost_utils

  mebibytes = multihost_utils.process_allgather(np.int32(own // 2**20))
  return int(mebibytes.min()) * 2**20


def free_on_host() -> int:
  """Returns bytes that new work can have without swapping."""
  try:
    with open('/proc/meminfo') as lines:
      for line in lines:
        if line.startswith('MemAvailable:'):
          return int(line.split()[1]) * 1024
  except OSError:
    pass
  # Where the kernel does not say: half of what is built in.
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2
