"""What a stage that runs the model depends on, by name."""

from collections.abc import Mapping
import pathlib
from typing import Any

from edsft_jax.models.checkpoint import hash_model


def fingerprint(
  path: pathlib.Path,
  dtype: str,
  prompt: Mapping[str, str],
  with_separator: bool = True,
) -> dict[str, Any]:
  """The model's files and how prompts reach it.

  Args:
    path: the model's directory.
    dtype: of its weights and activations.
    prompt: the options under config.prompt.
    with_separator: whether prompt.separator is read.
  """
  options = ['template', 'truncate', *(['separator'] if with_separator else [])]
  return {
    'model.path (its files)': hash_model(path),
    'model.dtype': dtype,
    **{f'prompt.{name}': prompt[name] for name in options},
  }
