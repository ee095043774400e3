"""How much memory a selection may use when the caller does not say."""

import os
from typing import Any

import jax

from edsft_jax.selection import checks

# Of what is free: a host has other tenants, an accelerator is ours.
_HOST_FRACTION = 1 / 6
_ACCELERATOR_FRACTION = 1 / 2


def limit(value: Any, mesh: jax.sharding.Mesh) -> int:
  """Returns the bytes to use: the caller's, or a fraction of what is free."""
  if value is not None:
    return checks.integer('memory_limit', value)
  devices = mesh.devices.flatten()
  if devices[0].platform == 'cpu':
    return int(free_on_host() * _HOST_FRACTION)
  free = 0
  for device in devices:
    stats = device.memory_stats() or {}
    free += stats.get('bytes_limit', 2**32) - stats.get('bytes_in_use', 0)
  return int(free * _ACCELERATOR_FRACTION)


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
