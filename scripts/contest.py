"""Runs benchmark contestants in turns, measures them, and prints a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import dataclasses
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import time

Contestant = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Measurement:
  """The measurement of one contestant in one case.

  Attributes:
    case: name of the case.
    contestant: name of the contestant.
    seconds: median wall time.
    ratio: its wall time relative to the first contestant's.
    cpu_seconds: median CPU time of all threads.
    result: the contestant's return value.
  """

  case: str
  contestant: str
  seconds: float
  ratio: float
  cpu_seconds: float
  result: float


def compete(
  case: str, contestants: dict[str, Contestant], repeats: int
) -> list[Measurement]:
  """Warms all up, then runs them in turns, so that noise affects all alike."""
  result = {name: run() for name, run in contestants.items()}
  seconds: dict[str, list[float]] = {name: [] for name in contestants}
  cpu_seconds: dict[str, list[float]] = {name: [] for name in contestants}
  for _ in range(repeats):
    for name, run in contestants.items():
      start, cpu_start = time.perf_counter(), time.process_time()
      run()
      seconds[name].append(time.perf_counter() - start)
      cpu_seconds[name].append(time.process_time() - cpu_start)
  median = {name: statistics.median(s) for name, s in seconds.items()}
  reference = next(iter(median.values()))
  return [
    Measurement(
      case,
      name,
      median[name],
      median[name] / reference,
      statistics.median(cpu_seconds[name]),
      result[name],
    )
    for name in contestants
  ]


def time_command(
  command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[float, str]:
  """Seconds and output of a process, imports and loading included.

  Args:
    command: the program and its arguments.
    environment: variables to set besides this process's own.

  Raises:
    SystemExit: it failed; the message has the end of what it printed.
  """
  start = time.perf_counter()
  done = subprocess.run(
    command,
    env=os.environ | (environment or {}),
    capture_output=True,
    text=True,
    check=False,
  )
  seconds = time.perf_counter() - start
  if done.returncode:
    raise SystemExit(f'{shlex.join(command)}:\n{done.stderr[-3000:]}')
  return seconds, done.stdout


def peak_bytes() -> int:
  """The peak memory of the first accelerator, or of this process on a CPU."""
  import jax

  memory = jax.local_devices()[0].memory_stats() or {}
  return memory.get('peak_bytes_in_use') or peak_process_bytes()


def peak_process_bytes() -> int:
  """This process's peak memory; that of getrusage starts with its parent's."""
  status = pathlib.Path('/proc/self/status').read_text()
  (kib,) = re.findall(r'VmHWM:\s+(\d+) kB', status)
  return int(kib) * 2**10


def show(
  fields: Sequence[str], rows: Iterable[dict[str, str]], path: str
) -> None:
  """Prints rows as they come, and writes them to a csv file if path is set."""
  seen = []
  print(' | '.join(fields), flush=True)
  for row in rows:
    seen.append(row)
    print(' | '.join(row.get(field, '') for field in fields), flush=True)
  if path:
    with open(path, 'w', newline='') as file:
      writer = csv.DictWriter(file, fields)
      writer.writeheader()
      writer.writerows(seen)
