"""Runs prompts through a model: prefill, continuous batching.

Rows end at different steps, so a batch that waits for its last row mostly
computes rows that have ended. Instead, the next few prompts are prefilled and
inserted as soon as there are slots for them. When the prompts of one
cache-length bucket run out, the remaining rows move to the next larger one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import numpy as np

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.inference import shapes as shapes_lib
from edsft_jax.inference import throughput, workers
from edsft_jax.inference.collect import (
  Collector,
  Generations,
  Progress,
  Reporter,
  Rows,
)
from edsft_jax.inference.decoding import GreedyDecoding
from edsft_jax.inference.prefixes import (
  MIN_LENGTH,
  Prefix,
  can_share,
  common_prefix,
)
from edsft_jax.inference.programs import CompiledPrograms, Hooks, Programs
from edsft_jax.inference.slots import Slots, Stop

Tokens = Sequence[Sequence[int] | np.ndarray]

# FLOP/s that small batches reach, by platform: two CPU cores, and any kind of
# accelerator. Only the order of magnitude matters.
_FLOPS = {'cpu': 1.5e11}
_ACCELERATOR_FLOPS = 1e14
# Seconds to compile a program, and the overhead of calling one.
_COMPILE_SECONDS = 1.0
_CALL_SECONDS = 0.01
# Prompt tokens per call, by platform, from which on reading the weights takes
# at most a tenth of the time of the products: ten times FLOP/s over bytes/s.
_READ_TOKENS = {'cpu': 512}
_ACCELERATOR_READ_TOKENS = 4096


def choose_shapes(
  decoder: models.Decoder,
  mesh: jax.sharding.Mesh,
  lengths: Sequence[int],
  num_passes: int = 1,
) -> shapes_lib.Shapes:
  """Chooses the shapes for prompts of these lengths and this model.

  A further program pays off if computing the padding that it saves would take
  longer than compiling it: soon for a large model, late for a tiny one.

  Args:
    decoder: the model.
    mesh: the devices.
    lengths: tokens of each prompt.
    num_passes: how often the prompts will run, for example once per model.
  """
  options = shapes_lib.ShapeOptions(
    compile_tokens=_tokens_in(_COMPILE_SECONDS, decoder, mesh) / num_passes
  )
  return shapes_lib.Shapes.of(lengths, options)


def choose_prefix(
  decoder: models.Decoder, mesh: jax.sharding.Mesh, prompts: Tokens
) -> list[int]:
  """The tokens that all prompts start with, for `Engine`.

  None if they are few, if reading them for each prompt takes no longer than
  compiling the program that reads them once, or if the model cannot.

  Args:
    decoder: the model.
    mesh: the devices.
    prompts: ids of each prompt.
  """
  prefix = common_prefix(prompts) if can_share(decoder.config) else []
  num_saved = len(prefix) * len(prompts)
  pays_off = num_saved > _tokens_in(_COMPILE_SECONDS, decoder, mesh)
  return prefix if pays_off and len(prefix) >= MIN_LENGTH else []


def _tokens_in(
  seconds: float, decoder: models.Decoder, mesh: jax.sharding.Mesh
) -> float:
  """Number of tokens that the layers process in about this time."""
  platform = mesh.devices.flat[0].platform
  flops = _FLOPS.get(platform, _ACCELERATOR_FLOPS) * mesh.size
  costs = throughput.Costs.of(decoder)
  return seconds * flops / (2 * costs.num_layer_weights)


def read_tokens(decoder: models.Decoder, mesh: jax.sharding.Mesh) -> int:
  """Prompt tokens per call that make up for its overhead."""
  platform = mesh.devices.flat[0].platform
  tokens = _READ_TOKENS.get(platform, _ACCELERATOR_READ_TOKENS)
  return max(
    tokens * mesh_lib.batch_multiple(mesh),
    int(_tokens_in(_CALL_SECONDS, decoder, mesh)),
  )


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
  ):
    """Compiles nothing yet.

    Args:
      decoder: gives the structure; its weights are on the mesh.
      mesh: batches are split over its axes data and fsdp.
      shapes: the padded lengths, without the prefix.
      end_ids: ids that end a continuation.
      max_new_tokens: tokens per continuation at most, end token included.
      batch_tokens: prompt and new tokens per batch, padding included.
      max_rows: rows per call at most.
      hooks: functions to compute for each row.
      layer: layer of the prompt hook's features, see Decoder.__call__.
      prefix: tokens that all rows start with, read once per call.
    """
    self.batch_tokens = batch_tokens
    self._mesh = mesh
    self._shapes = shapes
    self._prefix = list(prefix)
    self._num_workers = workers.num_workers(mesh)
    # Each part of a split batch reads all weights.
    self._costs = throughput.Costs.of(decoder, mesh_lib.batch_multiple(mesh))
    self._sizes = shapes_lib.BatchSizes(
      batch_tokens // self._num_workers,
      max_new_tokens,
      mesh_lib.batch_multiple(mesh),
      -(-max_rows // self._num_workers),
      read_tokens=read_tokens(decoder, mesh),
    )
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
    """Applies the prompt hook to prompts that are not continued.

    Args:
      weights: weights of a decoder with the constructor's structure.
      prompts: ids of each prompt.
      progress: called with the work done since its last call.

    Returns:
      A pytree of [n, ...] arrays, in the order of the prompts.
    """
    found = Rows(len(prompts))
    report = self._reporter(progress)
    scored = self._programs.scores_prompt
    prefix, prompts_after = self._read_prefix(weights, prompts)

    def collect(chunk: shapes_lib.Chunk, result: Any) -> None:
      found.put(chunk.indices, jax.device_get(result))
      lengths = [len(prompts[i]) for i in chunk.indices]
      report.read(lengths, lengths if scored else [0] * len(lengths))

    self._run_chunks(
      [len(ids) for ids in prompts_after],
      lambda chunk: self._programs.read(
        weights, prefix, *self._pad(chunk, prompts_after)
      ),
      collect,
    )
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
    lengths = [len(ids) for ids in prompts]
    prefix, prompts = self._read_prefix(weights, prompts)
    if empty := [i for i, ids in enumerate(prompts) if not len(ids)]:
      raise ValueError(f'prompt {empty[0]} has no tokens')
    result = Collector(
      lengths, self._reporter(progress), self._programs.scores_prompt
    )
    in_order = np.argsort(lengths, kind='stable')

    def work(number: int, unless_stopped: workers.UnlessStopped) -> None:
      # Strided over the sorted prompts, so that workers get equal shares.
      mine = in_order[number :: self._num_workers].tolist()
      queue = self._queue(prompts, mine)
      slots = Slots(self._programs, weights, self._sizes, stop)
      self._decode(
        weights, prefix, prompts, queue, slots, result, unless_stopped
      )

    workers.run(work, self._num_workers)
    return result.finish()

  def _reporter(self, progress: Progress) -> Reporter:
    return Reporter(self._costs, progress, len(self._prefix))

  def _read_prefix(
    self, weights: nnx.State, rows: Tokens
  ) -> tuple[Prefix | None, Tokens]:
    """Reads the prefix, if there is one; returns rows without it.

    Raises:
      ValueError: a row does not start with it.
    """
    if not self._prefix or not rows:
      return None, rows
    size = len(self._prefix)
    for i, ids in enumerate(rows):
      if list(ids[:size]) != self._prefix:
        raise ValueError(f'row {i} does not start with the prefix')
    tokens_1xP = np.array([self._prefix], np.int32)
    prefix = self._programs.read_prefix(weights, tokens_1xP)
    return prefix, [ids[size:] for ids in rows]

  def _cache_length(self, num_tokens: int) -> int:
    """Cache entries for the prefix and this many tokens after it."""
    return len(self._prefix) + self._shapes.cache_length(num_tokens)

  def _queue(
    self, prompts: Tokens, indices: Sequence[int]
  ) -> list[tuple[shapes_lib.Chunk, int]]:
    """Chunks to prefill with their cache lengths, the shortest first."""
    shapes, sizes = self._shapes, self._sizes
    queue = shapes_lib.chunks(
      [len(ids) for ids in prompts],
      indices,
      shapes,
      lambda length: sizes.to_prefill(length, self._cache_length(length)),
    )
    caches = [self._cache_length(chunk.length) for chunk in queue]
    if queue and len(indices) <= sizes.num_slots(caches[-1]):
      # All rows fit into the slots at once: no need to move any.
      caches = [caches[-1]] * len(caches)
    return list(zip(queue, caches, strict=True))

  def _decode(
    self,
    weights: nnx.State,
    prefix: Prefix | None,
    prompts: Tokens,
    queue: list[tuple[shapes_lib.Chunk, int]],
    slots: Slots,
    result: Collector,
    unless_stopped: workers.UnlessStopped,
  ) -> None:
    """Prefills the chunks of a queue and decodes them in slots."""
    pending = []
    in_flight = mesh_lib.InFlight()
    for number, (chunk, cache_length) in unless_stopped(enumerate(queue)):
      slots.reserve(cache_length)
      prefilled, found = self._programs.prefill(
        weights, prefix, *self._pad(chunk, prompts)
      )
      slots.insert(chunk, prefilled)
      in_flight.add(prefilled.last_token_B)
      pending.append((chunk, found))

      max_active = 0
      if number + 1 < len(queue):
        # The rows left active and the next chunk must fit into the slots, of
        # which there are fewer if its cache is longer.
        next_chunk, next_cache_length = queue[number + 1]
        num_slots = self._sizes.num_slots(next_cache_length)
        max_active = num_slots - len(next_chunk.indices)
      if slots.num_active > max_active:
        for ended in slots.decode_until(max_active):
          result.add_ended(ended)
        # After decoding, so that the device does not wait for the host.
        while pending:
          result.add_prompts(*pending.pop())

  def _run_chunks(
    self,
    lengths: Sequence[int],
    dispatch: Callable[[shapes_lib.Chunk], Any],
    collect: Callable[[shapes_lib.Chunk, Any], None],
  ) -> None:
    """Runs chunks of all rows through a program that keeps no state."""
    chunks = shapes_lib.chunks(
      lengths, range(len(lengths)), self._shapes, self._sizes.to_read
    )

    def work(number: int, unless_stopped: workers.UnlessStopped) -> None:
      pending = None
      for chunk in unless_stopped(chunks[number :: self._num_workers]):
        result = dispatch(chunk)
        # Collects one chunk while the device computes the next.
        if pending is not None:
          collect(*pending)
        pending = chunk, result
      if pending is not None:
        collect(*pending)

    workers.run(work, self._num_workers)

  def _pad(
    self, chunk: shapes_lib.Chunk, tokens: Tokens
  ) -> tuple[jax.Array, jax.Array]:
    return mesh_lib.shard_batch(
      self._mesh,
      shapes_lib.pad_left(
        [tokens[i] for i in chunk.indices], chunk.length, chunk.num_rows
      ),
    )
