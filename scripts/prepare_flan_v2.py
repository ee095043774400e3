"""Makes the pool of configs/bhatt2024_flan.py from a public sample of FLAN V2.

  wget https://huggingface.co/datasets/hamishivi/tulu_mix_store/resolve/main/\
flan_v2_resampled_100k.jsonl
  python scripts/prepare_flan_v2.py flan_v2_resampled_100k.jsonl --folder=data

writes data/flan_v2_100k.jsonl, with the conversion of open-instruct's
reformat_datasets.py: a prompt is `inputs`, followed by a new line unless it
ends with one or, apart from white space, with a colon; its answer is `targets`.
If rows name their task (`task_name`), it is kept; otherwise strategies that
need tasks find them by k-means. The file may be gzipped.
"""

import argparse
from collections.abc import Iterator
import gzip
import json
import pathlib
from typing import Any

NAME = 'flan_v2_100k.jsonl'


def convert(row: dict[str, Any], number: int) -> dict[str, str]:
  """A row of the pool."""
  prompt = row['inputs']
  if not prompt.endswith('\n') and not prompt.rstrip().endswith(':'):
    prompt += '\n'
  made = {
    'id': f'flan_v2_{number}',
    'prompt': prompt,
    'response': row['targets'],
  }
  if task := row.get('task_name'):
    made['task'] = task
  return made


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The rows of a file of JSON lines."""
  open_text = gzip.open if path.suffix == '.gz' else open
  with open_text(path, 'rt', encoding='utf-8') as file:
    yield from map(json.loads, file)


def main() -> None:
  """Writes the pool."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('file', type=pathlib.Path)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  arguments.folder.mkdir(parents=True, exist_ok=True)
  path = arguments.folder / NAME
  number = 0
  with path.open('w', encoding='utf-8') as file:
    for number, row in enumerate(read(arguments.file), start=1):
      file.write(json.dumps(convert(row, number - 1)) + '\n')
  print(f'{path}: {number:,} prompts')


if __name__ == '__main__':
  main()
