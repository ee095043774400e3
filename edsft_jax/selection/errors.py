"""The error for invalid arguments."""


class SelectionError(ValueError):
  """An argument cannot be used; the message names it and says why."""
