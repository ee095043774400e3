"""Where things are, for tests that run or read scripts and source."""

import importlib.util
import pathlib
import subprocess
import sys
import types

REPOSITORY = pathlib.Path(__file__).parents[1]


def run(
  *command: str | pathlib.Path, cwd: pathlib.Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
  """Runs a command, whatever its exit code."""
  return subprocess.run(
    command, cwd=cwd, capture_output=True, text=True, check=False
  )


def run_python(
  *words: str | pathlib.Path, cwd: pathlib.Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
  """Runs Python with these arguments, whatever its exit code."""
  return run(sys.executable, *words, cwd=cwd)


def python_output(*words: str | pathlib.Path) -> str:
  """Python's output with these arguments; its exit code must be 0."""
  done = run_python(*words)
  assert done.returncode == 0, done.stderr
  return done.stdout


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
