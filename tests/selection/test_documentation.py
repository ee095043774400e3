"""Examples run, array names keep to the legend, and nothing is too long."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

from edsft_jax import selection

MODULES = [
  importlib.import_module(f'edsft_jax.selection.{module.name}')
  for module in pkgutil.iter_modules(selection.__path__)
]
PUBLIC = [
  getattr(selection, name)
  for name in selection.__all__
  if inspect.isfunction(getattr(selection, name))
]
README = (MODULES[0].__file__.rsplit('/', 1)[0]) + '/README.md'


@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_examples(module):
  assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
  'thing',
  [*PUBLIC, selection.Selection.upper_bound_at],
  ids=lambda thing: thing.__name__,
)
def test_public_functions_have_an_example(thing):
  assert '>>> ' in thing.__doc__


def test_array_names_keep_to_the_legend():
  with open(README, encoding='utf-8') as file:
    letters = set(re.findall(r'^\| `([A-Z])` \|', file.read(), re.MULTILINE))
  used = set()
  for module in MODULES:
    names = {
      node.id if isinstance(node, ast.Name) else node.arg
      for node in ast.walk(ast.parse(inspect.getsource(module)))
      if isinstance(node, ast.Name | ast.arg)
    }
    for name in names:
      if match := re.search(r'[a-z0-9]_([A-Z0-9](x[A-Z0-9])*)$', name):
        used |= set(match[1].split('x'))
  assert used - {'1', '2'} == letters
