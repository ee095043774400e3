"""The one error that a person, not a programmer, has to mend."""


class InputError(ValueError):
  """A bad option or a bad file. The message names the culprit and the remedy.

  `edsft_jax.main` prints it in one line and exits with status 2. Every other
  exception is a bug of ours and keeps its traceback.
  """
