"""Uncertainty scores from logits: statistics per token, scores per sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from edsft_jax import inference

# model.dtype -> difference of two logits below which their order may change: on
# another device for float32, in float32 for the others. 99 of 100 differences
# between the two best logits err by less (SmolLM2-135M and a model of 3M).
NEAR_TIES = {
  'float32': 1e-4,
  'bfloat16_weights': 2.5e-4,
  'float16': 0.05,
  'bfloat16': 0.25,
}


class TokenStatistics(NamedTuple):
  """Statistics of a predictive distribution; each float32 [...].

  Attributes:
    entropy: over the full vocabulary, in nats.
    top1: probability of the likeliest token.
    top2: probability of the second likeliest token (top1 in a tie).
    log_prob: log probability of the chosen token, in nats.
  """

  entropy: jax.Array
  top1: jax.Array
  top2: jax.Array
  log_prob: jax.Array


def token_statistics(logits: jax.Array, token: jax.Array) -> TokenStatistics:
  """Reduces logits [..., V] and chosen tokens [...] to statistics [...].

  The softmax is float32 over the full vocabulary, whatever the logits' dtype.
  Two reductions find the best two: cheaper than a sort on every backend.
  """
  logit_xV = logits.astype(jnp.float32)
  best_x = inference.argmax(logit_xV)
  is_best_xV = jnp.arange(logit_xV.shape[-1]) == best_x[..., None]
  max_x1 = jnp.max(logit_xV, axis=-1, keepdims=True)
  below_xV = logit_xV - max_x1
  # Relative to the largest, so that no exponential overflows.
  exp_xV = jnp.exp(below_xV)
  total_x = jnp.sum(exp_xV, axis=-1)
  log_total_x = jnp.log(total_x)
  second_x = jnp.max(jnp.where(is_best_xV, -jnp.inf, below_xV), axis=-1)
  chosen_x1 = jnp.take_along_axis(below_xV, token[..., None], axis=-1)
  return TokenStatistics(
    entropy=log_total_x - jnp.sum(exp_xV * below_xV, axis=-1) / total_x,
    top1=1.0 / total_x,
    top2=jnp.exp(second_x) / total_x,
    log_prob=chosen_x1[..., 0] - log_total_x,
  )


def near_ties(
  statistics: TokenStatistics, valid: jax.Array, limit: float
) -> jax.Array:
  """Counts the steps [B] whose two best logits are closer than the limit.

  At these, a different order of summation may choose a different token.

  Args:
    statistics: fields [B, T].
    valid: bool [B, T], the steps that count.
    limit: that of the dtype in NEAR_TIES.
  """
  gap_BxT = jnp.log(statistics.top1) - jnp.log(statistics.top2)
  return jnp.sum(valid & (gap_BxT < limit), axis=-1)


def sequence_scores(
  statistics: TokenStatistics, valid: jax.Array, length_normalized: bool
) -> dict[str, jax.Array]:
  """The uncertainty scores of each row of tokens; README.md names the papers.

  Args:
    statistics: fields [B, T], or [B, 1 or S, T] for S sequences in each row.
    valid: bool [B, T] or [B, S, T], the steps that count.
    length_normalized: divide least_confidence by the number of steps.

  Returns:
    float32 [B] or [B, S] by name; NaN where no step is valid.
  """
  num_B = jnp.sum(valid, axis=-1)
  none_B = num_B == 0

  def total(x_BxT: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(valid, x_BxT, 0.0), axis=-1)

  def mean(x_BxT: jax.Array) -> jax.Array:
    return total(x_BxT) / jnp.maximum(num_B, 1)

  def least(x_BxT: jax.Array) -> jax.Array:
    return jnp.min(jnp.where(valid, x_BxT, jnp.inf), axis=-1)

  margin_BxT = statistics.top1 - statistics.top2
  surprise = mean if length_normalized else total
  scores = {
    'mean_entropy': mean(statistics.entropy),
    'max_entropy': -least(-statistics.entropy),
    'least_confidence': surprise(-statistics.log_prob),
    'min_confidence': least(statistics.top1),
    'mean_margin': mean(margin_BxT),
    'min_margin': least(margin_BxT),
    'mean_confidence': mean(statistics.top1),
    # Of the whole continuation, so never divided by its length.
    'log_probability': total(statistics.log_prob),
  }
  return {k: jnp.where(none_B, jnp.nan, v) for k, v in scores.items()}
