"""Generated pools in every format come back exactly; pool/ has no answers."""

import csv
import gzip
import json
import random

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import default
from edsft_jax import pool, store

_PIECES = (
  'Name', 'a', 'fish', ',', ';', '\t', '\n', '\r\n', '"', '""', "'", '=1+1',
  '[', ']', '{', '}', '\\n', '\\', '###', 'Human', ':', 'é', 'e\u0301',
  '\u200b', '\u4e2d\u6587', '\U0001f600', '  ', '-', '@', '0', '007', '1e5',
  'NaN', 'None',
  'null', '<b>', '&amp;', '|', '#', '%',
)  # fmt: skip


def text(draw, pieces, number, kind):
  pieces = draw.choices(pieces, k=draw.randint(1, 12))
  return f'{kind} {number}: ' + ' '.join(pieces) + '.'


def generate(seed, pieces=_PIECES):
  """Rows of several forms, and the prompts and answers that they mean."""
  draw = random.Random(seed)
  rows, prompts, answers = [], {}, {}
  for number in range(40):
    row_id = f'{number:03}'
    prompt = text(draw, pieces, number, 'Prompt')
    context = (
      text(draw, pieces, number, 'Context') if draw.random() < 0.5 else None
    )
    answer = (
      text(draw, pieces, number, 'SECRET') if draw.random() < 0.7 else None
    )
    user = {'role': 'user', 'content': prompt}
    turns = [{'role': 'system', 'content': 'Be brief.'}, user]
    form = draw.choice(['prompt', 'instruction', 'messages', 'sharegpt'])
    if form == 'prompt':
      row = {'prompt': prompt, 'response': answer}
      prompts[row_id] = prompt
    elif form == 'instruction':
      row = {'instruction': prompt, 'input': context, 'output': answer}
      prompts[row_id] = f'{prompt}\n\n{context}' if context else prompt
    else:
      said = [*turns]
      if answer:
        said.append({'role': 'assistant', 'content': answer})
      prompts[row_id] = turns
      if form == 'messages':
        row = {'messages': said}
      else:
        names = {'user': 'human', 'assistant': 'gpt', 'system': 'system'}
        row = {
          'conversations': [
            {'from': names[t['role']], 'value': t['content']} for t in said
          ]
        }
    if answer:
      answers[row_id] = answer
    rows.append(
      {'id': row_id, 'task': f't{number % 3}', 'level': number, **row}
    )
  return rows, prompts, answers


def flat(rows):
  """All rows with all columns, conversations as text: for tables of cells."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  cells = [
    [json.dumps(v) if isinstance(v := row.get(n), list) else v for n in names]
    for row in rows
  ]
  return names, cells


def write_lines(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def write_csv(path, rows, delimiter=',', encoding='utf-8'):
  names, cells = flat(rows)
  with path.open('w', newline='', encoding=encoding) as f:
    csv.writer(f, delimiter=delimiter).writerows([names, *cells])


def write_xlsx(path, rows):
  names, cells = flat(rows)
  book = openpyxl.Workbook()
  for row in [names, *cells]:
    book.active.append(row)
  for row in book.active.iter_rows():
    for cell in row:
      if cell.data_type == 'f':
        cell.data_type = 's'
  book.save(path)


def write_arrow(path, rows):
  table = pa.Table.from_pylist(rows)
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)


def compressed(codec):
  def write(path, rows):
    data = ''.join(f'{json.dumps(row)}\n' for row in rows).encode()
    path.write_bytes(
      gzip.compress(data)
      if codec == 'gzip'
      else pa.compress(data, codec, asbytes=True)
    )

  return write


def columns(rows):
  """Rows that all have all columns, as parquet needs them."""
  names = dict.fromkeys(name for row in rows for name in row)
  return [{name: row.get(name) for name in names} for row in rows]


WRITERS = {
  'p.jsonl': write_lines,
  'array.jsonl': lambda p, rows: p.write_text(json.dumps(rows)),
  'p.json': lambda p, rows: p.write_text(json.dumps(rows, indent=1)),
  'p.jsonl.gz': compressed('gzip'),
  'p.jsonl.zst': compressed('zstd'),
  'p.csv': write_csv,
  'p.tsv': lambda p, rows: write_csv(p, rows, '\t'),
  'semicolons.csv': lambda p, rows: write_csv(p, rows, ';', 'utf-8-sig'),
  'utf16.csv': lambda p, rows: write_csv(p, rows, '\t', 'utf-16'),
  'p.parquet': lambda p, rows: pq.write_table(
    pa.Table.from_pylist(columns(rows)), p
  ),
  'p.arrow': lambda p, rows: write_arrow(p, columns(rows)),
  'p.xlsx': write_xlsx,
}


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', WRITERS)
def test_round_trip(tmp_path, name, seed):
  # XML, and so .xlsx, has no other line end.
  pieces = [p for p in _PIECES if not (name == 'p.xlsx' and p == '\r\n')]
  rows, prompts, answers = generate(seed, pieces)
  rows += [
    {**rows[3], 'id': 'again'},
    {'id': 'bad', 'prompt': '', 'task': 't0'},
  ]
  WRITERS[name](tmp_path / name, rows)
  config = default.get_config()
  config.pool.path = str(tmp_path / name)
  config.pool.heldout_fraction = 0.2
  workdir = store.Workdir(tmp_path / 'work')
  pool.run(config, workdir)

  kept = store.read_prompts(workdir.pool)
  held = store.read_prompts(workdir.heldout)
  got = dict(
    zip([*kept.ids, *held.ids], [*kept.prompts, *held.prompts], strict=True)
  )
  assert got == prompts
  given = store.read_responses(workdir.pool_responses)
  assert {
    **given,
    **dict(zip(held.ids, held.responses, strict=True)),
  } == answers
  assert kept.tasks == [f't{int(i) % 3}' for i in kept.ids]
  counts = store.Manifest(workdir).counts('pool')
  assert counts['rows'] == len(rows)
  assert counts['duplicates'] == counts['quarantined'] == 1
  assert counts['prompts'] + counts['heldout'] == len(prompts)
  assert counts['heldout'] == round(0.2 * len(answers))
  for path in workdir.pool.parent.iterdir():
    data = path.read_bytes()
    if path.suffix == '.parquet':
      data = json.dumps(pq.read_table(path).to_pylist()).encode()
    assert b'SECRET' not in data
