"""Eight fake devices for every test, and the way to the real data."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder with real prompts and small pretrained models, if there."""
  default = REPOSITORY.parent / 'shared'
  path = pathlib.Path(os.environ.get('EDSFT_SHARED', default))
  if not (path / 'data').is_dir():
    pytest.skip(f'no data folder at {path} (EDSFT_SHARED)')
  return path
