"""Runs one command as several processes that find each other."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys

import compilation
from places import REPOSITORY

DEVICES_EACH = 4
SECONDS = 240


def free_port() -> int:
  """A port that is not in use."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


@contextlib.contextmanager
def started(
  arguments: Callable[[int, str], Sequence[str]], num_processes: int = 2
) -> Iterator[list[subprocess.Popen[str]]]:
  """Starts Python once per process; kills those that are left at the end.

  Args:
    arguments: from a process's number and the coordinator's address to what
      follows `python`.
    num_processes: how many.
  """
  address = f'localhost:{free_port()}'
  environment = {
    **os.environ,
    **compilation.environment(DEVICES_EACH),
    'JAX_PLATFORMS': 'cpu',
  }
  running = [
    subprocess.Popen(
      [sys.executable, *arguments(number, address)],
      cwd=REPOSITORY,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(num_processes)
  ]
  try:
    yield running
  finally:
    for process in running:
      process.kill()


def results(
  running: Sequence[subprocess.Popen[str]],
) -> list[subprocess.CompletedProcess[str]]:
  """Waits for all; returns what each printed and returned, in their order."""
  # Each one's pipes are read at once: one that fills them would stop all.
  with concurrent.futures.ThreadPoolExecutor(len(running)) as pool:
    outputs = list(
      pool.map(lambda process: process.communicate(timeout=SECONDS), running)
    )
  return [
    subprocess.CompletedProcess(process.args, process.returncode, *output)
    for process, output in zip(running, outputs, strict=True)
  ]


def run(
  arguments: Callable[[int, str], Sequence[str]], num_processes: int = 2
) -> list[subprocess.CompletedProcess[str]]:
  """The results of processes that run to their end; see `started`."""
  with started(arguments, num_processes) as running:
    return results(running)
