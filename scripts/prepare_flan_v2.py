"""Makes the pool of configs/bhatt2024_flan.py from a public sample of FLAN V2.

  wget https://huggingface.co/datasets/hamishivi/tulu_mix_store/resolve/main/\
flan_v2_resampled_100k.jsonl
  python scripts/prepare_flan_v2.py flan_v2_resampled_100k.jsonl --folder=data

writes data/flan_v2_100k.jsonl: a prompt is `inputs`, its answer `targets`. The
new line that open-instruct adds to most prompts is part of the template in
configs/open_instruct.py. If rows name their task (`task_name`), it is kept;
otherwise strategies that need tasks find them by k-means. The file may be
gzipped.
"""

import pathlib
from typing import Any

import command_line
from prompt_files import read_rows

from edsft_jax import console, store

NAME = 'flan_v2_100k.jsonl'


def convert(row: dict[str, Any], number: int) -> dict[str, str]:
  """A row of the pool."""
  made = {
    'id': f'flan_v2_{number}',
    'prompt': row['inputs'],
    'response': row['targets'],
  }
  if task := row.get('task_name'):
    made['task'] = task
  return made


def main() -> None:
  """Writes the pool."""
  parser = command_line.parser(__doc__)
  parser.add_argument('file', type=command_line.existing_file)
  parser.add_argument(
    '--folder', type=pathlib.Path, required=True, help='where to write the pool'
  )
  arguments = parser.parse_args()
  path = arguments.folder / NAME
  rows = [
    convert(row, number)
    for number, row in enumerate(read_rows(arguments.file, 'inputs', 'targets'))
  ]
  store.write_jsonl(path, rows)
  print(f'{path}: {console.count(len(rows), "prompt")}')


if __name__ == '__main__':
  command_line.run(main)
