"""The optimizer step, compiled once per batch shape for all cells."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import pathlib
import threading
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax.extend.core import Literal
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from edsft_jax import mesh as mesh_lib
from edsft_jax import models
from edsft_jax.finetuning.batches import MicroBatch
from edsft_jax.finetuning.fitting import Fitting, Shape
from edsft_jax.finetuning.loss import loss as summed_loss
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.inference.workers import Compiled
from edsft_jax.models.responses import Example

METHODS = ('lora', 'full')


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
  base weights are the same for all. Full finetuning keeps no base weights next
  to those that it trains, and loads them again for each cell. Threads can train
  cells at the same time.

  Attributes:
    hyperparameters: those of every cell.
    config: the base model's.
    state_shapes: shape, dtype and sharding of every array of a `State`.
    frozen: the weights that are not trained.
    gradients: (sums, params, frozen, micro-batch) -> this micro-batch's loss
      and gradients, added to the sums, which are donated; or alone, if the sums
      are None.
  """

  def __init__(
    self,
    load: Callable[[], models.Decoder],
    hyperparameters: Hyperparameters,
    mesh: jax.sharding.Mesh,
    memory: MemoryOptions | None = None,
    adapter: pathlib.Path | None = None,
  ):
    """Loads the base model; compiles nothing yet.

    Args:
      load: returns the base model, whose weights are not changed.
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
    self._fitting = Fitting(memory, mesh, hyperparameters.method)
    self._seen: set[tuple[bool, Shape]] = set()
    self._nll_seen: set[Shape] = set()
    self._compiling = threading.RLock()
    self._adapter = adapter
    self._load = load
    self._base: models.Decoder | None = load()
    self.config = self._base.config
    graph, params, frozen = self._trainable(seed=0)
    if hyperparameters.method == 'full':
      self._base = None
    self.frozen = jax.tree.leaves(frozen)
    self._dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
    structures = jax.tree.structure(params), jax.tree.structure(frozen)
    self._merge = functools.partial(_merge, graph, *structures)
    self._optimizer = optax.chain(
      optax.clip_by_global_norm(hyperparameters.clip_norm),
      optax.scale_by_adam(),
      optax.add_decayed_weights(hyperparameters.weight_decay, mask=_matrices),
    )
    self.state_shapes = self._shapes(jax.tree.leaves(params))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)
    sums_sharding = (self._replicated, shardings.params)
    self._zeros = jax.jit(self._zero_sums, out_shardings=sums_sharding)
    self.gradients = jax.jit(
      self._add_gradients, donate_argnums=0, out_shardings=sums_sharding
    )
    self._update = Compiled(
      jax.jit(
        self._updated,
        donate_argnames='state',
        out_shardings=(shardings, None),
      )
    )
    self._nll = Compiled(jax.jit(self._response_nll))

  def base(self) -> models.Decoder:
    """The base model, sharing this trainer's weights if they are frozen."""
    return self._base or self._load()

  def init_state(self, seed: int) -> State:
    """The state before the first step, initialised by the seed."""
    _, split, _ = self._trainable(seed)
    params = jax.tree.leaves(split)
    del split
    # One array at a time, so that each loaded one is freed once it is copied.
    for number, leaf in enumerate(params):
      # In float32 whatever the model's dtype, so that small updates are not
      # lost.
      params[number] = self._place(jnp.array(leaf, jnp.float32, copy=True))
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

    If the device runs out of memory, the step is repeated with half as many
    tokens per micro-batch, once in the life of this trainer. Dropout is off
    without a key for it.

    Returns:
      The new state, and the loss before the step: the mean over the examples'
      response tokens, a float32 scalar on the device that may still be pending.

    Raises:
      InputError: there is not enough memory for half as many either.
    """
    sums_of = self._sums if self._seen else self._first_sums
    sums = sums_of(state.params, examples, dropout_key)
    return self._update(state, *sums, _num_targets(examples), learning_rate)

  def loss(
    self,
    state: State,
    examples: Sequence[Example],
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """The loss that a step on these examples would return.

    It runs the program of the gradients, so that none has to be compiled.
    """
    total, _ = self._sums(state.params, examples, dropout_key)
    return total / _num_targets(examples)

  def _first_sums(self, *args: Any) -> tuple[jax.Array, list[jax.Array]]:
    """`_sums` of the first step, while the update is compiled."""
    with self._compiling, futures.ThreadPoolExecutor(1) as ahead:
      if not self._seen:
        ahead.submit(self._compile_update)
      return self._sums(*args)

  def _compile_update(self) -> None:
    """Compiles the update while the gradients are compiled and computed.

    With adapters in many layers, both take about as long to compile.
    """
    params = self.state_shapes.params
    loss = jax.ShapeDtypeStruct((), jnp.float32, sharding=self._replicated)
    one = np.float32(1)
    self._update.lower(self.state_shapes, loss, params, one, one).compile()

  def _sums(
    self,
    params: list[jax.Array],
    examples: Sequence[Example],
    dropout_key: jax.Array | None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Loss and gradients, summed over the response tokens of the examples."""
    return self._fitting(
      examples,
      lambda micro_batches, number: self._summed(
        params, micro_batches, number, dropout_key
      ),
    )

  def lower(self, batch: MicroBatch) -> jax.stages.Lowered:
    """The program of `gradients` for micro-batches of this shape."""
    params = self.state_shapes.params
    sums = (jax.ShapeDtypeStruct((), jnp.float32), params)
    return self.gradients.lower(sums, params, self.frozen, batch)

  def residuals(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
    """What the forward pass keeps for the backward pass, besides its inputs.

    Args:
      batch: a micro-batch, or one of shapes: nothing is computed.
    """
    params = self.state_shapes.params

    def pullback(params: Any, frozen: Any, batch: Any) -> Any:
      loss = lambda params: self._loss(params, frozen, batch)
      return jax.vjp(loss, params)[1]

    jaxpr = jax.make_jaxpr(pullback)(params, self.frozen, batch).jaxpr
    kept = {v: v.aval for v in jaxpr.outvars if not isinstance(v, Literal)}
    for var in (*jaxpr.invars, *jaxpr.constvars):
      kept.pop(var, None)
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in kept.values()]

  def _summed(
    self,
    params: list[jax.Array],
    micro_batches: Iterator[MicroBatch],
    number: int,
    dropout_key: jax.Array | None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    """See `_sums` and `Fitting`."""
    # For adapters, adding to zeros costs less than compiling another program.
    alone = self.hyperparameters.method == 'full' and number == 1
    sums: Any = None if alone else self._zeros()
    for batch in micro_batches:
      program = alone, batch.shape
      batch = mesh_lib.shard_batch(self._mesh, batch)
      args = sums, params, self.frozen, batch, dropout_key
      if program in self._seen:
        sums = self.gradients(*args)
        continue
      with self._compiling:
        mesh_lib.compile_together(self.gradients, *args)
        sums = self.gradients(*args)
        # Only its first run can find that there is too little memory.
        jax.block_until_ready(sums)
        self._seen.add(program)
    return sums

  def nll(self, state: State, examples: Sequence[Example]) -> float:
    """Negative log-likelihood of the examples' responses, summed, in nats.

    If the device runs out of memory, see `step`.

    Raises:
      InputError: there is not enough memory.
    """

    def parts(
      micro_batches: Iterator[MicroBatch], number: int
    ) -> list[jax.Array]:
      del number
      result = []
      for batch in micro_batches:
        placed = mesh_lib.shard_batch(self._mesh, batch)
        result.append(self._nll(state.params, self.frozen, placed))
        if batch.shape not in self._nll_seen:
          # Only its first run can find that there is too little memory.
          jax.block_until_ready(result)
          self._nll_seen.add(batch.shape)
      return result

    return float(sum(self._fitting(examples, parts)))

  def decoder(self, state: State) -> models.Decoder:
    """The model with the trained parameters, in the dtype of the base model."""
    return self._merge(self._as_loaded(state.params), self.frozen)

  def _trainable(self, seed: int) -> tuple[nnx.GraphDef, Any, Any]:
    """The structure, the trained parameters and all others of a new model."""
    decoder = self.base()
    if self.hyperparameters.method == 'full':
      return _split(decoder, nnx.Param)
    # Adapters are added in place.
    decoder = nnx.merge(*nnx.split(decoder))
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

  @property
  def _replicated(self) -> NamedSharding:
    return NamedSharding(self._mesh, PartitionSpec())

  def _sharding(self, leaf: jax.Array) -> NamedSharding:
    """A leaf's place on the mesh: replicated if it is not there yet."""
    sharding = leaf.sharding
    return sharding if isinstance(sharding, NamedSharding) else self._replicated

  def _place(self, leaf: jax.Array) -> jax.Array:
    return mesh_lib.put(leaf, self._sharding(leaf))

  def _shapes(self, params: list[jax.Array]) -> State:
    """See the attribute `state_shapes`."""
    shapes: list[Any] = [
      jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=self._sharding(p))
      for p in params
    ]
    opt_state = optax.tree.map_params(
      self._optimizer,
      lambda _, shape: shape,
      jax.eval_shape(self._optimizer.init, shapes),
      shapes,
      transform_non_params=lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=self._replicated
      ),
    )
    return State(shapes, opt_state)

  def _zero_sums(self) -> tuple[jax.Array, list[jax.Array]]:
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    return jnp.zeros(()), jax.tree.map(zeros, self.state_shapes.params)

  def _as_loaded(self, params: list[jax.Array]) -> list[jax.Array]:
    return [p.astype(d) for p, d in zip(params, self._dtypes, strict=True)]

  def _add_gradients(
    self,
    sums: tuple[jax.Array, list[jax.Array]] | None,
    params: list[jax.Array],
    frozen: list[jax.Array],
    batch: MicroBatch,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    part = jax.value_and_grad(self._loss)(params, frozen, batch, dropout_key)
    return part if sums is None else jax.tree.map(jnp.add, sums, part)

  def _loss(
    self,
    params: list[jax.Array],
    frozen: list[jax.Array],
    batch: MicroBatch,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    decoder = self._merge(self._as_loaded(params), frozen)
    if dropout_key is not None:
      rate = self.hyperparameters.lora_dropout
      models.set_dropout(decoder, rate, dropout_key, jnp.asarray(batch.numbers))
    return summed_loss(decoder, batch, self._remat)

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


def _split(
  decoder: models.Decoder, trained: type[nnx.Variable]
) -> tuple[nnx.GraphDef, Any, Any]:
  """The structure, the trained parameters and all others."""
  graph, *states = nnx.split(decoder, trained, ...)
  params, frozen = states
  return graph, params, frozen


def all_finite(state: State) -> bool:
  """Whether every trained parameter is finite; waits for the last step."""
  return bool(_all_finite(state.params))


@jax.jit
def _all_finite(params: list[jax.Array]) -> jax.Array:
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in params]))


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


def _num_targets(examples: Sequence[Example]) -> np.float32:
  """The response tokens that the mean loss is over."""
  return np.float32(max(sum(e.num_response for e in examples), 1))
