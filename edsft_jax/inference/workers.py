"""Worker threads, each with its own batch or cell.

On a CPU, the products of few rows and the attention of a decode step each use
only one core, so two batches run at the same time.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import os
import threading
from typing import Any, Generic, TypeVar

import jax

from edsft_jax import mesh as mesh_lib

T = TypeVar('T')


def num_workers(mesh: jax.sharding.Mesh) -> int:
  """How many threads to run."""
  device = mesh.devices.flat[0]
  alone = mesh.size == 1 and device.platform == 'cpu'
  return 2 if alone and (os.cpu_count() or 1) > 1 else 1


class UnlessStopped:
  """Wraps iterables, to end them all when `stop` is called."""

  def __init__(self) -> None:
    self._stopped = threading.Event()

  def __call__(self, items: Iterable[T]) -> Iterator[T]:
    """Yields the items until `stop` is called."""
    for item in items:
      if self.is_stopped:
        return
      yield item

  @property
  def is_stopped(self) -> bool:
    """Whether `stop` was called."""
    return self._stopped.is_set()

  def stop(self) -> None:
    """Ends every iteration at its next item."""
    self._stopped.set()


def run(work: Callable[[int, UnlessStopped], None], num_workers: int) -> None:
  """Runs `work(number, unless_stopped)` once per worker thread.

  An error or an interrupt ends all of them.
  """
  unless_stopped = UnlessStopped()
  if num_workers == 1:
    work(0, unless_stopped)
    return
  with futures.ThreadPoolExecutor(num_workers) as pool:
    running = [pool.submit(work, i, unless_stopped) for i in range(num_workers)]
    try:
      for ended in futures.as_completed(running):
        ended.result()
    except BaseException:
      unless_stopped.stop()
      raise


def pipeline(
  items: Iterable[T],
  dispatch: Callable[[T], Any],
  collect: Callable[[T, Any], None],
) -> None:
  """Collects the result of each item while the device computes the next.

  Args:
    items: what to compute.
    dispatch: starts the computation of an item.
    collect: waits for an item's result, and stores it.
  """
  pending = None
  for item in items:
    result = dispatch(item)
    if pending is not None:
      collect(*pending)
    pending = item, result
  if pending is not None:
    collect(*pending)


class Queue(Generic[T]):
  """Items that threads share; each goes to one of them.

  Every other thread starts at the end, so that they compile different programs
  at the same time if neighbours run the same one.
  """

  def __init__(self, items: Iterable[T]):
    self._items = collections.deque(items)

  def take(self, number: int) -> Iterator[T]:
    """Yields the items that this thread gets."""
    take = self._items.pop if number % 2 else self._items.popleft
    while True:
      try:
        item = take()
      except IndexError:
        return
      yield item


class Shared(Generic[T]):
  """A value that threads share, freed once each of them has taken it."""

  def __init__(self, make: Callable[[], T], num_users: int):
    """Makes nothing yet.

    Args:
      make: makes the value, in the first thread that takes it.
      num_users: how many threads will take it, each once.
    """
    self._make = make
    self._num_left = num_users
    self._made: list[T] = []
    self._lock = threading.Lock()

  def take(self) -> T:
    """Returns the value; the last call drops the reference to it."""
    with self._lock:
      if not self._made:
        self._made.append(self._make())
      self._num_left -= 1
      return self._made[0] if self._num_left else self._made.pop()


class Compiled:
  """A jitted function that threads can share without compiling it twice."""

  def __init__(self, function: jax.stages.Wrapped):
    self._function = function
    self._known: set[tuple[Any, ...]] = set()
    # A lock for each combination of shapes.
    self._locks: dict[tuple[Any, ...], threading.Lock] = {}

  @property
  def num_programs(self) -> int:
    """Number of programs compiled, one per combination of shapes."""
    return len(self._known)

  def lower(self, *args: Any) -> jax.stages.Lowered:
    """The program for these arguments; calls find it once it is compiled."""
    return self._function.lower(*args)

  def __call__(self, *args: Any) -> Any:
    """Calls the function."""
    shapes = tuple(getattr(x, 'shape', x) for x in jax.tree.leaves(args))
    if shapes in self._known:
      return self._function(*args)
    with self._locks.setdefault(shapes, threading.Lock()):
      mesh_lib.compile_together(self._function, *args)
      result = self._function(*args)
      self._known.add(shapes)
    return result
