"""requirements.txt pins, pyproject.toml ranges: one list of packages."""

import itertools
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import REPOSITORY

import edsft_jax


def _pins():
  lines = (REPOSITORY / 'requirements.txt').read_text().splitlines()
  return [
    Requirement(line) for line in lines if line and not line.startswith('#')
  ]


def _ranges():
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
  return [Requirement(r) for r in project['project']['dependencies']]


def _key(requirement):
  marker = str(requirement.marker) if requirement.marker else ''
  return canonicalize_name(requirement.name), marker.replace("'", '"')


def test_every_pin_lies_in_its_range_and_none_is_missing():
  ranges = {_key(r): r.specifier for r in _ranges()}
  pins = {_key(p): p.specifier for p in _pins()}
  assert ranges.keys() == pins.keys()
  for key, pin in pins.items():
    (exact,) = pin
    assert exact.operator == '=='
    assert ranges[key].contains(exact.version), key


def test_every_pin_says_why_it_is_there():
  lines = (REPOSITORY / 'requirements.txt').read_text().splitlines()
  for before, line in itertools.pairwise(lines):
    if line and not line.startswith('#') and 'python_version >=' not in line:
      assert before.startswith('#'), line


def test_commits_are_checked_with_the_ruff_of_the_tests():
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
  extras = project['project']['optional-dependencies']['test']
  (ruff,) = (r for r in extras if r.startswith('ruff=='))
  hooks = (REPOSITORY / '.pre-commit-config.yaml').read_text()
  assert hooks.count('ruff==') == hooks.count(ruff) == 2


def test_the_citation_is_of_this_version():
  lines = (REPOSITORY / 'CITATION.cff').read_text().splitlines()
  assert f'version: {edsft_jax.__version__}' in lines
