"""A response under the model: its tokens after the prompt's, and their loss.

Finetuning minimises this loss and evaluation reports it, so both count the
same tokens: those of the response and the token that ends it, none of the
prompt and none of the padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edsft_jax import store
from edsft_jax.models.decoder import Decoder
from edsft_jax.models.generation import bucket
from edsft_jax.models.prompt_format import PromptFormat


class Example(NamedTuple):
  """A prompt with its response as tokens.

  Attributes:
    tokens: ids of the prompt and then of the response with its end token.
    num_response: how many of them are the response's.
    prompt_truncated: the prompt was shortened to make room.
    response_cut: the response alone was too long and lost its end.
  """

  tokens: list[int]
  num_response: int
  prompt_truncated: bool
  response_cut: bool


def encode(
  prompt_format: PromptFormat,
  prompt: store.Prompt,
  response: str,
  max_length: int,
) -> Example:
  """Tokenises a prompt and its response into at most `max_length` tokens.

  The prompt is shortened first, to one token at the least; only then does the
  response lose tokens at its end.
  """
  response_ids = prompt_format.encode_response(prompt, response, max_length)
  room = max(max_length - len(response_ids), 1)
  prompt_ids, truncated = prompt_format.encode_prompt(
    prompt, room, for_response=True
  )
  kept = response_ids[: max_length - len(prompt_ids)]
  return Example(
    tokens=[*prompt_ids, *kept],
    num_response=len(kept),
    prompt_truncated=truncated,
    response_cut=len(kept) < len(response_ids),
  )


class Batch(NamedTuple):
  """Examples padded at the left to one length; padded rows have no tokens.

  Attributes:
    tokens: int32 [B, L].
    num_tokens: int32 [B], without padding.
    num_response: int32 [B].
  """

  tokens: np.ndarray
  num_tokens: np.ndarray
  num_response: np.ndarray


def batch(examples: Sequence[Example], length: int, num_rows: int) -> Batch:
  """Pads examples at the left to `length` and to `num_rows` rows."""
  tokens_BxL = np.zeros((num_rows, length), np.int32)
  num_tokens_B = np.zeros(num_rows, np.int32)
  num_response_B = np.zeros(num_rows, np.int32)
  for row, example in enumerate(examples):
    num_tokens_B[row] = len(example.tokens)
    num_response_B[row] = example.num_response
    tokens_BxL[row, length - len(example.tokens) :] = example.tokens
  return Batch(tokens_BxL, num_tokens_B, num_response_B)


def num_targets(examples: Sequence[Example], length: int) -> int:
  """How many last tokens of rows padded to `length` hold every response.

  One of a few numbers, so that few programs are compiled. The first token of
  a row is never a target: nothing before it could predict it.
  """
  longest = max(example.num_response for example in examples)
  return min(bucket(longest), length - 1)


def loss(decoder: Decoder, batch: Batch, num_targets: int) -> jax.Array:
  """Negative log-likelihood of each row's response, float32 [B], in nats.

  Args:
    decoder: the model.
    batch: rows of tokens, padded at the left.
    num_targets: logits are made for this many last tokens of a row (static);
      no response may be longer.
  """
  length = batch.tokens.shape[1]
  mask_BxL = jnp.arange(length) >= length - batch.num_tokens[:, None]
  hidden_BxLxD = decoder(batch.tokens, mask_BxL).hidden_BxLxD
  # Padding is at the left, so that responses are the last tokens, each
  # predicted at the position before its own.
  hidden_BxTxD = hidden_BxLxD[:, -num_targets - 1 : -1]
  target_BxT = batch.tokens[:, -num_targets:]
  counts_BxT = (
    jnp.arange(num_targets) >= num_targets - batch.num_response[:, None]
  )
  logits_BxTxV = decoder.logits(hidden_BxTxD).astype(jnp.float32)
  nll_BxT = (
    jax.nn.logsumexp(logits_BxTxV, axis=-1)
    - jnp.take_along_axis(logits_BxTxV, target_BxT[..., None], axis=-1)[..., 0]
  )
  return jnp.sum(jnp.where(counts_BxT, nll_BxT, 0.0), axis=-1)
