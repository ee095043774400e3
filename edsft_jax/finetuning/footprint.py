"""Counts the device memory that finetuning needs, from its arrays' shapes.

A calculation, not a measurement: it leaves out what the compiler adds and the
programs themselves.
"""

from collections.abc import Callable, Collection, Sequence
import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.finetuning import loss as loss_lib
from edsft_jax.finetuning.batches import Layout, MicroBatch
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.trainer import Hyperparameters, Trainer
from edsft_jax.models import layer_loop, placement
from edsft_jax.models.attention import KEPT_SCORES_LENGTH, QUERY_BLOCK

# Limits of a container's memory, in both versions of Linux's control groups.
_LIMITS = (
  pathlib.Path('/sys/fs/cgroup/memory.max'),
  pathlib.Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)
# Share of a device's memory; the rest is left to what is not counted.
USABLE = 0.9


class Setup(NamedTuple):
  """What the memory depends on, besides the shape of micro-batches.

  Attributes:
    config: the model.
    dtype: model.dtype.
    hyperparameters: what is trained.
    options: how a step is divided.
    mesh: the mesh of the weights.
    of_platform: that of the devices; None: that of the mesh.
  """

  config: models.DecoderConfig
  dtype: str
  hyperparameters: Hyperparameters
  options: MemoryOptions
  mesh: jax.sharding.Mesh
  of_platform: str | None = None

  @property
  def platform(self) -> str:
    """Platform of the devices, such as 'cpu'."""
    return self.of_platform or self.mesh.devices.flat[0].platform


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device.

  Attributes:
    weights: those that are not trained, in model.dtype.
    trained: those that are, in float32.
    optimizer: AdamW's moments.
    gradients: sums over the micro-batches of a step, in float32.
    residuals: what the forward pass of a micro-batch keeps for the backward
      pass.
    recomputed: what one layer keeps when remat computes it again.
    scores: of one layer's attention, what its backward pass adds to what was
      kept.
    stacked: the copies of weights that a scan over layers reads, and the
      gradients of the trained ones.
    logits: those that exist at once, with their gradient.
  """

  weights: int
  trained: int
  optimizer: int
  gradients: int
  residuals: int
  recomputed: int
  scores: int
  stacked: int
  logits: int

  @property
  def fixed(self) -> int:
    """What does not depend on the micro-batch."""
    return self.weights + self.trained + self.optimizer + self.gradients

  @property
  def total(self) -> int:
    """The sum."""
    return sum(dataclasses.astuple(self))


def count(setup: Setup, shape: tuple[int, int], most_logits: int = 0) -> Memory:
  """Counts the memory for micro-batches of a shape.

  Traces the loss with one and with two layers; nothing is computed. Of the
  mesh's axes, data and fsdp divide the rows, and fsdp and tensor the weights;
  residuals are counted as if tensor did not divide them.

  Args:
    setup: model and options.
    shape: rows, over all devices, and length.
    most_logits: see `loss.loss`.
  """
  rows, length = shape
  rows //= mesh_lib.batch_multiple(setup.mesh)
  vocab_size = setup.config.vocab_size
  one, two = (abstract_trainer(setup, number) for number in (1, 2))

  def of_all_layers(of_one: int, of_two: int) -> int:
    return of_one + (setup.config.num_layers - 1) * (of_two - of_one)

  def residuals(trainer: Trainer) -> int:
    return _num_bytes(trainer.residuals(abstract_batch(rows, length)))

  recomputed = 0
  if setup.options.remat == 'layer':
    keeping_all = dataclasses.replace(setup.options, remat='none')
    all_of_one, all_of_two = (
      residuals(abstract_trainer(setup._replace(options=keeping_all), number))
      for number in (1, 2)
    )
    recomputed = all_of_two - all_of_one
  frozen_of_each = [_num_bytes(t.frozen) for t in (one, two)]
  trained_of_each = [_num_bytes(t.state_shapes.params) for t in (one, two)]
  trained = of_all_layers(*trained_of_each)
  chunk = loss_lib.chunk_size(1, rows * length, vocab_size, most_logits)
  return Memory(
    weights=of_all_layers(*frozen_of_each),
    trained=trained,
    optimizer=2 * trained,
    gradients=trained,
    residuals=of_all_layers(residuals(one), residuals(two)),
    recomputed=recomputed,
    scores=rows * _scores(setup, length),
    stacked=_stacked(setup, one, two),
    logits=2 * jnp.dtype(jnp.float32).itemsize * chunk * vocab_size,
  )


def _scores(setup: Setup, length: int) -> int:
  """See `Memory.scores`, for one row."""
  ends = [*range(QUERY_BLOCK, length, QUERY_BLOCK), length]
  pairs = [(end - start) * end for start, end in itertools.pairwise([0, *ends])]
  # Blocks do not depend on each other: XLA on CPUs may run all of them at once.
  at_once = sum(pairs) if setup.platform == 'cpu' else pairs[-1]
  # Their gradients; scores that were not kept, and their exponentials.
  arrays = 1 if length <= KEPT_SCORES_LENGTH else 3
  itemsize = jnp.dtype(jnp.float32).itemsize
  return arrays * setup.config.num_heads * at_once * itemsize


def _stacked(setup: Setup, one: Trainer, two: Trainer) -> int:
  """See `Memory.stacked`, from trainers with one and with two layers."""
  num_layers = setup.config.num_layers

  def of_layers(count: Callable[[Trainer], int]) -> int:
    return num_layers * (count(two) - count(one))

  def whole(trainer: Trainer) -> int:
    arrays = [*trainer.frozen, *trainer.state_shapes.params]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)

  if not layer_loop.is_scanned(num_layers, of_layers(whole), setup.platform):
    return 0
  return of_layers(
    lambda trainer: (
      _num_bytes(trainer.frozen) + 2 * _num_bytes(trainer.state_shapes.params)
    )
  )


def shapes(
  lengths: Collection[int], batch_size: int, layout: Layout
) -> list[tuple[int, int]]:
  """Shapes of the micro-batches that may need the most memory.

  The longest rows, the longest for which attention keeps its scores, and those
  with the most slots; each with as many rows as a step can have.

  Args:
    lengths: tokens of the examples.
    batch_size: examples per step.
    layout: how examples become micro-batches.
  """
  groups = layout.groups
  most_tokens = batch_size * max(lengths)
  padded = {layout.length(length, most_tokens) for length in lengths}
  most_rows = -(-batch_size // groups) * groups
  rows = {length: min(layout.rows(length), most_rows) for length in padded}
  kept = [length for length in padded if length <= KEPT_SCORES_LENGTH]
  fullest = max(padded, key=lambda length: (rows[length] * length, length))
  chosen = {max(padded), max(kept, default=fullest), fullest}
  return [(rows[length], length) for length in sorted(chosen)]


def available(mesh: jax.sharding.Mesh) -> int:
  """Bytes of each device; on a CPU its share of `host_memory`."""
  stats = mesh.local_devices[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return int(stats['bytes_limit'])
  return host_memory() // len(mesh.local_devices)


def host_memory(limits: Sequence[pathlib.Path] = _LIMITS) -> int:
  """Bytes that this process may have: the machine's, or fewer by a limit.

  Args:
    limits: files with the limits of its control group, if there are any.
  """
  import resource  # Not on Windows.

  sizes = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  # Of virtual memory, as `ulimit -v` sets it.
  if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) > 0:
    sizes.append(most)
  for file in limits:
    with contextlib.suppress(OSError, ValueError):  # 'max': no limit.
      sizes.append(int(file.read_text()))
  return min(sizes)


def describe(
  needed: Memory, available: int, setup: Setup, shape: tuple[int, int]
) -> list[str]:
  """Lines for the log; the second is a warning if it does not fit."""
  gib = 2**30
  parts = ', '.join(
    f'{name} {size / gib:.1f}'
    for name, size in dataclasses.asdict(needed).items()
    if size
  )
  lines = [
    f'needs {needed.total / gib:.1f} GiB per device by count, of '
    f'{available / gib:.1f} GiB ({parts}; micro-batches of {shape[0]} x '
    f'{shape[1]:,} tokens)'
  ]
  if needed.total > USABLE * available:
    fewer = ''
    if shape[0] > mesh_lib.batch_multiple(setup.mesh):
      fewer = 'a lower finetuning.micro_batch_size'
    remedies = setup.options.remedies(fewer)
    lines.append(
      f'this may not fit: set {" or ".join(remedies)} if it runs out of memory'
    )
  return lines


def abstract_trainer(setup: Setup, num_layers: int) -> Trainer:
  """A trainer of a model with this many layers; only adapters have arrays."""
  weight_dtype, activation_dtype = models.parse_dtype(setup.dtype)
  decoder = models.Decoder(
    dataclasses.replace(setup.config, num_layers=num_layers),
    rngs=None,
    dtype=weight_dtype,
    activation_dtype=activation_dtype,
  )
  placed = [
    (
      path,
      variable.replace(
        jax.ShapeDtypeStruct(variable.shape, weight_dtype, sharding=sharding)
      ),
    )
    for path, variable, sharding in placement.placed(decoder, setup.mesh)
  ]
  nnx.update(decoder, nnx.from_flat_state(placed))
  return Trainer(
    lambda: decoder, setup.hyperparameters, setup.mesh, setup.options
  )


def abstract_batch(rows: int, length: int) -> MicroBatch:
  """A micro-batch without arrays, in one group."""

  def ids(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)

  slots, targets = ids(rows, length), ids(1, rows * length)
  return MicroBatch(slots, slots, slots, targets, targets, ids(1))


def _num_bytes(arrays: Sequence[Any]) -> int:
  """Bytes on each device."""
  return sum(
    math.prod(
      x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    )
    * x.dtype.itemsize
    for x in arrays
  )
