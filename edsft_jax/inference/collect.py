"""Collects rows that the device finishes in any order, and reports progress."""

from collections.abc import Callable, Sequence
import dataclasses
import threading
from typing import Any

import jax
import numpy as np

from edsft_jax.inference import throughput
from edsft_jax.inference.packing import Packed
from edsft_jax.inference.slots import Ended
from edsft_jax.inference.waves import Row

Progress = Callable[[throughput.Work], Any]


@dataclasses.dataclass(frozen=True)
class Generations:
  """Continuations of n prompts, in the given order.

  Attributes:
    tokens: the new ids of each, including the token that ended it.
    stopped: bool [n]; false if a continuation was cut at max_new_tokens.
    prompt_results: the results of the prompt hook, or the likelihoods of
      targets, [n, ...] arrays.
    row_results: the results of the row hook, [n, ...] arrays.
  """

  tokens: list[np.ndarray]
  stopped: np.ndarray
  prompt_results: Any
  row_results: Any


# Called with the indices of prompts that are done, and with their results.
Found = Callable[[Sequence[int], Generations], Any]


class Rows:
  """A pytree of [n, ...] arrays, filled in any order by several threads."""

  def __init__(self, num_rows: int):
    self.tree: Any = None
    self._num_rows = num_rows
    self._lock = threading.Lock()

  def put(self, indices: Sequence[int], tree: Any) -> None:
    """Stores the rows of `tree` at these indices."""
    with self._lock:
      if self.tree is None:
        self.tree = jax.tree.map(
          lambda x: np.zeros((self._num_rows, *x.shape[1:]), x.dtype), tree
        )

      def put(all_rows: np.ndarray, rows: np.ndarray) -> None:
        all_rows[indices] = rows

      jax.tree.map(put, self.tree, tree)

  def put_packed(self, packed: Packed, tree: Any) -> None:
    """Waits for the results of packed rows, [B, S, ...], and stores them."""
    places = packed.places
    self.put(
      packed.indices, jax.tree.map(lambda x: x[places], jax.device_get(tree))
    )


class Reporter:
  """Reports finished work to a progress callback, one thread at a time."""

  def __init__(self, costs: throughput.Costs, progress: Progress):
    """Reports nothing yet.

    Args:
      costs: operations and memory traffic of the model's tokens.
      progress: called with the work done.
    """
    self._costs = costs
    self._progress = progress
    self._lock = threading.Lock()

  def prefilled(
    self, spans: Sequence[throughput.Span], num_finished: int = 0
  ) -> None:
    """Reports rows that were read, of which `num_finished` are finished.

    Args:
      spans: what was read of each row.
      num_finished: rows that are not continued.
    """
    self._report(
      throughput.Work(
        prompts=num_finished,
        tokens=sum(span.end - span.first for span in spans),
        flops=sum(self._costs.flops(*span) for span in spans),
        bytes=self._costs.read_bytes(
          scored=any(span.num_scored for span in spans)
        ),
      )
    )

  def decoded(self, ended: Ended, lengths: Sequence[int]) -> None:
    """Reports rows that have ended, with the lengths of their prompts."""
    step_bytes = self._costs.step_bytes(ended.num_slots, ended.cache_length)
    self._report(
      throughput.Work(
        prompts=len(ended.indices),
        tokens=sum(map(len, ended.tokens)),
        # The last token is never an input.
        flops=sum(
          self._costs.flops(length, length + len(ids) - 1, len(ids) - 1)
          for length, ids in zip(lengths, ended.tokens, strict=True)
        ),
        bytes=ended.steps * step_bytes,
      )
    )

  def _report(self, work: throughput.Work) -> None:
    with self._lock:
      self._progress(work)


class Collector:
  """Collects the results of `Engine.generate`."""

  def __init__(
    self,
    rows: Sequence[Row],
    report: Reporter,
    scores_prompt: bool,
    found: Found | None = None,
  ):
    """Starts empty.

    Args:
      rows: the prompts.
      report: reports progress.
      scores_prompt: whether every prompt token has logits.
      found: called with each prompt's results, by one thread at a time.
    """
    self._rows = rows
    self._report = report
    self._scores_prompt = scores_prompt
    self._found = found
    self._lock = threading.Lock()
    # Of a prompt: what was computed of it, and its continuation.
    self._num_results = np.zeros(len(rows), int)
    self._prompt_results = Rows(len(rows))
    self._row_results = Rows(len(rows))
    self._tokens = [np.zeros(0, np.int32) for _ in rows]
    self._stopped = np.zeros(len(rows), bool)

  def add_prompts(self, packed: Packed, found: Any) -> None:
    """Waits for what was computed of packed prompts, and stores it."""
    self._prompt_results.put_packed(packed, found)
    rows = [self._rows[i] for i in packed.indices]
    self._report.prefilled(
      [
        # The last token always has logits, for the first new token.
        row.span(
          len(row.own)
          if self._scores_prompt
          else 1 + row.num_scored + len(row.last)
        )
        for row in rows
      ],
      num_finished=sum(len(row.last) for row in rows),
    )
    self._note(packed.indices)

  def add_ended(self, ended: Ended) -> None:
    """Stores rows that have ended."""
    for index, ids in zip(ended.indices, ended.tokens, strict=True):
      self._tokens[index] = ids
    self._stopped[ended.indices] = ended.stopped
    self._row_results.put(ended.indices, ended.found)
    self._report.decoded(
      ended, [self._rows[i].num_prompt_tokens for i in ended.indices]
    )
    self._note(ended.indices)

  def finish(self) -> Generations:
    """Returns all results."""
    return Generations(
      self._tokens,
      self._stopped,
      self._prompt_results.tree,
      self._row_results.tree,
    )

  def _note(self, indices: Sequence[int]) -> None:
    """Passes on the results of the prompts that are complete now."""
    if self._found is None:
      return
    self._num_results[indices] += 1
    done = [i for i in indices if self._num_results[i] == 2]
    whole = self.finish()
    some = Generations(
      [whole.tokens[i] for i in done],
      whole.stopped[done],
      jax.tree.map(lambda x: x[done], whole.prompt_results),
      jax.tree.map(lambda x: x[done], whole.row_results),
    )
    with self._lock:
      self._found(done, some)
