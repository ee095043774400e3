"""Every option: explained where it stands, and settable from a command line."""

import ast
import pathlib

from absl import flags
from ml_collections import config_flags
from places import REPOSITORY
import pytest

from configs import default
from edsft_jax.config import option_names

OPTIONS = option_names(default.get_config())
CONFIGS = sorted(
  p for p in (REPOSITORY / 'configs').glob('*.py') if p.name != '__init__.py'
)


def _parse(path: pathlib.Path, *words: str):
  values = flags.FlagValues()
  argv = ['command', f'--config={path}', *words]
  config = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  values(argv)
  return config.value


def _get(config, option):
  for name in option.split('.'):
    config = config[name]
  return config


def _other(value):
  """A different value of the same type, and how a command line spells it."""
  if isinstance(value, bool):
    return not value, str(not value)
  if isinstance(value, tuple):
    other = (*value[:1], *value[:1]) if value else (7, 9)
    return other, repr(other)
  if isinstance(value, str):
    return f'{value}x', f'{value}x'
  return value + 3, str(value + 3)


@pytest.mark.parametrize('option', OPTIONS)
def test_option_can_be_set_from_the_command_line(option):
  before = _get(default.get_config(), option)
  other, word = _other(before)
  config = _parse(CONFIGS[0], f'--config.{option}={word}')
  got = _get(config, option)
  assert got == other
  assert type(got) is type(before)


@pytest.mark.parametrize('option', OPTIONS)
def test_no_option_is_none(option):
  assert _get(default.get_config(), option) is not None


def test_every_option_is_explained_above_its_line():
  """A comment may serve a few options that stand right below one another."""
  source = REPOSITORY / 'edsft_jax' / 'config.py'
  lines = source.read_text().splitlines()
  before = ''
  for line in (line.strip() for line in lines):
    if line.startswith('c.') and ' = ' in line and 'ConfigDict' not in line:
      assert before.startswith(('#', 'c.')), line
      assert not before.endswith('ConfigDict()'), line
    before = line


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.name)
def test_config_is_locked_and_tells_its_command(path):
  config = _parse(path)
  assert config.is_locked
  assert option_names(config) == OPTIONS
  assert f'--config=configs/{path.name}' in ast.get_docstring(
    ast.parse(path.read_text())
  )


def test_tuple_options_take_one_number():
  assert _parse(CONFIGS[0], '--config.study.budgets=7').study.budgets == (7,)
