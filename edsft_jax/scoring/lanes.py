"""Batches that run side by side, each in a thread of its own.

On a CPU products of few rows and the attention of a decode step keep one core
busy each; two batches keep two.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import os
import threading
from typing import Any

import jax


def num_lanes(mesh: jax.sharding.Mesh) -> int:
  """Batches that run side by side."""
  device = mesh.devices.flat[0]
  alone = mesh.size == 1 and device.platform == 'cpu'
  return 2 if alone and os.cpu_count() > 1 else 1


class UnlessStopped:
  """Iterates, until somebody says stop."""

  def __init__(self):
    self._stopped = threading.Event()

  def __call__(self, items: Iterable) -> Iterator:
    for item in items:
      if self._stopped.is_set():
        return
      yield item

  def stop(self) -> None:
    self._stopped.set()


def side_by_side(
  lane: Callable[[int, UnlessStopped], None], num_lanes: int
) -> None:
  """Runs lanes in threads; an error or an interrupt ends all of them."""
  unless_stopped = UnlessStopped()
  if num_lanes == 1:
    lane(0, unless_stopped)
    return
  with futures.ThreadPoolExecutor(num_lanes) as pool:
    running = [pool.submit(lane, i, unless_stopped) for i in range(num_lanes)]
    try:
      for ended in futures.as_completed(running):
        ended.result()
    except BaseException:
      unless_stopped.stop()
      raise


class Compiled:
  """A jitted function that several threads do not compile at once.

  Attributes:
    num_programs: how many were compiled, one for each shape of the arguments.
  """

  def __init__(self, function: Callable[..., Any]):
    self._function = function
    self._lock = threading.Lock()
    self._known: set[tuple] = set()

  @property
  def num_programs(self) -> int:
    return len(self._known)

  def __call__(self, *args: Any) -> Any:
    shapes = tuple(getattr(x, 'shape', x) for x in jax.tree.leaves(args))
    if shapes in self._known:
      return self._function(*args)
    with self._lock:
      result = self._function(*args)
      self._known.add(shapes)
    return result
