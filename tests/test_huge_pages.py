"""A command starts again once, with its arguments, and its tunables kept."""

import os
import subprocess
import sys

from places import REPOSITORY
import pytest

from edsft_jax import huge_pages

CODE = """
import os, sys
sys.argv[1:] = {words}
from edsft_jax import huge_pages
huge_pages.restart()
print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), os.getpid())
"""


def _run(words: str, tunables: str | None = None) -> tuple[str, int, int]:
  """What CODE prints before its process id, that id, and the one started."""
  environ = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  if tunables is not None:
    environ['GLIBC_TUNABLES'] = tunables
  with subprocess.Popen(
    [sys.executable, '-c', CODE.format(words=words), 'one', '--two=2 3'],
    cwd=REPOSITORY,
    env=environ,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    printed, _ = process.communicate()
  assert process.returncode == 0
  text, _, pid = printed.strip().rpartition(' ')
  return text, int(pid), process.pid


@pytest.fixture(autouse=True)
def _needs_huge_pages_on_request():
  if not huge_pages.on_request():
    pytest.skip('the kernel gives no huge pages on request')


def test_the_same_command_in_the_same_process():
  text, pid, started = _run('sys.argv[1:]')
  assert text == "['one', '--two=2 3'] glibc.malloc.hugetlb=1"
  assert pid == started


def test_other_tunables_are_kept():
  text, *_ = _run('sys.argv[1:]', 'glibc.malloc.perturb=0')
  assert text.endswith('glibc.malloc.perturb=0:glibc.malloc.hugetlb=1')


@pytest.mark.parametrize(
  ('words', 'tunables'),
  [('sys.argv[1:]', 'glibc.malloc.hugetlb=0'), ("['other']", None)],
  ids=['set by the user', 'arguments of another program'],
)
def test_nothing_to_restart(words, tunables):
  text, *_ = _run(words, tunables)
  assert text.endswith(f' {tunables}')
