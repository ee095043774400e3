"""The one error that a person, not a programmer, has to fix."""

from collections.abc import Iterable, Iterator
import contextlib
import difflib


class InputError(ValueError):
  """A bad option or a bad file. The message names the culprit and the remedy.

  `edsft_jax.main` prints it in one line and exits with status 2. Every other
  exception is a bug of ours and keeps its traceback.
  """


def unknown(
  what: str, name: object, known: Iterable[str], few: int = 30
) -> InputError:
  """The error for a name that is not one of those known.

  Args:
    what: the option and the name, as "report.metric 'bleu'".
    name: what a person wrote.
    known: what could be meant; the nearest is offered.
    few: up to so many are listed, too.
  """
  known = list(known)
  hint = ''
  if nearest := difflib.get_close_matches(str(name), known, 1, 0.0):
    # As it would be written in its place: a value in quotes, an option bare.
    is_option = nearest[0].startswith('--')
    hint = f': did you mean {nearest[0] if is_option else repr(nearest[0])}?'
  listed = f' All: {", ".join(known)}' if len(known) <= few else ''
  return InputError(f'{what} is unknown{hint}{listed}')


@contextlib.contextmanager
def of_prompt(id: str) -> Iterator[None]:
  """Adds to an InputError which prompt it is about."""
  try:
    yield
  except InputError as e:
    raise InputError(f'prompt {id!r}: {e}') from None
