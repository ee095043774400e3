"""Coordinates the processes of one command: start, barriers, common exit.

Everything goes through JAX's coordination service and never through a device
collective. So a process can wait for hours while another works, and one that
fails during a computation can still stop the others, which wait in it. A single
process neither waits nor connects.
"""

import _thread
import atexit
from collections.abc import Callable, Mapping, Sequence
import itertools
import json
import os
import pathlib
import secrets
import sys
import threading
import time
from typing import Any, NoReturn

from edsft_jax import errors

AUTO = 'auto'
# A process without a heartbeat for this long is considered dead, and JAX ends
# the others.
HEARTBEAT_SECONDS = 30
# Time for a process to clean up when another one has failed.
_GRACE_SECONDS = 5.0
# Time for a network file system to show what another host has written.
SEEN_SECONDS = 60.0

_FAILURE = 'edsft_jax/failure'
_serial = itertools.count()


def start(
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 120,
) -> None:
  """Joins the other processes of this command, before any device is touched.

  Without arguments this is a single process, unless the environment variables
  of SLURM or of a TPU node pool list several.

  Args:
    coordinator: HOST:PORT where process 0 listens; 'auto': JAX finds the
      address, the number of processes and this one's id, as it can on Cloud
      TPU, SLURM and Open MPI.
    num_processes: number of processes.
    process_id: index of this process, from 0.
    timeout: seconds to wait for the others.

  Raises:
    InputError: the arguments are inconsistent, or no cluster is found.
  """
  given = {
    '--coordinator': coordinator or None,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  absent = [flag for flag, value in given.items() if value is None]
  if coordinator != AUTO and 0 < len(absent) < len(given):
    raise errors.InputError(
      f'{" and ".join(absent)} is missing: several processes need '
      f'{", ".join(given)}, or --coordinator={AUTO} alone'
    )
  if timeout < 1:
    raise errors.InputError(
      f'--start_timeout is {timeout}: must be at least 1 second'
    )
  if coordinator == AUTO:
    if len(absent) < 2:
      raise errors.InputError(
        f'--coordinator={AUTO} finds the other processes by itself: leave out '
        '--num_processes and --process_id'
      )
    found: dict[str, Any] = {}
  elif num_processes is not None and process_id is not None:
    found = _explicit(coordinator, num_processes, process_id)
  elif is_cluster(os.environ):
    found = {}
  else:
    return
  _connect(found, timeout)
  if count() > 1:
    import jax

    _watch()
    # The first call waits until every process makes it, so all make it here,
    # before any of them starts to work alone.
    jax.devices()


def is_cluster(environ: Mapping[str, str]) -> bool:
  """Whether SLURM or a TPU node pool started several processes."""
  tasks = environ.get('SLURM_STEP_NUM_TASKS', '1')
  hosts = environ.get(
    'TPU_PROCESS_ADDRESSES', environ.get('TPU_WORKER_HOSTNAMES', '')
  )
  return (tasks.isdecimal() and int(tasks) > 1) or ',' in hosts


def _explicit(
  coordinator: str, num_processes: int, process_id: int
) -> dict[str, Any]:
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.InputError(
      f'--coordinator={coordinator} is not HOST:PORT: give the host of process '
      '0 and a free port there'
    )
  if num_processes < 1:
    raise errors.InputError(
      f'--num_processes is {num_processes}: must be at least 1'
    )
  if not 0 <= process_id < num_processes:
    raise errors.InputError(
      f'--process_id is {process_id}: must be 0 to {num_processes - 1} for '
      f'--num_processes={num_processes}'
    )
  return {
    'coordinator_address': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
    # Under SLURM, detection would leave this process only one device.
    'cluster_detection_method': 'deactivate',
  }


def _connect(found: dict[str, Any], timeout: int) -> None:
  import jax

  # The service would catch SIGTERM and keep the process running.
  jax.config.update('jax_enable_preemption_service', False)
  where = found.get('coordinator_address', 'the coordinator that JAX looks for')

  def give_up() -> None:
    print(
      f'edsft_jax: not all processes met at {where} within {timeout} s: start '
      'each of them, with a --coordinator that all can reach',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  # On a timeout of its own, the service would abort the process.
  timer = threading.Timer(timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **found,
      initialization_timeout=2 * timeout + 60,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except Exception as e:  # From cluster detection, the service or the network.
    line = ' '.join(str(e).split())
    raise errors.InputError(
      f'the processes cannot be joined at {where} ({line}): fix that, or give '
      '--coordinator=HOST:PORT, --num_processes and --process_id'
    ) from None
  finally:
    timer.cancel()


def index() -> int:
  """Index of this process, from 0."""
  return _state().process_id if _state() else 0


def count() -> int:
  """Number of processes."""
  return _state().num_processes if _state() else 1


def is_first() -> bool:
  """Whether this process prints, and writes what only one may write."""
  return index() == 0


def from_first(name: str, make: Callable[[], Any]) -> Any:
  """Returns the first process's `make()` on all, after a JSON round trip.

  Every process must make the same calls of this and of `barrier`, in the same
  order; `name` helps to debug a mismatch. A single process returns `make()`
  unchanged.
  """
  if count() == 1:
    return make()
  key = f'edsft_jax/{next(_serial)}/{name}'
  if is_first():
    _client().key_value_set(key, json.dumps(make()))
  return json.loads(_wait(key))


def highest(name: str, value: int) -> int:
  """The highest value that a process gives; every process must call this.

  Fit for every step of a loop: the service keeps the values of the last call
  only.
  """
  global _last_highest
  if count() == 1:
    return value
  key = f'edsft_jax/{next(_serial)}/{name}'
  client = _client()
  if is_first():
    others = [int(_wait(f'{key}/{other}')) for other in range(1, count())]
    result = max(value, *others)
    client.key_value_set(f'{key}/highest', str(result))
    # Every process has left the call before this one.
    if _last_highest:
      client.key_value_delete(_last_highest)
    _last_highest = key
    return result
  client.key_value_set(f'{key}/{index()}', str(value))
  return int(_wait(f'{key}/highest'))


# The key of the last call of `highest`, in the first process.
_last_highest = ''


def barrier(name: str) -> None:
  """A barrier: returns once every process has called it."""
  if count() == 1:
    return
  key = f'edsft_jax/{next(_serial)}/{name}'
  if is_first():
    for other in range(1, count()):
      _wait(f'{key}/{other}')
    _client().key_value_set(key, '')
  else:
    _client().key_value_set(f'{key}/{index()}', '')
    _wait(key)


def barrier_within(name: str, seconds: float) -> bool:
  """Whether every process calls this within `seconds`.

  After False, the processes are out of step and must not call `barrier` or
  `from_first` again: the caller has to end the command.
  """
  if count() == 1:
    return True
  key = f'edsft_jax/{next(_serial)}/{name}'
  give_up = time.monotonic() + seconds
  _client().key_value_set(f'{key}/{index()}', '')
  try:
    for other in range(count()):
      _wait(f'{key}/{other}', give_up)
  except TimeoutError:
    return False
  return True


def check_shared(folder: pathlib.Path, timeout: float = SEEN_SECONDS) -> None:
  """Checks that all processes see the same folder.

  Args:
    folder: exists.
    timeout: seconds to wait for a file that the first process wrote there.

  Raises:
    InputError: this process cannot see a file that the first one wrote there.
  """
  if count() == 1:
    return
  name = from_first('folder', lambda: f'.{secrets.token_hex(8)}.shared')
  if is_first():
    (folder / name).touch()
  barrier('file written')
  await_files([folder / name], timeout)
  barrier('file seen')
  if is_first():
    (folder / name).unlink()


def await_files(
  paths: Sequence[pathlib.Path], timeout: float = SEEN_SECONDS
) -> None:
  """Waits until this process sees files that others have written.

  A network file system may show them with a delay.

  Args:
    paths: the files.
    timeout: seconds to wait for all of them.

  Raises:
    InputError: a file does not appear.
  """
  give_up = time.monotonic() + timeout
  for path in paths:
    while not path.exists():
      if time.monotonic() > give_up:
        raise errors.InputError(
          f'{path} was written by another process and is not visible here: '
          '--workdir must be on a file system that all processes share'
        )
      time.sleep(0.2)


def end(code: int, report: Callable[[], Any]) -> NoReturn:
  """Ends every process with the same exit code.

  Args:
    code: the exit code; if several processes call this, the first call wins.
    report: prints the reason; called only in the process whose call wins.
  """
  client = _client()
  if client is None:
    report()
    sys.exit(code)
  import jax

  try:
    client.key_value_set(_FAILURE, f'{index()} {code}')
  except jax.errors.JaxRuntimeError:
    if failure := _failure():
      _leave(failure[1])
  report()
  _leave(code)


def _watch() -> None:
  """Ends this process when another one fails."""
  over = threading.Event()

  def watch() -> None:
    while not over.wait(1.0):
      failure = _failure()
      if failure and failure[0] != index():
        # Lets the main thread clean up, unless it waits in a computation.
        _thread.interrupt_main()
        over.wait(_GRACE_SECONDS)
        _leave(failure[1])

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()

  # The interpreter must not exit while the thread calls the service.
  @atexit.register
  def stop() -> None:
    over.set()
    watcher.join()


def _leave(code: int) -> NoReturn:
  """Exits without JAX's shutdown, which would wait for all processes."""
  import jax

  sys.stdout.flush()
  sys.stderr.flush()
  try:
    if is_first():
      # The service runs in this process: exiting first would kill the others
      # before they have read the failure.
      give_up = time.monotonic() + 2 * _GRACE_SECONDS
      for other in range(1, count()):
        _wait(f'edsft_jax/left/{other}', give_up)
    else:
      _client().key_value_set(f'edsft_jax/left/{index()}', '')
  except (jax.errors.JaxRuntimeError, TimeoutError):
    pass  # The others, or the service, are already gone.
  os._exit(code)


def _state() -> Any:
  """JAX's distributed state, or None until jax is imported.

  Does not import jax, since a command that needs no device must not wait for
  it. The service's client has no public name.
  """
  distributed = sys.modules.get('jax._src.distributed')
  return distributed and distributed.global_state


def _client() -> Any:
  return _state() and _state().client


def _failure() -> tuple[int, int] | None:
  """Index and exit code of the first process that failed, or None."""
  import jax

  try:
    process, code = _client().key_value_try_get(_FAILURE).split()
  except jax.errors.JaxRuntimeError:
    return None
  return int(process), int(code)


def _wait(key: str, give_up: float = float('inf')) -> str:
  """Waits for a key's value; can be interrupted once per second."""
  import jax

  client = _client()
  while True:
    try:
      return client.blocking_key_value_get(key, 1000)
    except jax.errors.JaxRuntimeError as e:
      if not str(e).startswith('DEADLINE_EXCEEDED'):
        raise
      if time.monotonic() > give_up:
        raise TimeoutError(key) from None
