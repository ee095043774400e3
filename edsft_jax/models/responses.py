"""Encodes a prompt with its response.

Finetuning supervises the same tokens that evaluation scores: the response and
its end token, but neither the prompt nor padding.
"""

from typing import NamedTuple

from edsft_jax import store
from edsft_jax.models.prompt_format import PromptFormat


class Example(NamedTuple):
  """A prompt with its response as tokens.

  Attributes:
    tokens: ids of the prompt, followed by the response with its end token.
    num_response: number of tokens of the response.
    prompt_truncated: whether the prompt was truncated to make room.
    response_cut: whether the response was too long by itself and lost its end.
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

  The prompt is truncated first, down to one token; only then does the response
  lose tokens at its end.
  """
  response_ids = prompt_format.encode_response(prompt, response, max_length)
  room = max(max_length - len(response_ids), 1)
  prompt_ids, truncated = prompt_format.encode_prompt(
    prompt, room, for_response=True, response=response
  )
  kept = response_ids[: max_length - len(prompt_ids)]
  return Example(
    tokens=[*prompt_ids, *kept],
    num_response=len(kept),
    prompt_truncated=truncated,
    response_cut=len(kept) < len(response_ids),
  )
