"""The optimizer step, compiled once per batch shape for all cells."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import optax

from edsft_jax import console, errors, models, processes
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import batches
from edsft_jax.finetuning.batches import MicroBatch
from edsft_jax.finetuning.loss import loss as summed_loss
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.inference.workers import Compiled
from edsft_jax.models.responses import Example

METHODS = ('lora', 'full')
# Processes run out of memory at nearly the same time: how long to wait for the
# others before treating it as one process's problem.
_OUT_OF_MEMORY_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """How every cell is finetuned; edsft_jax/config.py documents each field."""

  method: str
  lora_rank: int
  lora_alpha: float
  lora_dropout: float
  rslora: bool
  lora_targets: tuple[str, ...]
  epochs: int
  batch_size: int
  max_length: int
  learning_rate: float
  schedule: str
  warmup_fraction: float
  weight_decay: float
  clip_norm: float


class State(NamedTuple):
  """The trained parameters and the optimizer's state."""

  params: list[jax.Array]
  opt_state: optax.OptState


class Trainer:
  """The base model with a compiled optimizer step.

  Cells share the compiled programs: the learning rate is an argument, and the
  base weights are the same for all.

  Attributes:
    hyperparameters: those of every cell.
    gradients: (params, frozen, micro-batch) -> loss and its gradients, summed
      over the response tokens of a micro-batch.
  """

  def __init__(
    self,
    decoder: models.Decoder,
    hyperparameters: Hyperparameters,
    mesh: jax.sharding.Mesh,
    memory: MemoryOptions | None = None,
    adapter: pathlib.Path | None = None,
  ):
    """Compiles nothing yet.

    Args:
      decoder: the base model as loaded; its weights are not changed.
      hyperparameters: those of every cell.
      mesh: the mesh of the decoder's weights.
      memory: how a step is divided; None: as by default.
      adapter: a PEFT adapter to start from, of these hyperparameters; None: new
        adapters.
    """
    self.hyperparameters = hyperparameters
    self._mesh = mesh
    memory = memory or MemoryOptions()
    self._remat = memory.remat == 'layer'
    self._layout = memory.layout(mesh)
    self._halved = False
    self._seen: set[tuple[int, ...]] = set()
    self._adapter = adapter
    self._base_graph, self._base_weights = nnx.split(decoder)
    graph, params, frozen = self._trainable(seed=0)
    self._frozen = jax.tree.leaves(frozen)
    self._dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
    structures = jax.tree.structure(params), jax.tree.structure(frozen)
    self._merge = functools.partial(_merge, graph, *structures)
    self._optimizer = optax.chain(
      optax.clip_by_global_norm(hyperparameters.clip_norm),
      optax.scale_by_adam(),
      optax.add_decayed_weights(hyperparameters.weight_decay, mask=_matrices),
    )
    shardings = jax.tree.map(
      lambda leaf: leaf.sharding, self.init_state(seed=0)
    )
    self.gradients = jax.jit(
      self._loss_and_gradients, out_shardings=(None, shardings.params)
    )
    self._add = jax.jit(_add, donate_argnums=0)
    self._update = Compiled(
      jax.jit(
        self._updated,
        donate_argnames='state',
        out_shardings=(shardings, None),
      )
    )
    self._nll = Compiled(jax.jit(self._response_nll))

  def init_state(self, seed: int) -> State:
    """The state before the first step, initialised by the seed."""
    _, params, _ = self._trainable(seed)
    # In float32 whatever the model's dtype, so that small updates are not lost.
    params = [
      jnp.array(leaf, jnp.float32, copy=True)
      for leaf in jax.tree.leaves(params)
    ]
    params = jax.tree.map(self._place, params)
    opt_state = jax.tree.map(self._place, self._optimizer.init(params))
    return State(params, opt_state)

  def step(
    self,
    state: State,
    examples: Sequence[Example],
    learning_rate: np.float32,
    dropout_key: jax.Array | None = None,
  ) -> tuple[State, jax.Array]:
    """One AdamW step; `state` is donated.

    If the device runs out of memory, the step is repeated with half the rows
    per micro-batch, once in the life of this trainer. Without a key for it,
    there is no dropout.

    Returns:
      The new state, and the loss before the step: the mean over the examples'
      response tokens, a float32 scalar on the device that may still be pending.

    Raises:
      InputError: there is not enough memory for half the rows either.
    """
    num_targets = max(sum(e.num_response for e in examples), 1)
    while True:
      try:
        sums = self._summed(state.params, examples, dropout_key)
        break
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        if not processes.barrier_within('no memory', _OUT_OF_MEMORY_SECONDS):
          raise errors.InputError(
            f'process {processes.index()} alone runs out of memory: use hosts '
            'with the same devices, or a lower finetuning.micro_batch_size'
          ) from error
      self._halve(examples)
    return self._update(state, *sums, np.float32(num_targets), learning_rate)

  def lower(self, batch: MicroBatch) -> jax.stages.Lowered:
    """The program of `gradients` for micro-batches of this shape."""
    params = self.init_state(0).params
    return self.gradients.lower(params, self._frozen, batch)

  def _summed(
    self,
    params: list[jax.Array],
    examples: Sequence[Example],
    dropout_key: jax.Array | None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Loss and gradients, summed over the response tokens of the examples."""
    sums = None
    for batch in batches.micro_batches(examples, self._layout):
      shape = batch.tokens.shape
      batch = mesh_lib.shard_batch(self._mesh, batch)
      args = params, self._frozen, batch, dropout_key
      if shape not in self._seen:
        mesh_lib.compile_together(self.gradients, *args)
      part = self.gradients(*args)
      sums = part if sums is None else self._add(sums, part)
      if shape not in self._seen:
        # Only a shape's first run can find that there is too little memory.
        jax.block_until_ready(sums)
        self._seen.add(shape)
    assert sums is not None
    return sums

  def _halve(self, examples: Sequence[Example]) -> None:
    """Halves the rows of micro-batches, if that was not done before.

    Raises:
      InputError: it was, or there is only one row per device.
    """
    longest = batches.bucket(max(len(e.tokens) for e in examples))
    now = self._layout.rows(longest)
    halved = self._layout.halved(longest)
    if self._halved or halved is None:
      fewer = f'finetuning.micro_batch_size={max(now // 2, 1)}, '
      raise errors.InputError(
        f'finetuning runs out of memory with {now} rows of {longest:,} tokens '
        f'at a time: set {fewer if halved else ""}'
        "finetuning.remat='layer' or a lower finetuning.max_length"
      )
    self._layout, self._halved = halved, True
    console.say(
      'finetune',
      f'out of memory with micro-batches of {now} rows: going on with '
      f'{halved.rows(longest)}',
    )

  def nll(self, state: State, examples: Sequence[Example]) -> float:
    """Negative log-likelihood of the examples' responses, summed, in nats."""
    parts = [
      self._nll(
        state.params, self._frozen, mesh_lib.shard_batch(self._mesh, batch)
      )
      for batch in batches.micro_batches(examples, self._layout)
    ]
    return float(sum(parts))

  def decoder(self, state: State) -> models.Decoder:
    """The model with the trained parameters, in the dtype of the base model."""
    return self._merge(self._as_loaded(state.params), self._frozen)

  def _trainable(self, seed: int) -> tuple[nnx.GraphDef, Any, Any]:
    decoder = nnx.merge(self._base_graph, self._base_weights)
    if self.hyperparameters.method == 'full':
      return _split(decoder, nnx.Param)
    if self._adapter is not None:
      models.load_adapter(decoder, self._adapter)
    else:
      models.add_lora(
        decoder,
        self.hyperparameters.lora_rank,
        self.hyperparameters.lora_alpha,
        self.hyperparameters.lora_targets,
        rngs=nnx.Rngs(seed),
        rslora=self.hyperparameters.rslora,
      )
    return _split(decoder, models.LoRAParam)

  def _place(self, leaf: jax.Array) -> jax.Array:
    """Replicates a leaf over the mesh, unless it is placed there already."""
    if isinstance(leaf.sharding, NamedSharding):
      return leaf
    return mesh_lib.replicate(self._mesh, leaf)

  def _as_loaded(self, params: list[jax.Array]) -> list[jax.Array]:
    return [p.astype(d) for p, d in zip(params, self._dtypes, strict=True)]

  def _loss_and_gradients(
    self,
    params: list[jax.Array],
    frozen: list[jax.Array],
    batch: MicroBatch,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    def loss(params: list[jax.Array]) -> jax.Array:
      decoder = self._merge(self._as_loaded(params), frozen)
      if dropout_key is not None:
        rate = self.hyperparameters.lora_dropout
        models.set_dropout(
          decoder, rate, dropout_key, jnp.asarray(batch.numbers)
        )
      return summed_loss(decoder, batch, self._remat)

    return jax.value_and_grad(loss)(params)

  def _response_nll(
    self, params: list[jax.Array], frozen: list[jax.Array], batch: MicroBatch
  ) -> jax.Array:
    decoder = self._merge(self._as_loaded(params), frozen)
    return summed_loss(decoder, batch)

  def _updated(
    self,
    state: State,
    loss: jax.Array,
    gradients: list[jax.Array],
    num_targets: jax.Array,
    learning_rate: jax.Array,
  ) -> tuple[State, jax.Array]:
    gradients = [g / num_targets for g in gradients]
    direction, opt_state = self._optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = [
      p - learning_rate * d
      for p, d in zip(state.params, direction, strict=True)
    ]
    return State(params, opt_state), loss / num_targets


def _add(x: Any, y: Any) -> Any:
  return jax.tree.map(jnp.add, x, y)


def _split(
  decoder: models.Decoder, trained: type[nnx.Variable]
) -> tuple[nnx.GraphDef, Any, Any]:
  """The structure, the trained parameters and all others."""
  graph, *states = nnx.split(decoder, trained, ...)
  params, frozen = states
  return graph, params, frozen


def all_finite(state: State) -> bool:
  """Whether every trained parameter is finite; waits for the last step."""
  return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in state.params)


def _merge(
  graph: nnx.GraphDef,
  params_structure: Any,
  frozen_structure: Any,
  params: list[jax.Array],
  frozen: list[jax.Array],
) -> models.Decoder:
  return nnx.merge(
    graph,
    jax.tree.unflatten(params_structure, params),
    jax.tree.unflatten(frozen_structure, frozen),
  )


def _matrices(params: list[jax.Array]) -> list[bool]:
  """Mask for weight decay, which applies to matrices, not norms and biases."""
  return [leaf.ndim > 1 for leaf in params]
