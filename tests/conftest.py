"""Eight fake devices, one compile cache, and the way to the real data."""

from collections.abc import Iterator
import gc
import os
import pathlib

import compilation

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ |= compilation.environment(num_devices=8)

# Commands of tests would start twice to set it.
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')

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
import tiny_study

# Collecting garbage takes a fifth of the time if done as often as by default,
# since jax keeps many objects and clears its caches each time.
gc.set_threshold(100_000, 20, 100)

# Of all files, those that take longest.
LONGEST = (
  'test_decoder',
  'test_demo_study',
  'test_interruptions',
  'test_finetune_stage',
  'test_recipe',
  'test_report',
  'test_several_processes',
  'test_processes',
  'test_facility_location',
  'test_stage',
  'test_main',
  'test_trainer',
  'test_own_study',
  'test_evaluate_stage',
  'test_scorer',
  'test_parts',
  'test_k_center',
  'test_selection_devices',
  'test_decoding',
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


@pytest.fixture(scope='module', autouse=True)
def frozen_heap() -> Iterator[None]:
  """What is left after a file is not searched for garbage again.

  The stages collect it often, which takes a second with the objects of many
  files.
  """
  yield
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='module')
def on_one_device() -> Iterator[None]:
  """Stages use one device, which compiles faster than eight."""
  with tiny_study.on_one_device():
    yield
