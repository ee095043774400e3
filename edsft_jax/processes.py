"""Several processes of one command: found, in step, and ended together.

JAX's coordination service carries all of it, never a device: a process can
wait for hours while another works, and one that fails in the midst of a
computation still reaches those that wait in it. With one process nothing here
waits or connects.
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
# A process that has sent no sign of life for so long is dead, and the others
# are ended with it.
HEARTBEAT_SECONDS = 30
# For a process to clear up when another has failed.
_GRACE_SECONDS = 5.0
# How long a network file system may hide what another host has written.
_SEEN_SECONDS = 60.0

_FAILURE = 'edsft_jax/failure'
_serial = itertools.count()


def start(
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 120,
) -> None:
  """Joins the other processes of this command, before any device is touched.

  With nothing given it is one process, unless SLURM or a TPU node pool says by
  the environment that there are several: nothing is looked for elsewhere.

  Args:
    coordinator: HOST:PORT at which process 0 listens; 'auto': JAX finds it and
      the other two, as it can on Cloud TPU, under SLURM and Open MPI.
    num_processes: how many there are.
    process_id: which one this is, from 0.
    timeout: seconds to wait for the others.

  Raises:
    InputError: the three do not go together, or no cluster is found.
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
    raise errors.InputError(f'--start_timeout is {timeout}: at least 1 second')
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
    # The first look at the devices waits for the same look of all others: it
    # must not wait for what one of them does alone.
    jax.devices()


def is_cluster(environ: Mapping[str, str]) -> bool:
  """Whether a SLURM step or a TPU node pool started several of us."""
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
    raise errors.InputError(f'--num_processes is {num_processes}: at least 1')
  if not 0 <= process_id < num_processes:
    raise errors.InputError(
      f'--process_id is {process_id}: 0 to {num_processes - 1} for '
      f'--num_processes={num_processes}'
    )
  return {
    'coordinator_address': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
    # SLURM would hide all devices of a process but one.
    'cluster_detection_method': 'deactivate',
  }


def _connect(found: dict[str, Any], timeout: int) -> None:
  import jax

  # It would catch SIGTERM and let the process run on.
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

  # The service itself would end a process that waits in vain by an abort.
  timer = threading.Timer(timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **found,
      initialization_timeout=2 * timeout + 60,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except Exception as e:  # Of the cluster's detection, the service, the net.
    line = ' '.join(str(e).split())
    raise errors.InputError(
      f'the processes cannot be joined at {where} ({line}): fix that, or give '
      '--coordinator=HOST:PORT, --num_processes and --process_id'
    ) from None
  finally:
    timer.cancel()


def index() -> int:
  """Which process this is, from 0."""
  return _state().process_id if _state() else 0


def count() -> int:
  """How many processes there are."""
  return _state().num_processes if _state() else 1


def is_first() -> bool:
  """The one that speaks, and that writes what is written once."""
  return index() == 0


def from_first(name: str, make: Callable[[], Any]) -> Any:
  """What the first process makes, as JSON would give it back, on every one.

  Every process must come to the same calls of this and of `meet`, in the same
  order; `name` is what to look for when they do not.
  """
  if count() == 1:
    return make()
  key = f'edsft_jax/{next(_serial)}/{name}'
  if is_first():
    _client().key_value_set(key, json.dumps(make()))
  return json.loads(_wait(key))


def meet(name: str) -> None:
  """Returns when every process has come here."""
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


def met_within(name: str, seconds: float) -> bool:
  """Whether every process comes here; this one waits no longer than that.

  Those that do not may not come to another `meet` or `from_first`: where the
  answer is no, what follows must be the end.
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


def check_shared(folder: pathlib.Path) -> None:
  """Refuses a folder that is not the same one for all processes.

  Raises:
    InputError: this process does not see a file that the first wrote there.
  """
  if count() == 1:
    return
  name = from_first('folder', lambda: f'.{secrets.token_hex(8)}.shared')
  if is_first():
    (folder / name).touch()
  meet('file written')
  await_files([folder / name])
  meet('file seen')
  if is_first():
    (folder / name).unlink()


def await_files(paths: Sequence[pathlib.Path]) -> None:
  """Returns when this process sees what others have written.

  A network file system may show it some time later.

  Raises:
    InputError: it does not.
  """
  give_up = time.monotonic() + _SEEN_SECONDS
  for path in paths:
    while not path.exists():
      if time.monotonic() > give_up:
        raise errors.InputError(
          f'{path} was written by another process and is not seen here: '
          '--workdir must be on a file system that all processes share'
        )
      time.sleep(0.2)


def end(code: int, tell: Callable[[], Any]) -> NoReturn:
  """Ends every process with this exit code.

  Args:
    code: of the first process that comes here; it becomes that of all.
    tell: says why; called in that one alone.
  """
  client = _client()
  if client is None:
    tell()
    sys.exit(code)
  import jax

  try:
    client.key_value_set(_FAILURE, f'{index()} {code}')
  except jax.errors.JaxRuntimeError:
    if failure := _failure():
      _leave(failure[1])
  tell()
  _leave(code)


def _watch() -> None:
  """Has this process ended when another one fails."""
  over = threading.Event()

  def watch() -> None:
    while not over.wait(1.0):
      failure = _failure()
      if failure and failure[0] != index():
        # The main thread can clear up, unless it waits in a computation.
        _thread.interrupt_main()
        over.wait(_GRACE_SECONDS)
        _leave(failure[1])

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()

  # A thread that is about to ask the service must not see the interpreter end.
  @atexit.register
  def stop() -> None:
    over.set()
    watcher.join()


def _leave(code: int) -> NoReturn:
  """Exits without JAX's shutdown, which would wait for every process."""
  import jax

  sys.stdout.flush()
  sys.stderr.flush()
  try:
    if is_first():
      # The service ends with this process, and others with it, unheard.
      give_up = time.monotonic() + 2 * _GRACE_SECONDS
      for other in range(1, count()):
        _wait(f'edsft_jax/left/{other}', give_up)
    else:
      _client().key_value_set(f'edsft_jax/left/{index()}', '')
  except (jax.errors.JaxRuntimeError, TimeoutError):
    pass  # It is gone already.
  os._exit(code)


def _state() -> Any:
  """JAX's view of the processes, or None while nobody has imported JAX.

  Nothing is imported for it: a command that needs no device must not wait for
  JAX. The service's client has no public name.
  """
  distributed = sys.modules.get('jax._src.distributed')
  return distributed and distributed.global_state


def _client() -> Any:
  return _state() and _state().client


def _failure() -> tuple[int, int] | None:
  """Process and exit code of the first that failed."""
  import jax

  try:
    process, code = _client().key_value_try_get(_FAILURE).split()
  except jax.errors.JaxRuntimeError:
    return None
  return int(process), int(code)


def _wait(key: str, give_up: float = float('inf')) -> str:
  """The key's value, once it is set; can be interrupted every second."""
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
