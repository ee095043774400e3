"""Reads prompts from files, and encodes them as the stages do."""

from collections.abc import Iterator, Sequence
import math
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edsft_jax import errors
from edsft_jax.tables import readers

if TYPE_CHECKING:
  from edsft_jax import models


def read_rows(path: pathlib.Path, *fields: str) -> Iterator[dict[str, Any]]:
  """The rows of a file in a format of pool.path, compressed or not.

  Raises:
    InputError: the file cannot be read, or a row is broken or lacks a field.
  """
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist: check the path')
  kind = readers.find_format(path, 'auto', 'its extension')
  for row in readers.read(path, kind):
    if row.values is None:
      raise errors.InputError(f'{path}, {row.place}: {row.problem}: fix it')
    for field in fields:
      if row.values.get(field) is None:
        raise errors.InputError(
          f'{path}, {row.place}: no field {field!r}: add it'
        )
    yield row.values


def read_prompts(
  path: pathlib.Path, max_characters: float = math.inf
) -> list[str]:
  """The column "prompt" of a file, without prompts of this length or more.

  Raises:
    InputError: see read_rows; or none is left.
  """
  prompts = [row['prompt'] for row in read_rows(path, 'prompt')]
  short = [prompt for prompt in prompts if len(prompt) < max_characters]
  if not short:
    raise errors.InputError(
      f'{path} has no prompt of fewer than {max_characters} characters: use '
      'another file'
    )
  return short


def load_format(model: pathlib.Path) -> 'models.PromptFormat':
  """The prompt format of a model, with the default options."""
  # Files can be read without loading jax.
  from edsft_jax import config, models

  return models.load_prompt_format(model, **config.get_config().prompt)


def encode(
  model: pathlib.Path, prompts: Sequence[str], num_new: int
) -> list[np.ndarray]:
  """Ids of prompts, truncated to leave room for the continuation."""
  from edsft_jax import models

  prompt_format = load_format(model)
  limit = models.read_config(model).context - num_new
  return [
    np.array(prompt_format.encode_prompt(p, limit, False)[0], np.int32)
    for p in prompts
  ]
