"""A prompt with its response as tokens.

Finetuning supervises what evaluation scores: the tokens of the response and
the one that ends it, none of the prompt and none of the padding.
"""

from typing import NamedTuple

from edsft_jax import store
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
