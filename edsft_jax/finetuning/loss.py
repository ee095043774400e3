"""The loss of a batch: the negative log-likelihood of the responses."""

import jax
import jax.numpy as jnp

from edsft_jax.finetuning.batches import Batch
from edsft_jax.models import Decoder


def loss(decoder: Decoder, batch: Batch, num_targets: int) -> jax.Array:
  """Negative log-likelihood of each row's response, float32 [B], in nats.

  Args:
    decoder: the model.
    batch: rows of tokens, padded on the left.
    num_targets: the last tokens of a row to compute logits for (static); no
      response may be longer.
  """
  length = batch.tokens.shape[1]
  mask_BxL = jnp.arange(length) >= length - batch.num_tokens[:, None]
  tokens_BxL = jnp.asarray(batch.tokens)
  hidden_BxLxD = decoder(tokens_BxL, mask_BxL).hidden_BxLxD
  # Padding is on the left, so responses are the last tokens, each predicted at
  # the position before its own.
  hidden_BxTxD = hidden_BxLxD[:, -num_targets - 1 : -1]
  target_BxT = tokens_BxL[:, -num_targets:]
  counts_BxT = (
    jnp.arange(num_targets) >= num_targets - batch.num_response[:, None]
  )
  logits_BxTxV = decoder.logits(hidden_BxTxD).astype(jnp.float32)
  nll_BxT = (
    jax.nn.logsumexp(logits_BxTxV, axis=-1)
    - jnp.take_along_axis(logits_BxTxV, target_BxT[..., None], axis=-1)[..., 0]
  )
  return jnp.sum(jnp.where(counts_BxT, nll_BxT, 0.0), axis=-1)
