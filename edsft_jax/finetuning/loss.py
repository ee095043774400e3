"""The loss of a micro-batch: the negative log-likelihood of the responses."""

import functools
import math
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

from edsft_jax.finetuning.batches import MicroBatch
from edsft_jax.models import Decoder, DecoderConfig
from edsft_jax.models.decoder import logits_of_product, output_product
from edsft_jax.models.modules import precision_of

# How many logits to compute at once; fewer on a CPU, so that they stay in its
# caches.
MAX_LOGITS = 2**26
MAX_LOGITS_ON_CPU = 2**24
# The slots are divided into at least this many chunks, but none is smaller than
# the other number because of that.
_FEWEST_CHUNKS = 4
_SMALLEST_CHUNK = 128


def max_logits() -> int:
  """How many logits this process's devices compute at once."""
  return MAX_LOGITS_ON_CPU if jax.default_backend() == 'cpu' else MAX_LOGITS


def loss(
  decoder: Decoder,
  batch: MicroBatch,
  remat: bool = False,
  most_logits: int = 0,
) -> jax.Array:
  """Negative log-likelihood of all responses, summed, in nats.

  Logits are computed in chunks of the tokens that are predicted, each together
  with its gradient, so that none are kept for the backward pass.

  Args:
    decoder: the model.
    batch: the rows.
    remat: see `Decoder.hidden_of_packed`.
    most_logits: how many logits to compute at once; 0: `max_logits()`.

  Returns:
    A float32 scalar.
  """
  hidden_BxLxD = decoder.hidden_of_packed(
    jnp.asarray(batch.tokens), jnp.asarray(batch.segments), remat
  )
  groups, num_slots = batch.targets.shape
  chunk = chunk_size(groups, num_slots, decoder.config.vocab_size, most_logits)
  return _summed_nll(
    decoder.config,
    chunk,
    hidden_BxLxD.reshape(groups, num_slots, -1),
    decoder.output_weight,
    batch,
  )


