"""Cuts Super-NaturalInstructions to a small pool and a held-out set.

  python scripts/prepare_sni.py --pool=natural-instructions/tasks \
      --heldout=natural-instructions/tasks --ids=docs/sni_smollm2/ids.csv \
      --folder=sni

writes sni/pool.jsonl and sni/heldout.jsonl for configs/sni_smollm2.py. The data
are Super-NaturalInstructions (Wang et al., EMNLP 2022), Apache-2.0:

  git clone https://github.com/allenai/natural-instructions

--pool and --heldout are its folder of tasks, or files of rows (JSON lines, may
be gzipped) with id, task, category, prompt and response. A prompt is a task's
definition, an empty line and an instance's input; the answer is its first
output.

With --ids, exactly the instances listed there are written. Without it, --pool
and --heldout must be different instances. Short ones are kept, except for those
that quote hate speech. Of these, the pool gets --num_prompts and the held-out
set --per_task of each task: those whose ids have the smallest hashes. So the
numbers of prompts per task stay uneven in the pool, and the held-out set weighs
all tasks nearly alike.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import csv
import hashlib
import json
import pathlib

import command_line
from prompt_files import read_rows

from edsft_jax import console, errors, store

# The most characters of a prompt, and of its answer.
CHARACTERS, ANSWER_CHARACTERS = 400, 100

POOL, HELDOUT = 'pool', 'heldout'
# Its instances quote hate speech, which pages with examples would show.
HATEFUL = 'Toxic Language Detection'
FIELDS = ('id', 'task', 'category', 'prompt', 'response')
Row = dict[str, str]


def read(path: pathlib.Path) -> Iterator[Row]:
  """Rows of a folder of tasks, or of a file of rows."""
  if not path.is_dir():
    yield from read_rows(path, *FIELDS)
    return
  for file_path in sorted(path.glob('task*.json')):
    task = json.loads(file_path.read_text(encoding='utf-8'))
    for instance in task['Instances']:
      yield {
        'id': f'sni:{instance["id"]}',
        'task': file_path.stem,
        'category': task['Categories'][0],
        'prompt': f'{task["Definition"][0]}\n\n{instance["input"]}',
        'response': instance['output'][0],
      }


def short(rows: Iterable[Row]) -> list[Row]:
  """Rows with a short prompt and a short answer.

  Those that quote hate speech are left out. The others are ordered by the hash
  of their ids, which is as good as a random order.
  """
  kept = [
    row
    for row in rows
    if len(row['prompt']) <= CHARACTERS
    and len(row['response']) <= ANSWER_CHARACTERS
    and row['category'] != HATEFUL
  ]
  return sorted(
    kept, key=lambda row: hashlib.sha256(row['id'].encode()).digest()
  )


def first_of_each_task(rows: Iterable[Row], count: int) -> list[Row]:
  """The first rows of each task, in their order."""
  seen: collections.Counter[str] = collections.Counter()
  kept = []
  for row in rows:
    seen[row['task']] += 1
    if seen[row['task']] <= count:
      kept.append(row)
  return kept


def _listed(rows: Iterable[Row], ids: Sequence[str], name: str) -> list[Row]:
  by_id = {row['id']: row for row in rows}
  if missing := [i for i in ids if i not in by_id]:
    raise errors.InputError(
      f'--{name} lacks {len(missing)} of {len(ids)} listed instances, first '
      f'{missing[0]}: check --ids'
    )
  return [by_id[i] for i in ids]


def main() -> None:
  """Writes pool.jsonl and heldout.jsonl."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  for name, about in (
    (POOL, 'tasks or rows of the pool'),
    (HELDOUT, 'tasks or rows of the held-out set'),
  ):
    add(f'--{name}', type=command_line.existing, required=True, help=about)
  add('--folder', type=pathlib.Path, required=True, help='where to write both')
  add('--ids', type=command_line.existing_file, help='CSV with split and id')
  add(
    '--num_prompts',
    type=command_line.positive,
    default=1600,
    help='prompts of the pool',
  )
  add(
    '--per_task',
    type=command_line.positive,
    default=1,
    help='held-out prompts per task',
  )
  arguments = parser.parse_args()
  pool, heldout = read(arguments.pool), read(arguments.heldout)
  if arguments.ids:
    listed = collections.defaultdict(list)
    with arguments.ids.open(newline='', encoding='utf-8') as file:
      for line in csv.DictReader(file):
        listed[line['split']].append(line['id'])
    split = {
      POOL: _listed(pool, listed[POOL], POOL),
      HELDOUT: _listed(heldout, listed[HELDOUT], HELDOUT),
    }
  else:
    split = {
      POOL: short(pool)[: arguments.num_prompts],
      HELDOUT: first_of_each_task(short(heldout), arguments.per_task),
    }
  for name, rows in split.items():
    path = arguments.folder / f'{name}.jsonl'
    store.write_jsonl(path, rows)
    tasks = len({row['task'] for row in rows})
    prompts = console.count(len(rows), 'prompt')
    print(f'{path}: {prompts} of {console.count(tasks, "task")}')


if __name__ == '__main__':
  command_line.run(main)
