"""Where things are, for tests that run or read scripts and source."""

import importlib.util
import pathlib
import sys
import types

REPOSITORY = pathlib.Path(__file__).parents[1]


def script_module(name: str) -> types.ModuleType:
  """A script of the repository, imported; it may import others next to it."""
  path = REPOSITORY / 'scripts' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(path.parent))
  try:
    spec.loader.exec_module(module)
  finally:
    sys.path.remove(str(path.parent))
  return module
