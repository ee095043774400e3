"""Runs one command as several processes that find each other."""

from collections.abc import Callable, Sequence
import concurrent.futures
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


def run(
  arguments: Callable[[int, str], Sequence[str]], num_processes: int = 2
) -> list[subprocess.CompletedProcess[str]]:
  """Starts Python once per process and waits for all of them.

  Args:
    arguments: from a process's number and the coordinator's address to what
      follows `python`.
    num_processes: how many.

  Returns:
    What each printed and returned, in the order of their numbers.
  """
  address = f'localhost:{free_port()}'
  environment = {
    **os.environ,
    **compilation.environment(DEVICES_EACH),
    'JAX_PLATFORMS': 'cpu',
  }
  started = [
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
    # Each one's pipes are read at once: one that fills them would stop all.
    with concurrent.futures.ThreadPoolExecutor(num_processes) as pool:
      outputs = list(
        pool.map(lambda process: process.communicate(timeout=SECONDS), started)
      )
  finally:
    for process in started:
      process.kill()
  return [
    subprocess.CompletedProcess(process.args, process.returncode, *output)
    for process, output in zip(started, outputs, strict=True)
  ]
