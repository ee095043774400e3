"""How programs of tests are compiled: quickly, since most of them run once.

scripts/test_slow.sh compiles as users do.
"""

import importlib.metadata
import os

from places import REPOSITORY

OPTIMIZED = os.environ.get('JAX_DISABLE_MOST_OPTIMIZATIONS') == '0'


def xla_flags(num_devices: int) -> str:
  """XLA_FLAGS for fake CPU devices."""
  flags = [f'--xla_force_host_platform_device_count={num_devices}']
  if not OPTIMIZED:
    flags.append('--xla_cpu_parallel_codegen_split_count=1')
    # Half of the time; later versions of XLA do not know it.
    if importlib.metadata.version('jaxlib').startswith('0.10.'):
      flags.append('--xla_cpu_use_fusion_emitters=false')
  return ' '.join(flags)


def environment(num_devices: int) -> dict[str, str]:
  """What jax has to find in the environment when it is imported."""
  return {
    'XLA_FLAGS': xla_flags(num_devices),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '0' if OPTIMIZED else '1',
    # Many tests run the same programs, and so do the commands they start: each
    # is compiled once.
    'JAX_COMPILATION_CACHE_DIR': str(REPOSITORY / '.pytest_cache' / 'jax'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
