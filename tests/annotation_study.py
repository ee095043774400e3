"""A workdir whose pool and selections were made elsewhere, for annotate."""

import csv
import pathlib

import pyarrow as pa

from configs import default
from edsft_jax import annotation, store

PROMPTS = {
  'p0': 'Plain?',
  'p1': 'Comma, "quote" and\nnew line; Grüße\r\n=1+1',
  'p2': [{'role': 'user', 'content': 'One turn?'}],
  'p3': [
    {'role': 'user', 'content': 'Hi.'},
    {'role': 'assistant', 'content': 'Ho.'},
    {'role': 'user', 'content': 'And?'},
  ],
  **{f'p{k}': f'Prompt {k}?' for k in range(4, 10)},
}
ORDERS = {
  ('random', 0): 'p3 p0 p1 p7 p8 p9',
  ('random', 1): 'p0 p2 p3 p4 p5 p6',
  ('min_margin', 0): 'p2 p1 p0 p3 p4 p5',
  ('min_margin', 1): 'p2 p1 p0 p3 p4 p5',
}


class Study:
  """A workdir whose pool and selections were made elsewhere."""

  def __init__(self, root):
    self.workdir = store.Workdir(root)
    texts = [p if isinstance(p, str) else None for p in PROMPTS.values()]
    turns = [p if isinstance(p, list) else None for p in PROMPTS.values()]
    columns = {'id': list(PROMPTS), 'prompt': texts, 'messages': turns}
    columns['task'] = ['even', 'odd'] * 5
    store.write_parquet(self.workdir.pool, pa.table(columns))
    self.know({})
    for (strategy, seed), ids in ORDERS.items():
      rows = [{'rank': r, 'id': i} for r, i in enumerate(ids.split())]
      store.write_jsonl(self.workdir.selection(strategy, seed), rows)

  def know(self, responses):
    columns = {
      'id': pa.array(list(responses), pa.string()),
      'response': pa.array(list(responses.values()), pa.string()),
    }
    store.write_parquet(self.workdir.pool_responses, pa.table(columns))

  def run(self, budgets=(2,), answers_path='', options=None, **study):
    config = default.get_config()
    config.selection.strategies = ('random', 'min_margin')
    config.study.update(budgets=budgets, seeds=(0, 1), **study)
    config.annotation.answers_path = str(answers_path)
    config.annotation.update(options or {})
    annotation.check(config, self.workdir, frozenset())
    annotation.run(config, self.workdir)

  def path(self, name='todo.csv'):
    return self.workdir.todo.with_name(name)

  def ids(self, name='todo.csv'):
    return [row['prompt_id'] for row in read_csv(self.path(name))]

  @property
  def responses(self):
    return store.read_responses(self.workdir.responses)

  @property
  def counts(self):
    return store.Manifest(self.workdir).counts('annotate')


def read_csv(path):
  with path.open(encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


def write_csv(path, rows, encoding='utf-8', delimiter=','):
  with path.open('w', encoding=encoding, newline='') as f:
    writer = csv.DictWriter(f, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)


def fill(source, target=None, encoding='utf-8', delimiter=','):
  """Answers every row of a todo as a person would; returns the file."""
  target = target or source
  rows = read_csv(source) if is_csv(source) else store.read_jsonl(source)
  rows = [r | {'response': f'A {r["prompt_id"]}'} for r in rows]
  if is_csv(source):
    write_csv(target, rows, encoding, delimiter)
  else:
    store.write_jsonl(target, rows)
  return target


def is_csv(path: pathlib.Path) -> bool:
  return path.suffix.lower() == '.csv'


SMALLEST = ['p3', 'p0', 'p2', 'p1']  # Of budget 2, in the order of the cells.
