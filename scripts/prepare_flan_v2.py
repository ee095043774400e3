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

import argparse
import json
import pathlib
from typing import Any

from edsft_jax import store
from edsft_jax.tables import readers

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
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('file', type=pathlib.Path)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  path = arguments.folder / NAME
  with readers.open_text(arguments.file) as file:
    rows = [convert(json.loads(line), i) for i, line in enumerate(file)]
  store.write_jsonl(path, rows)
  print(f'{path}: {len(rows):,} prompts')


if __name__ == '__main__':
  main()
