"""Progress over all cells: a bar, and a clock that they share."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import threading
import time
from typing import Any


class SharedClock:
  """A clock that divides time equally between the cells that are running.

  While two are running, it runs at half speed, so that the times of all cells
  add up to that of the stage.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts at zero; `clock` returns real seconds."""
    self._clock = clock
    self._lock = threading.Lock()
    self._num_cells = 0
    self._seconds = 0.0
    self._last = clock()

  def __call__(self) -> float:
    """Seconds since the start."""
    with self._lock:
      now = self._clock()
      self._seconds += (now - self._last) / max(self._num_cells, 1)
      self._last = now
      return self._seconds

  @contextlib.contextmanager
  def cell(self) -> Iterator[None]:
    """Counts a cell as running within the block."""
    self._change(1)
    try:
      yield
    finally:
      self._change(-1)

  def _change(self, number: int) -> None:
    self()
    with self._lock:
      self._num_cells += number


class CellProgress:
  """Shows one cell on a bar over the steps of all cells.

  The bar's time left is that of all cells.
  """

  def __init__(self, bar: Any, cell: str):
    """Takes a tqdm bar and the cell's name."""
    self._bar = bar
    self._cell = cell
    self._bar.set_postfix_str(cell, refresh=False)

  def advance(self, steps: int) -> None:
    """Counts steps as done, first those of a checkpoint."""
    # Other threads may show their cells on the same bar.
    with self._bar.get_lock():
      self._bar.update(steps)

  def show(
    self, metrics: Mapping[str, float], timing: Mapping[str, float]
  ) -> None:
    """Shows what was logged; see MetricsLog.write."""
    parts = [self._cell, f'loss {metrics["loss"]:.3f}']
    if 'heldout_loss' in metrics:
      parts.append(f'held-out {metrics["heldout_loss"]:.3f}')
    parts.append(f'{timing["tokens_per_second"]:,.0f} tokens/s')
    if 'utilization' in timing:
      parts.append(f'{timing["utilization"]:.0%} of peak FLOP/s')
    if 'memory_gib' in timing:
      parts.append(f'{timing["memory_gib"]:.1f} GiB')
    self._bar.set_postfix_str(', '.join(parts), refresh=False)
