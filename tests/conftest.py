"""Eight fake devices, one compile cache, and the way to the real data."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

# Most programs run once: quick compilation is worth more than quick programs.
# scripts/test_slow.sh compiles as users do, and so does tests/selection.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

# No test asks the hub for a model.
os.environ['HF_HUB_OFFLINE'] = '1'

# After the environment is set: it imports jax and the hub's library.
from golden_models import (  # noqa: F401
  forward,
  golden,
  goldens,
  goldens_path,
  one_device,
)
from places import REPOSITORY
import pytest

# Many tests run the same programs, and so do the commands they start: each is
# compiled once.
os.environ |= {
  'JAX_COMPILATION_CACHE_DIR': str(REPOSITORY / '.pytest_cache' / 'jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}

# Of all files, those that take longest.
LONGEST = (
  'test_decoder',
  'test_facility_location',
  'test_demo_study',
  'test_own_study',
  'test_selection_devices',
  'test_k_center',
  'test_decoding',
  'test_scorer',
  'test_processes',
  'test_stage',
  'test_finetune_stage',
  'test_evaluate_stage',
  'test_trainer',
  'test_main',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts them first, so that no process waits for another at the end."""
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder with real prompts and small pretrained models, if there."""
  default = REPOSITORY.parent / 'shared'
  path = pathlib.Path(os.environ.get('EDSFT_SHARED', default))
  if not (path / 'data').is_dir():
    pytest.skip(f'no data folder at {path} (EDSFT_SHARED)')
  return path
