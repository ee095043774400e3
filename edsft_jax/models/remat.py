"""Rematerialisation: a function whose backward pass computes it again."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


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


# Arguments that are differentiated and others, each with None for those of the
# other kind.
_Kept = tuple[list[jax.Array | None], list[jax.Array | None]]


def _forward(
  function: Callable[..., jax.Array],
  structure: jax.tree_util.PyTreeDef,
  *leaves: Any,
) -> tuple[jax.Array, _Kept]:
  trained = [leaf.value if leaf.perturbed else None for leaf in leaves]
  frozen = [None if leaf.perturbed else leaf.value for leaf in leaves]
  values = [leaf.value for leaf in leaves]
  return function(*jax.tree.unflatten(structure, values)), (trained, frozen)


def _backward(
  function: Callable[..., jax.Array],
  structure: jax.tree_util.PyTreeDef,
  kept: _Kept,
  gradient: Any,
) -> tuple[jax.Array | None, ...]:
  trained, frozen = kept
  if isinstance(gradient, SymbolicZero):
    return (None,) * len(trained)

  def of_trained(trained: list[jax.Array | None]) -> jax.Array:
    first, *others = (
      f if t is None else t for t, f in zip(trained, frozen, strict=True)
    )
    # XLA removes optimization barriers before it schedules, but it cannot know
    # that this is zero.
    leaves = [first + 0 * gradient, *others]
    return function(*jax.tree.unflatten(structure, leaves))

  return tuple(jax.vjp(of_trained, trained)[1](gradient)[0])


_remat.defvjp(_forward, _backward, symbolic_zeros=True)
