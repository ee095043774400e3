"""Compiled programs over similarities of candidates to all rows.

Every device works on its share of the rows. A sum along an array's last axis
is not vectorised, so arrays are summed along another axis first.
"""

import functools

import jax
import jax.numpy as jnp

from edsft_jax.selection import sharding
from edsft_jax.selection import similarity as similarity_lib


@functools.partial(jax.jit, static_argnames='formula')
def all_similarities(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  self_TxR: jax.Array,
  *,
  formula: str,
) -> jax.Array:
  """Returns [U, U] similarities of all rows, padding included."""
  norm_U = norm_TxR.reshape(-1)
  number_U = jnp.arange(norm_U.size)

  def against_all(tile: tuple[jax.Array, ...]) -> jax.Array:
    point_RxD, norm_R, self_R, number_R = tile
    # Products are tile by tile, as everywhere else, so that they round equally.
    products = [similarity_lib.products(point_RxD, p) for p in point_TxRxD]
    product_RxU = jnp.concatenate(products, axis=1)
    s_RxU = similarity_lib.from_products(formula, product_RxU, norm_R, norm_U)
    return jnp.where(number_R[:, None] == number_U, self_R[:, None], s_RxU)

  number_TxR = number_U.reshape(norm_TxR.shape)
  s_TxRxU = jax.lax.map(
    against_all, (point_TxRxD, norm_TxR, self_TxR, number_TxR)
  )
  return s_TxRxU.reshape(norm_U.size, norm_U.size)


@functools.partial(jax.jit, static_argnames=('formula', 'mesh'))
def similarities(
  point_TxRxD: jax.Array,
  norm_TxR: jax.Array,
  point_CxD: jax.Array,
  norm_C: jax.Array,
  self_C: jax.Array,
  row_C: jax.Array,
  *,
  formula: str,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C, U] similarities of candidates to all rows."""

  def share(
    point_TxRxD: jax.Array,
    norm_TxR: jax.Array,
    point_CxD: jax.Array,
    norm_C: jax.Array,
    self_C: jax.Array,
    row_C: jax.Array,
  ) -> jax.Array:
    def one_tile(tile: tuple[jax.Array, jax.Array]) -> jax.Array:
      return similarity_lib.tile(formula, point_CxD, norm_C, *tile)

    s_TxCxR = jax.lax.map(one_tile, (point_TxRxD, norm_TxR))
    s_CxU = jnp.swapaxes(s_TxCxR, 0, 1).reshape(len(row_C), -1)
    # The product of a row with itself is rounded; its similarity is known.
    here_C = row_C - jax.lax.axis_index('data') * s_CxU.shape[1]
    here_C = jnp.where(here_C < 0, s_CxU.shape[1], here_C)
    return s_CxU.at[jnp.arange(len(row_C)), here_C].set(self_C, mode='drop')

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(sharding.ROWS,) * 2 + (sharding.EVERYWHERE,) * 4,
    out_specs=sharding.ROWS_SECOND,
    check_vma=False,
  )(point_TxRxD, norm_TxR, point_CxD, norm_C, self_C, row_C)


@functools.partial(jax.jit, donate_argnums=0)
def store(cache_SxU: jax.Array, s_CxU: jax.Array, first: int) -> jax.Array:
  """Writes candidates' similarities to the slots that start at `first`."""
  return jax.lax.dynamic_update_slice(cache_SxU, s_CxU, (first, 0))


def summands(
  s: jax.Array, current: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array | float]:
  """Returns float64 summands, and what their sum exceeds the gain by.

  Without weights, they are coverages after the pick, and the sum of coverages
  before it: both sums are exact, so the difference is. With fractional weights
  it would not be.
  """
  if weight is None:
    before = current.astype(jnp.float64).sum()
    return jnp.maximum(s, current).astype(jnp.float64), before
  return jnp.maximum(s - current, 0.0).astype(jnp.float64) * weight, 0.0


@functools.partial(jax.jit, static_argnames='mesh')
def gains(
  s_SxU: jax.Array,
  slot_C: jax.Array,
  current_TxR: jax.Array,
  weight_TxR: jax.Array | None,
  *,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Returns [C] float64 marginal gains of the candidates in these slots."""

  def share(
    s_SxU: jax.Array,
    slot_C: jax.Array,
    current_TxR: jax.Array,
    weight_TxR: jax.Array | None,
  ) -> jax.Array:
    def one_slot(slot: jax.Array) -> jax.Array:
      s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
      summand_TxR, before = summands(
        s_U.reshape(current_TxR.shape), current_TxR, weight_TxR
      )
      return summand_TxR.sum(axis=0).sum() - before

    return jax.lax.psum(jax.lax.map(one_slot, slot_C), 'data')

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(
      sharding.ROWS_SECOND,
      sharding.EVERYWHERE,
      sharding.ROWS,
      sharding.ROWS,
    ),
    out_specs=sharding.EVERYWHERE,
    check_vma=False,
  )(s_SxU, slot_C, current_TxR, weight_TxR)


@functools.partial(jax.jit, static_argnames='mesh')
def sweep(
  s_SxU: jax.Array,
  slot_C: jax.Array,
  current_TxR: jax.Array,
  weight_TxR: jax.Array | None,
  enough: jax.Array,
  most: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Chooses in turn each candidate that gains enough, at most `most`.

  Returns:
    The coverage, [C] gains at each one's turn, and [C] whether it was chosen.
  """

  def share(
    s_SxU: jax.Array,
    slot_C: jax.Array,
    current_TxR: jax.Array,
    weight_TxR: jax.Array | None,
    enough: jax.Array,
    most: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    def one_slot(
      state: tuple[jax.Array, jax.Array], slot: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
      current_TxR, left = state
      s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
      s_TxR = s_U.reshape(current_TxR.shape)
      summand_TxR, before = summands(s_TxR, current_TxR, weight_TxR)
      gain = jax.lax.psum(summand_TxR.sum(axis=0).sum() - before, 'data')
      taken = (gain >= enough) & (gain > 0) & (left > 0)
      best_TxR = jnp.maximum(current_TxR, s_TxR)
      current_TxR = jnp.where(taken, best_TxR, current_TxR)
      return (current_TxR, left - taken), (gain, taken)

    (current_TxR, _), (gain_C, taken_C) = jax.lax.scan(
      one_slot, (current_TxR, most), slot_C
    )
    return current_TxR, gain_C, taken_C

  here, everywhere = sharding.ROWS, sharding.EVERYWHERE
  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(
      *(sharding.ROWS_SECOND, everywhere, here, here),
      *(everywhere, everywhere),
    ),
    out_specs=(here, everywhere, everywhere),
    check_vma=False,
  )(s_SxU, slot_C, current_TxR, weight_TxR, enough, most)


@jax.jit
def cover(
  s_SxU: jax.Array, slot_C: jax.Array, current_TxR: jax.Array
) -> jax.Array:
  """Returns the coverage after choosing the candidates in these slots."""

  def one_slot(
    current_TxR: jax.Array, slot: jax.Array
  ) -> tuple[jax.Array, None]:
    s_U = jax.lax.dynamic_index_in_dim(s_SxU, slot, keepdims=False)
    return jnp.maximum(current_TxR, s_U.reshape(current_TxR.shape)), None

  return jax.lax.scan(one_slot, current_TxR, slot_C)[0]
