"""Restarts a command so that its large arrays are in huge pages.

On a CPU, XLA allocates a program's temporary arrays for each call, and the
kernel clears every page on its first write. With pages of 4 KiB, that takes a
fifth of a finetuning step.
"""

import os
import pathlib
import sys

_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
# The C library reads it when a process starts; see the GNU manual, "Memory
# Allocation Tunables". Others ignore it.
_VARIABLE = 'GLIBC_TUNABLES'
_TUNABLE = 'glibc.malloc.hugetlb'


def restart() -> None:
  """Starts this process's command again, unless it would gain nothing.

  Call this before threads are started and files are locked. Returns if the
  kernel gives no huge pages on request, if the tunable is set already, or if
  the arguments are not those that Python was started with.
  """
  tunables = os.environ.get(_VARIABLE, '')
  words = sys.argv[1:]
  if (
    not on_request()
    or _TUNABLE in tunables
    or sys.orig_argv[len(sys.orig_argv) - len(words) :] != words
  ):
    return
  tunables = ':'.join(filter(None, [tunables, f'{_TUNABLE}=1']))
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(
    sys.executable,
    [sys.executable, *sys.orig_argv[1:]],
    {**os.environ, _VARIABLE: tunables},
  )


def on_request() -> bool:
  """Whether the kernel gives huge pages to those who ask, and only to them."""
  try:
    return '[madvise]' in _SETTING.read_text()
  except OSError:
    return False
