"""A prompt format with default options, for tests."""

from collections.abc import Callable
import pathlib

from configs import default
from edsft_jax import models


def load(
  path: str | pathlib.Path,
  log: Callable[[str], None] = lambda line: None,
  **options: str,
) -> models.PromptFormat:
  """Reads a model directory's prompt format; `options` are of config.prompt."""
  options = {**default.get_config().prompt, **options}
  return models.load_prompt_format(path, **options, log=log)
