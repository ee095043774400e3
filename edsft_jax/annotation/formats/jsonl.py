"""todo.jsonl: an object per prompt, with the columns of todo.csv."""

from collections.abc import Sequence
import json

from edsft_jax.annotation.formats import table
from edsft_jax.annotation.formats.format import Format, Task


def _write(tasks: Sequence[Task]) -> str:
  rows = ({**task.columns(), 'response': ''} for task in tasks)
  return ''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows)


FORMAT = Format(
  name='JSON lines',
  # Read as any other table.
  recognises=lambda records: False,
  read=table.read,
  write=_write,
  extension='jsonl',
)
