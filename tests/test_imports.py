"""The map's arrows hold: who may import whom, and what may never be loaded."""

import ast
import pathlib
import subprocess
import sys

from places import REPOSITORY
import pytest

PACKAGE = REPOSITORY / 'edsft_jax'
STAGES = (
  'pool',
  'scoring',
  'strategies',
  'annotation',
  'finetuning',
  'evaluation',
  'reporting',
)
SERVES_ALL = {'artifacts', 'console', 'errors', 'processes'}
MAY_IMPORT = {
  'errors': set(),
  'processes': {'errors'},
  'console': {'processes'},
  'artifacts': {'errors'},
  'mesh': {'errors'},
  'models': {'mesh', *SERVES_ALL},
  'study': SERVES_ALL,
  'selection': set(),
  **{stage: {'study', 'models', 'mesh', *SERVES_ALL} for stage in STAGES},
  'preview': {'models', *SERVES_ALL},
  'main': {*STAGES, 'preview', *SERVES_ALL},
}
for _stage in ('strategies', 'reporting'):
  MAY_IMPORT[_stage] = MAY_IMPORT[_stage] | {'selection'}

FILES = sorted(p for p in PACKAGE.rglob('*.py') if p != PACKAGE / '__init__.py')


def _part(path: pathlib.Path) -> str:
  """Which part of the house a file belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def _imported(path: pathlib.Path) -> set[str]:
  """Dotted names that a file imports, wherever in the file it does."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
  part = _part(path)
  assert part in MAY_IMPORT, f'{part} is not on the map'
  ours = {
    name.split('.')[1]
    for name in _imported(path)
    if name.startswith('edsft_jax.')
  }
  assert ours - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_torch_and_no_tensorflow(path):
  roots = {name.split('.')[0] for name in _imported(path)}
  assert not roots & {'torch', 'tensorflow'}


def test_selection_stands_apart():
  """Importing the library loads nothing else of ours, and no model code."""
  code = (
    'import sys; from edsft_jax import selection; '
    "print([m for m in sys.modules if m.startswith('edsft_jax.') "
    "and not m.startswith('edsft_jax.selection')] + "
    "[m for m in ('flax', 'transformers', 'pyarrow') if m in sys.modules])"
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == '[]'


def test_the_command_loads_no_torch_and_no_tensorflow():
  code = (
    'import sys; import edsft_jax.main; '
    "print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == '[]'
