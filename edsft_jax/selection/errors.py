"""What the library refuses, apart from what may be a bug."""


class SelectionError(ValueError):
  """An argument cannot be used; the message names it and says why."""
