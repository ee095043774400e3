"""The fingerprint of the model, for stages that run it."""

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
  """Hash of the model's files, and the options of dtype and prompt format.

  Args:
    path: the model's directory.
    dtype: dtype of its weights and activations.
    prompt: the options under config.prompt.
    with_separator: whether the stage depends on prompt.separator.
  """
  options = [x for x in prompt if x != 'separator' or with_separator]
  return {
    'model.path (its files)': hash_model(path),
    'model.dtype': dtype,
    **{f'prompt.{name}': prompt[name] for name in options},
  }
