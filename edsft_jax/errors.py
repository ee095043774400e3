"""InputError: the error for what a user, not a programmer, has to fix."""

from collections.abc import Iterable, Iterator
import contextlib
import difflib
import math


class InputError(ValueError):
  """A bad option or a bad file. The message names the culprit and the remedy.

  `edsft_jax.main` prints it in one line and exits with status 2. Every other
  exception is a bug and keeps its traceback.
  """


def unknown(
  what: str, name: object, known: Iterable[str], max_listed: int = 30
) -> InputError:
  """Returns the error for a name that is not one of `known`.

  Args:
    what: the option and the name, as "report.metric 'bleu'".
    name: what the user wrote.
    known: the valid names; the nearest is suggested.
    max_listed: the valid names are listed, unless there are more than this.
  """
  known = list(known)
  hint = ''
  if nearest := difflib.get_close_matches(str(name), known, 1, 0.0):
    # Values are quoted, options are not.
    is_option = nearest[0].startswith('--')
    hint = f': did you mean {nearest[0] if is_option else repr(nearest[0])}?'
  listed = f' All: {", ".join(known)}' if len(known) <= max_listed else ''
  return InputError(f'{what} is unknown{hint}{listed}')


def refuse_below(option: str, value: float, least: float) -> None:
  """Rejects the value of an option that is too small, infinite or NaN.

  Raises:
    InputError: naming the option.
  """
  if not least <= value < math.inf:
    bound = 'finite' if value == math.inf else f'at least {least}'
    raise InputError(f'{option} is {value}: must be {bound}')


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
  """Prefixes an InputError with what it is about, such as an option."""
  try:
    yield
  except InputError as error:
    raise InputError(f'{what}: {error}') from None


def about_prompt(id: str) -> contextlib.AbstractContextManager[None]:
  """Prefixes an InputError with the prompt's id."""
  return about(f'prompt {id!r}')
