"""Rematerialisation: a function whose backward pass computes it again."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp


def remat(function: Callable[..., jax.Array], *args: Any) -> jax.Array:
  """function(*args), of which only the arguments are kept.

  Unlike with jax.checkpoint, the backward pass cannot compute it again before
  it has the gradient of the result. XLA on CPUs computes all layers again at
  once if it can, which takes as much memory as keeping everything.

  Args:
    function: it closes over no array: JAX cannot tell that one is an argument.
    *args: trees of arrays; the first array has the shape of the result.
  """
  leaves, structure = jax.tree.flatten(args)
  return _remat(function, structure, *leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _remat(
  function: Callable[..., jax.Array],
  structure: jax.tree_util.PyTreeDef,
  *leaves: jax.Array,
) -> jax.Array:
  return function(*jax.tree.unflatten(structure, leaves))


def _forward(
  function: Callable[..., jax.Array],
  structure: jax.tree_util.PyTreeDef,
  *leaves: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  return _remat(function, structure, *leaves), leaves


def _backward(
  function: Callable[..., jax.Array],
  structure: jax.tree_util.PyTreeDef,
  leaves: tuple[jax.Array, ...],
  gradient: jax.Array,
) -> tuple[jax.Array | None, ...]:
  # What is kept may not depend on which leaves are trained: layers that are
  # alike share a trace, and the first one may train fewer. XLA drops gradients
  # that nobody uses.
  numbers = [
    i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)
  ]

  def of_floats(*floats: jax.Array) -> jax.Array:
    given = [*leaves]
    for i, x in zip(numbers, floats, strict=True):
      given[i] = x
    # XLA removes optimization barriers before it schedules, but it cannot know
    # that this is zero.
    given[0] = given[0] + 0 * gradient
    return function(*jax.tree.unflatten(structure, given))

  found: list[jax.Array | None] = [None] * len(leaves)
  of_each = jax.vjp(of_floats, *(leaves[i] for i in numbers))[1](gradient)
  for i, x in zip(numbers, of_each, strict=True):
    found[i] = x
  return tuple(found)


_remat.defvjp(_forward, _backward)