def chunk_size(
  groups: int, num_slots: int, vocab_size: int, most_logits: int = 0
) -> int:
  """Targets of each group whose logits are computed at once."""
  most_logits = most_logits or max_logits()
  most = max(most_logits // (groups * vocab_size), 1)
  # Most slots are of prompts: a chunk of all would be mostly padding.
  most = min(most, max(num_slots // _FEWEST_CHUNKS, _SMALLEST_CHUNK))
  return math.ceil(num_slots / math.ceil(num_slots / most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed_nll(
  config: DecoderConfig,
  chunk: int,
  hidden_GxNxD: jax.Array,
  weight: jax.Array,
  batch: MicroBatch,
) -> jax.Array:
  """The nll of all targets, from `chunk` of each group at a time."""

  def add(number: jax.Array, total: jax.Array) -> jax.Array:
    part = _Chunk(batch, chunk, number)
    hidden_GxCxD = part.take(hidden_GxNxD)
    product_GxCxV = output_product(config, hidden_GxCxD, weight)
    return total + part.nll(config, product_GxCxV)

  num_chunks = _num_chunks(batch, chunk)
  return jax.lax.fori_loop(0, num_chunks, add, jnp.zeros((), jnp.float32))


def _forward(
  config: DecoderConfig, chunk: int, hidden: Any, weight: Any, batch: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
  """The nll, and its gradients as residuals; arguments as custom_vjp's."""
  batch = jax.tree.map(
    lambda leaf: leaf.value, batch, is_leaf=lambda x: hasattr(x, 'perturbed')
  )
  hidden_GxNxD = hidden.value
  # A frozen output layer gets no gradient.
  trained = weight.perturbed
  weight = weight.value

  def add(number: jax.Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
    total, grad_GxNxD, weight_grad = sums
    part = _Chunk(batch, chunk, number)
    hidden_GxCxD = part.take(hidden_GxNxD)
    product_GxCxV, of_hidden = jax.vjp(
      lambda hidden: output_product(config, hidden, weight), hidden_GxCxD
    )
    value, grad_GxCxV = jax.value_and_grad(functools.partial(part.nll, config))(
      product_GxCxV
    )
    (grad_GxCxD,) = of_hidden(grad_GxCxV)
    if trained:
      weight_grad += _weight_gradient(config, hidden_GxCxD, grad_GxCxV)
    return total + value, part.put(grad_GxNxD, grad_GxCxD), weight_grad

  total, grad_GxNxD, weight_grad = jax.lax.fori_loop(
    0,
    _num_chunks(batch, chunk),
    add,
    (
      jnp.zeros((), jnp.float32),
      jnp.zeros_like(hidden_GxNxD),
      jnp.zeros_like(weight, jnp.float32) if trained else None,
    ),
  )
  if trained:
    weight_grad = weight_grad.astype(weight.dtype)
  return total, (grad_GxNxD, weight_grad)


def _backward(
  config: DecoderConfig,
  chunk: int,
  gradients: tuple[jax.Array, jax.Array | None],
  cotangent: Any,
) -> tuple[Any, ...]:
  del config, chunk
  if isinstance(cotangent, SymbolicZero):
    return None, None, None
  grad_GxNxD, weight_grad = gradients
  scaled = (grad_GxNxD * cotangent).astype(grad_GxNxD.dtype)
  if weight_grad is None:
    return scaled, None, None
  return scaled, (weight_grad * cotangent).astype(weight_grad.dtype), None


def _weight_gradient(
  config: DecoderConfig, hidden_GxCxD: jax.Array, grad_GxCxV: jax.Array
) -> jax.Array:
  """Gradient of the output layer's weight, float32, from a chunk."""
  hidden_NxD = hidden_GxCxD.reshape(-1, hidden_GxCxD.shape[-1])
  grad_NxV = grad_GxCxV.reshape(-1, grad_GxCxV.shape[-1])
  # Transposed before the product: XLA on CPUs would transpose the larger one.
  hidden_DxN = jax.lax.optimization_barrier(hidden_NxD.T)
  grad_NxV = grad_NxV.astype(hidden_DxN.dtype)
  product = functools.partial(
    jnp.einsum,
    precision=precision_of(hidden_DxN.dtype),
    preferred_element_type=jnp.float32,
  )
  if config.tied:
    return product('nv,dn->vd', grad_NxV, hidden_DxN)
  return product('dn,nv->dv', hidden_DxN, grad_NxV)


_summed_nll.defvjp(_forward, _backward, symbolic_zeros=True)


def _num_chunks(batch: MicroBatch, chunk: int) -> jax.Array:
  """How many chunks have targets; the others are skipped."""
  return (jnp.max(batch.num_targets) + chunk - 1) // chunk


class _Chunk:
  """A part of the targets of every group."""

  def __init__(self, batch: MicroBatch, size: int, number: jax.Array):
    start = number * size
    num_slots = batch.targets.shape[1]
    # The last chunk may begin earlier, at targets that were counted before.
    first = jnp.minimum(start, num_slots - size)
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)
    index_C = first + jnp.arange(size)
    self._target_GxC = cut(jnp.asarray(batch.targets))
    self._source_GxC = cut(jnp.asarray(batch.sources))
    self._counts_GxC = (index_C >= start) & (
      index_C < batch.num_targets[:, None]
    )

  def take(self, hidden_GxNxD: jax.Array) -> jax.Array:
    """The hidden states that predict the targets, [G, C, D]."""
    return jax.vmap(lambda x, i: x[i])(hidden_GxNxD, self._source_GxC)

  def put(self, into_GxNxD: jax.Array, x_GxCxD: jax.Array) -> jax.Array:
    """Adds to the places that `take` took from."""
    add = lambda into, x, i: into.at[i].add(x)
    return jax.vmap(add)(into_GxNxD, x_GxCxD, self._source_GxC)

  def nll(self, config: DecoderConfig, product_GxCxV: jax.Array) -> jax.Array:
    """Summed nll of the targets, float32, from `output_product`."""
    logits_GxCxV = logits_of_product(config, product_GxCxV)
    # Compares instead of gathering, so that the gradient is one pass.
    is_target_GxCxV = (
      jnp.arange(logits_GxCxV.shape[-1]) == self._target_GxC[..., None]
    )
    target_GxC = jnp.sum(jnp.where(is_target_GxCxV, logits_GxCxV, 0), axis=-1)
    nll_GxC = jax.nn.logsumexp(logits_GxCxV, axis=-1) - target_GxC
    return jnp.sum(jnp.where(self._counts_GxC, nll_GxC, 0))
