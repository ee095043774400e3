"""The progress bar of the stage: all cells in one."""

from collections.abc import Mapping
from typing import Any


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
