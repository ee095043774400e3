"""Reads pool.exclude: ids of prompts to leave out of the pool."""

from edsft_jax import errors, store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.tables import readers

_OPTION = 'pool.exclude'


def read(path: str) -> frozenset[str]:
  """Reads the ids in a file; no ids if the path is ''.

  Args:
    path: a table with a column `id` or `prompt_id`, such as
      annotations/rejected.jsonl, or text with one id per line.

  Raises:
    InputError: the file cannot be read, or a row has no id.
  """
  if not path:
    return frozenset()
  file = store.local(path, _OPTION)
  readers.check_readable(file, _OPTION)
  if not readers.is_known(file):
    lines = (line.strip() for line in readers.physical_lines(file))
    return frozenset(line for line in lines if line)
  ids = set()
  fmt = readers.find_format(file, 'auto', _OPTION)
  for row in readers.read(file, fmt):
    names = (name for name in columns_lib.IDS if name in (row.values or {}))
    name = next(names, None)
    if row.values is None or name is None:
      raise errors.InputError(
        f'{_OPTION}={path}, {row.place}: it has no id: give a column id, or '
        'text with one id per line'
      )
    ids.add(str(row.values[name]).strip())
  return frozenset(ids)
