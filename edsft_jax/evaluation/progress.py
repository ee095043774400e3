"""The progress of evaluation: items over all cells and tasks."""

import dataclasses

from edsft_jax.inference.throughput import Rate, Work


class ItemProgress:
  """Counts the items of a shard, each of which may have several requests."""

  def __init__(self, rate: Rate, num_items: int, num_requests: int):
    """Starts at no items.

    Args:
      rate: shows work on a bar over items.
      num_items: the shard's items.
      num_requests: their requests.
    """
    self._rate = rate
    self._num_items = num_items
    self._num_requests = num_requests
    self._requests = 0
    self._shown = 0

  def __call__(self, work: Work) -> None:
    """Adds the work done since the last call; its prompts are requests."""
    # Some requests may be answered twice.
    self._requests = min(self._requests + work.prompts, self._num_requests)
    self._show(
      work, self._num_items * self._requests // max(self._num_requests, 1)
    )

  def finish(self) -> None:
    """Counts items without requests, too."""
    self._show(Work(), self._num_items)

  def _show(self, work: Work, num_items: int) -> None:
    self._rate(dataclasses.replace(work, prompts=num_items - self._shown))
    self._shown = num_items
