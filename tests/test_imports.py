"""The map's arrows hold: who may import whom, and what may never be loaded."""

import ast
import graphlib
import html
import pathlib

from places import REPOSITORY, python_output, script_module
import pytest

from edsft_jax import pipeline
from edsft_jax.strategies import registry

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
SERVES_ALL = {'console', 'errors', 'interrupts', 'processes', 'store'}
BELOW_STAGES = {
  'parts',
  'study',
  'registry',
  'inference',
  'models',
  'mesh',
  'out_of_memory',
  'prices',
  'tables',
  *SERVES_ALL,
}
# Part of the package -> what it may import, besides itself.
MAY_IMPORT = {
  'config': set(),
  'errors': set(),
  'huge_pages': set(),
  'interrupts': set(),
  'processes': {'errors'},
  'console': {'processes'},
  'store': {'errors', 'processes'},
  'tables': {'errors', 'store'},
  'mesh': {'errors', 'processes'},
  'out_of_memory': {'processes'},
  'models': {'mesh', *SERVES_ALL},
  'inference': {'models', 'mesh', *SERVES_ALL},
  # What strategies there are: the one part of a stage that others may read.
  'registry': set(),
  'prices': set(),
  'study': {'config', 'registry', *SERVES_ALL},
  'parts': {'study', *SERVES_ALL},
  'selection': set(),
  **{stage: BELOW_STAGES for stage in STAGES},
  'preview': {'models', 'registry', 'study', *SERVES_ALL},
  'plan': {
    'finetuning',
    'mesh',
    'models',
    'parts',
    'prices',
    'registry',
    'reporting',
    'scoring',
    'selection',
    'strategies',
    'study',
    *SERVES_ALL,
  },
  'verify': {'evaluation', 'reporting', 'strategies', 'study', *SERVES_ALL},
  # Stages are named in its table, and imported when their turn comes.
  'pipeline': {'config', 'study', *SERVES_ALL},
  'main': {'config', 'huge_pages', 'pipeline', 'study', *SERVES_ALL},
}
for _stage in ('strategies', 'reporting'):
  MAY_IMPORT[_stage] = MAY_IMPORT[_stage] | {'selection'}

# What a chooser of the registry imports when it is called.
WHEN_CALLED = {'registry': {'selection', 'strategies'}}

FILES = sorted(p for p in PACKAGE.rglob('*.py') if p != PACKAGE / '__init__.py')


def _part(module: str) -> str:
  """Which part of the package a module, or a name in one, belongs to."""
  if module.startswith('edsft_jax.strategies.registry'):
    return 'registry'
  return module.split('.')[1]


def _module(path: pathlib.Path) -> str:
  names = path.relative_to(REPOSITORY).with_suffix('').parts
  return '.'.join(names).removesuffix('.__init__')


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
  part = _part(_module(path))
  assert part in MAY_IMPORT, f'{part} is not on the map'
  ours = {
    _part(name) for name in _imported(path) if name.startswith('edsft_jax.')
  }
  assert ours - {part} <= MAY_IMPORT[part] | WHEN_CALLED.get(part, set())


def test_the_picture_of_the_imports_is_of_this_code():
  """Drawn again where a part imports another one than before."""
  module = script_module('draw_imports')
  found = module.imports()
  assert set(module.places(found)) == {*found}
  picture = (REPOSITORY / 'docs' / 'imports.svg').read_text('utf-8')
  words = html.escape(module.listing(found), quote=False)
  assert words in picture, 'run python scripts/draw_imports.py'


def test_the_map_has_no_cycle():
  """Each part can be put above all that it may import."""
  order = graphlib.TopologicalSorter(MAY_IMPORT).static_order()
  assert set(order) == set(MAY_IMPORT)


def test_every_stage_lies_in_its_package():
  for stage in pipeline.STAGES.values():
    assert stage.module.endswith('.stage')
    assert {'check', 'run'} <= set(dir(stage.load()))


def test_every_row_is_named_once():
  names = [row.name for row in registry.STRATEGIES.values()]
  assert len(set(names)) == len(names)
  assert list(registry.STRATEGIES) == names


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_torch_and_no_tensorflow(path):
  roots = {name.split('.')[0] for name in _imported(path)}
  assert not roots & {'torch', 'tensorflow'}


def _loaded(code: str, *names: str) -> list[str]:
  """Which of these modules a program has loaded at its end."""
  code = f'{code}; import sys; print([m for m in {names} if m in sys.modules])'
  return ast.literal_eval(python_output('-c', code).splitlines()[-1])


def test_selection_stands_apart():
  """Importing the library loads nothing else of ours, and no model code."""
  others = [f'edsft_jax.{part}' for part in MAY_IMPORT if part != 'selection']
  code = 'from edsft_jax import selection'
  assert _loaded(code, *others, 'flax', 'transformers', 'pyarrow') == []


HEAVY = ('jax', 'transformers', 'orbax', 'tensorboardX', 'torch', 'tensorflow')


@pytest.mark.parametrize(
  'code',
  [
    'import edsft_jax.main',
    'from edsft_jax.strategies import registry',
    'from edsft_jax import pipeline; pipeline.STAGES["pool"].load()',
    'from edsft_jax import pipeline; pipeline.STAGES["annotate"].load()',
  ],
)
def test_what_answers_at_once_loads_nothing_heavy(code):
  assert _loaded(code, *HEAVY) == []


def test_no_stage_loads_torch_or_tensorflow():
  """Nor transformers, which only some tokenizers need."""
  code = (
    'from edsft_jax import pipeline; '
    '[stage.load() for stage in pipeline.COMMANDS.values()]'
  )
  assert _loaded(code, *HEAVY) == ['jax', 'orbax']
