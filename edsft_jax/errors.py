"""The one error that a person, not a programmer, has to mend."""

from collections.abc import Iterator
import contextlib


class InputError(ValueError):
  """A bad option or a bad file. The message names the culprit and the remedy.

  `edsft_jax.main` prints it in one line and exits with status 2. Every other
  exception is a bug of ours and keeps its traceback.
  """


@contextlib.contextmanager
def of_prompt(id: str) -> Iterator[None]:
  """Adds to an InputError which prompt it is about."""
  try:
    yield
  except InputError as e:
    raise InputError(f'prompt {id!r}: {e}') from None
