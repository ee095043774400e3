"""Runs prompts through a model: prefill, continuous batching.

Rows end at different steps, so a batch that waits for its last row mostly
computes rows that have ended. Instead, the next few prompts are prefilled and
inserted as soon as there are slots for them. When the prompts of one
cache-length bucket run out, the remaining rows move to the next larger one.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
import functools
import math
from typing import Any

from flax import nnx
import jax
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import packing, throughput, workers
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference import waves as waves_lib
from edsft_jax.inference.choices import compile_bytes, read_tokens
from edsft_jax.inference.collect import (
  Collector,
  Found,
  Generations,
  Progress,
  Reporter,
  Rows,
)
from edsft_jax.inference.decoding import GreedyDecoding
from edsft_jax.inference.prefixes import Prefixes
from edsft_jax.inference.programs import CompiledPrograms, Hooks, Programs
from edsft_jax.inference.slots import Slots, Stop
from edsft_jax.inference.steps import Step, Steps
from edsft_jax.inference.waves import Row, Wave

Tokens = Sequence[Sequence[int] | np.ndarray]


class Engine:
  """Runs models of one structure; each call passes the weights.

  Attributes:
    batch_tokens: tokens per batch.
  """

  def __init__(
    self,
    decoder: models.Decoder,
    mesh: jax.sharding.Mesh,
    shapes: shapes_lib.Shapes,
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    max_rows: int,
    hooks: Hooks | None = None,
    layer: int = -1,
    prefix: Sequence[int] = (),
    num_passes: int = 1,
  ):
    """Compiles nothing yet.

    Args:
      decoder: gives the structure; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      shapes: shapes for the rows without the prefix.
      end_ids: ids that end a continuation.
      max_new_tokens: tokens per continuation at most, end token included.
      batch_tokens: prompt and new tokens per batch, padding included.
      max_rows: rows per call at most.
      hooks: functions to compute for each row.
      layer: layer of the prompt hook's features, see Decoder.__call__.
      prefix: tokens that all rows start with, read once per call.
      num_passes: how often the rows will run, for example once per model.
    """
    self.batch_tokens = batch_tokens
    self._mesh = mesh
    self._shapes = shapes
    self._max_rows = max_rows
    self._prefix = tuple(prefix)
    self._num_workers = workers.num_workers(mesh)
    # Each part of a split batch reads all weights.
    self._costs = throughput.Costs.of(decoder, mesh_lib.batch_multiple(mesh))
    self._compile_bytes = compile_bytes(mesh) / num_passes
    self._sizes = shapes_lib.BatchSizes(
      batch_tokens // self._num_workers,
      max_new_tokens,
      mesh_lib.batch_multiple(mesh),
      -(-max_rows // self._num_workers),
      read_tokens=read_tokens(decoder, mesh),
    )
    self._steps = Steps(self._sizes, self._num_workers, self._cache_length)
    graph, _ = nnx.split(decoder)
    hooks = hooks or Hooks()
    decoding = GreedyDecoding(max_new_tokens, tuple(end_ids), hooks.step, layer)
    self._programs = CompiledPrograms(Programs(graph, mesh, decoding, hooks))

  @property
  def num_programs(self) -> int:
    """Programs compiled so far to read prompts and to decode."""
    return self._programs.num_programs

  @property
  def num_resizes(self) -> int:
    """Programs compiled so far to move rows to a longer cache."""
    return self._programs.resize.num_programs

  def read(
    self,
    weights: nnx.State,
    prompts: Tokens,
    progress: Progress = lambda work: None,
  ) -> Any:
    """Applies the prompt hook to prompts that are not continued, packed.

    Args:
      weights: weights of a decoder with the constructor's structure.
      prompts: ids of each prompt.
      progress: called with the work done since its last call.

    Returns:
      A pytree of [n, ...] arrays, in the order of the prompts.
    """
    found = Rows(len(prompts))
    report = Reporter(self._costs, progress)
    scored = self._programs.scores_prompt
    wave = self._one_wave(prompts)
    prefixes = self._read_prefixes(weights, wave, report)
    own = {i: row.own for i, row in enumerate(wave.rows)}

    def dispatch(packed: packing.Packed) -> Any:
      return self._programs.read(
        weights,
        prefixes,
        *mesh_lib.shard_batch(self._mesh, packing.fill(packed, own)),
        self._shapes.most_sequences(packed.length),
      )

    def collect(packed: packing.Packed, result: Any) -> None:
      found.put_packed(packed, result)
      report.prefilled(
        [wave.rows[i].span(scored * len(own[i])) for i in packed.indices],
        num_finished=len(packed.indices),
      )

    rows = self._shapes.pack([len(row.own) for row in wave.rows], wave.groups)
    num_rows = functools.partial(self._steps.num_rows, wave)
    queue = workers.Queue(packing.calls(rows, num_rows))

    def work(number: int, unless_stopped: workers.UnlessStopped) -> None:
      workers.pipeline(unless_stopped(queue.take(number)), dispatch, collect)

    workers.run(work, self._num_workers)
    return found.tree

  def generate(
    self,
    weights: nnx.State,
    prompts: Tokens,
    progress: Progress = lambda work: None,
    stop: Stop | None = None,
  ) -> Generations:
    """Continues prompts greedily.

    Args:
      weights: weights of a decoder with the constructor's structure.
      prompts: ids of each prompt.
      progress: called with the work done since its last call.
      stop: strings that end a continuation, besides the end ids.

    Raises:
      ValueError: a prompt has no tokens after the prefix.
    """
    waves = [self._one_wave(prompts)]
    return self.generate_waves(weights, waves, progress, stop)

  def generate_waves(
    self,
    weights: nnx.State,
    waves: Sequence[Wave],
    progress: Progress = lambda work: None,
    stop: Stop | None = None,
    known: AbstractSet[int] = frozenset(),
    found: Found | None = None,
  ) -> Generations:
    """Continues prompts greedily, one wave after the other.

    Slots are refilled across waves. If rows have targets, the results of the
    prompt hook are these targets' likelihoods, see `row_likelihood`.

    Args:
      weights: weights of a decoder with the constructor's structure.
      waves: the prompts, in rows of one index each; the engine's shapes have
        cache lengths for them, padded prefixes included.
      progress: called with the work done since its last call.
      stop: strings that end a continuation, besides the end ids.
      known: prompts to leave out, by index; their results are zeros. The others
        are read in the same packed rows as with them.
      found: called with the results of prompts as soon as they are known, by
        one thread at a time.

    Raises:
      ValueError: a prompt has no tokens after its prefix.
    """
    rows = sorted(
      (row for wave in waves for row in wave.rows), key=lambda row: row.indices
    )
    if empty := [
      i
      for i, row in enumerate(rows)
      if row.num_prompt_tokens <= row.prefix_length
    ]:
      raise ValueError(f'prompt {empty[0]} has no tokens')
    report = Reporter(self._costs, progress)
    result = Collector(rows, report, self._programs.scores_prompt, found)
    has_targets = any(row.last for row in rows)
    queues = [
      [
        step
        for step in self._steps.of_worker(waves, number)
        if not set(step.packed.indices) <= known
      ]
      for number in range(self._num_workers)
    ]
    users = [{step.wave for step in queue} for queue in queues]
    prefixes = [
      workers.Shared(
        functools.partial(self._read_prefixes, weights, wave, report),
        sum(number in some for some in users),
      )
      for number, wave in enumerate(waves)
    ]

    def work(number: int, unless_stopped: workers.UnlessStopped) -> None:
      slots = Slots(
        self._programs,
        weights,
        self._sizes,
        stop,
        known,
        self._fewer_slots_pay_off,
      )
      if number and queues[number]:
        # While another worker compiles the program that reads prompts.
        slots.reserve(queues[number][0].cache_length)
        slots.compile()

      prefill = functools.partial(self._prefill, weights, rows, has_targets)
      self._decode(
        queues[number], prefixes, prefill, slots, result, unless_stopped
      )

    workers.run(work, self._num_workers)
    return result.finish()

  def _fewer_slots_pay_off(
    self, num_slots: int, fewer: int, cache_length: int, num_steps: int
  ) -> bool:
    """See `Slots`; two programs have to be compiled."""
    saved = self._costs.step_bytes(num_slots, cache_length)
    saved -= self._costs.step_bytes(fewer, cache_length)
    return num_steps * saved > 2 * self._compile_bytes

  def _prefill(
    self,
    weights: nnx.State,
    rows: Sequence[Row],
    has_targets: bool,
    step: Step,
    known: Prefixes | None,
  ) -> Any:
    """Reads the prompts of a step, and scores the targets of rows with some."""
    scored = None
    if has_targets:
      scored = waves_lib.fill_scored(step.packed, rows, step.num_prompts)
    inputs = (*waves_lib.fill(step.packed, rows), scored)
    return self._programs.prefill(
      weights,
      known,
      *mesh_lib.shard_batch(self._mesh, inputs),
      step.num_prompts,
    )

  def _one_wave(self, prompts: Tokens) -> Wave:
    """All prompts; after the engine's prefix, if it has one.

    Raises:
      ValueError: a prompt does not start with it.
    """
    size = len(self._prefix)
    rows = [Row.of_prompt(i, ids, size) for i, ids in enumerate(prompts)]
    for i, row in enumerate(rows):
      if row.inputs[:size] != self._prefix:
        raise ValueError(f'row {i} does not start with the prefix')
    prefixes = [self._prefix] if size and rows else []
    num_tokens = math.ceil(self._max_rows * self._shapes.mean)
    return Wave(prefixes, size, len(prefixes), rows, self._shapes, num_tokens)

  def _read_prefixes(
    self, weights: nnx.State, wave: Wave, report: Reporter
  ) -> Prefixes | None:
    """Reads the prefixes of a wave, if it has any."""
    if not wave.prefixes:
      return None
    tokens_NxP, mask_NxP = wave.padded_prefixes()
    place = mesh_lib.sharding(self._mesh, ('batch', 'length'), tokens_NxP.shape)
    prefixes = self._programs.read_prefixes(
      weights, *mesh_lib.put((tokens_NxP, mask_NxP), place)
    )
    scored = self._programs.scores_prompt
    report.prefilled(
      [throughput.Span(0, len(ids), scored * len(ids)) for ids in wave.prefixes]
    )
    return prefixes

  def _cache_length(self, num_tokens: int) -> int:
    """Cache entries for this many tokens, those of a prefix included."""
    size = len(self._prefix)
    return size + self._shapes.cache_length(num_tokens - size)

  def _decode(
    self,
    queue: Sequence[Step],
    prefixes: Sequence[workers.Shared[Prefixes | None]],
    prefill: Callable[[Step, Prefixes | None], Any],
    slots: Slots,
    result: Collector,
    unless_stopped: workers.UnlessStopped,
  ) -> None:
    """Prefills the rows of a queue and decodes them in slots."""
    pending = []
    in_flight = mesh_lib.InFlight()
    known: Prefixes | None = None
    wave = -1
    for number, step in unless_stopped(enumerate(queue)):
      slots.reserve(step.cache_length)
      if step.wave != wave:
        known = None  # Frees the memory for the next ones.
        known, wave = prefixes[step.wave].take(), step.wave
      prefilled, found = prefill(step, known)
      slots.insert(step.packed, prefilled)
      in_flight.add(prefilled.token_BxS)
      del prefilled  # Frees the memory for the next ones.
      pending.append((step.packed, found))

      if number + 1 == len(queue):
        all_ended = slots.finish()
      else:
        # The rows left active and the next prompts must fit into the slots, of
        # which there are fewer if their cache is longer.
        following = queue[number + 1]
        num_slots = self._sizes.num_slots(following.cache_length)
        max_active = num_slots - len(following.packed.indices)
        if slots.num_active <= max_active:
          continue
        all_ended = slots.decode_until(max_active)
      for ended in all_ended:
        result.add_ended(ended)
      # After decoding, so that the device does not wait for the host.
      while pending:
        result.add_prompts(*pending.pop())
