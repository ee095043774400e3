"""Squared distances to the nearest chosen prompt, as compiled programs."""

import functools

import jax
import jax.numpy as jnp

from edsft_jax.selection import sharding


def _partial_squares(
  point_RxD: jax.Array, chosen_MxD: jax.Array, norm_M: jax.Array
) -> jax.Array:
  """Returns [R, M] squared distances, without the squared norms of R."""
  # On a CPU nearly twice as fast as the product with the rows second.
  product_RxM = jnp.matmul(point_RxD, chosen_MxD.T, precision='highest')
  return norm_M - 2 * product_RxM


def _whole_squares(
  partial: jax.Array, norm_R: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns squared distances, rounded to multiples of 1 / steps."""
  return jnp.round(jnp.maximum(partial + norm_R, 0.0) * steps) * (1 / steps)


@jax.jit
def squares_among(
  point_FxD: jax.Array, norm_F: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns [F, F] squared distances among prompts."""
  partial_FxF = _partial_squares(point_FxD, point_FxD, norm_F)
  return _whole_squares(partial_FxF, norm_F[:, None], steps)


@functools.partial(jax.jit, static_argnames='batch')
def squares_to_chosen(
  point_RxD: jax.Array,
  norm_R: jax.Array,
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  start: jax.Array,
  end: jax.Array,
  steps: jax.Array,
  *,
  batch: int,
) -> jax.Array:
  """Returns [R] squared distances to the nearest from `start` to `end`."""
  least_R = _least_partial(
    point_RxD, chosen_KxD, norm_K, start, end, batch=batch
  )
  return _whole_squares(least_R, norm_R, steps)


def _least_partial(
  point_RxD: jax.Array,
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  start: jax.Array,
  end: jax.Array,
  *,
  batch: int,
) -> jax.Array:
  """Returns [R] partial squares to the nearest from `start` to `end`."""

  def over(
    batches: jax.Array, first: jax.Array, size: int, least_R: jax.Array
  ) -> jax.Array:
    def one_batch(b: jax.Array, least_R: jax.Array) -> jax.Array:
      partial_RxM = _partial_squares(
        point_RxD,
        jax.lax.dynamic_slice_in_dim(chosen_KxD, first + b * size, size),
        jax.lax.dynamic_slice_in_dim(norm_K, first + b * size, size),
      )
      return jnp.minimum(least_R, partial_RxM.min(axis=1))

    return jax.lax.fori_loop(0, batches, one_batch, least_R)

  nothing_R = jnp.full(len(point_RxD), jnp.inf, point_RxD.dtype)
  full = (end - start) // batch
  least_R = over(full, start, batch, nothing_R)
  # The rest in small batches: little of them is padding.
  small = max(batch // 8, 1)
  start = start + full * batch
  return over((end - start + small - 1) // small, start, small, least_R)


@functools.partial(jax.jit, static_argnames=('mesh', 'batch'))
def lowered_bounds(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  bound_TxR: jax.Array,
  start_T: jax.Array,
  chosen_KxD: jax.Array,
  norm_K: jax.Array,
  end: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
  batch: int,
) -> jax.Array:
  """Lowers bounds to squared distances to the nearest from `start` to `end`."""

  def share(
    point_TxRxD: jax.Array,
    norm_TxR: jax.Array,
    bound_TxR: jax.Array,
    start_T: jax.Array,
    chosen_KxD: jax.Array,
    norm_K: jax.Array,
    end: jax.Array,
  ) -> jax.Array:
    def lowered(tile: jax.Array, bound_TxR: jax.Array) -> jax.Array:
      least_R = _least_partial(
        point_TxRxD[tile], chosen_KxD, norm_K, start_T[tile], end, batch=batch
      )
      least_R = jnp.minimum(bound_TxR[tile], least_R + norm_TxR[tile])
      return bound_TxR.at[tile].set(least_R)

    def one_tile(tile: jax.Array, bound_TxR: jax.Array) -> jax.Array:
      # Not lax.map, which would copy the points of every tile.
      return jax.lax.cond(
        start_T[tile] < end, lowered, lambda _, b: b, tile, bound_TxR
      )

    return jax.lax.fori_loop(0, len(point_TxRxD), one_tile, bound_TxR)

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 4 + (sharding.EVERYWHERE,) * 3,
    out_specs=sharding.ROWS,
    check_vma=False,
  )(point_TxRxD, norm_TxR, bound_TxR, start_T, chosen_KxD, norm_K, end)
