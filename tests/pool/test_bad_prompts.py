"""Prompts that cannot be used, in every format that can hold them."""

import csv
import json

import formats
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import default
from edsft_jax import errors, pool, store

HUGE = 'The quick brown fox jumps over the lazy dog. ' * 240_000
GOOD = 'Say back: moon'
REASONS = {
  'NUL': ('a\0b', 'the prompt has a NUL byte'),
  'only NUL': ('\0', 'the prompt has a NUL byte'),
  'surrogate': ('a\ud800b', 'the prompt has half of a surrogate pair'),
  'low surrogate': ('\udfff', 'the prompt has half of a surrogate pair'),
  'empty': ('', 'the prompt is missing or empty'),
  'white space': (' \n\t\u3000', 'the prompt is missing or empty'),
  'no turns': ([], 'the prompt is missing or empty'),
  'empty turn': (
    [{'role': 'user', 'content': ''}],
    'the prompt is empty',
  ),
  'NUL in a turn': (
    [{'role': 'user', 'content': '\0'}],
    'the conversation has a NUL byte',
  ),
  'surrogate in a turn': (
    [{'role': 'user', 'content': '\ud83d'}],
    'the conversation has half of a surrogate pair',
  ),
}
LINES = {'jsonl': 2, 'json': 2, 'csv': 3, 'parquet': 2}


def write(path, fmt, values):
  """A file whose rows have these prompts, or conversations for lists."""
  turns = [v if isinstance(v, list) else None for v in values]
  if any(turn is not None for turn in turns):
    user = [{'role': 'user', 'content': GOOD}]
    rows = [{'messages': user if t is None else t} for t in turns]
  else:
    rows = [{'prompt': value} for value in values]
  rows = [{'id': f'i{n}', **row} for n, row in enumerate(rows)]
  if fmt == 'jsonl':
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  elif fmt == 'json':
    path.write_text(json.dumps(rows))
  elif fmt == 'parquet':
    pq.write_table(pa.Table.from_pylist(rows), path)
  else:
    with path.open('w', newline='') as f:
      writer = csv.writer(f)
      writer.writerow(rows[0])
      for row in rows:
        turns = row.get('messages')
        text = row.get('prompt') if turns is None else json.dumps(turns)
        writer.writerow([row['id'], text])
  return path


def run(folder, path, **options):
  config = default.get_config()
  config.pool.update({'path': str(path), 'heldout_fraction': 0.0, **options})
  workdir = store.Workdir(folder)
  pool.check(config, workdir, frozenset())
  pool.run(config, workdir)
  return workdir


@pytest.mark.parametrize(
  ('fmt', 'name'),
  [
    (fmt, name)
    for fmt in LINES
    for name, (value, _) in REASONS.items()
    # These hold UTF-8 alone; in a cell of CSV a conversation is JSON.
    if not (
      'surrogate' in name
      and (fmt == 'parquet' or (fmt == 'csv' and isinstance(value, str)))
    )
    and not (fmt == 'csv' and name == 'no turns')
  ],
)
def test_quarantined_with_line_and_reason(tmp_path, fmt, name):
  value, reason = REASONS[name]
  path = write(tmp_path / f'p.{fmt}', fmt, [GOOD, value, f'{GOOD}!'])
  workdir = run(tmp_path / 'w', path)
  assert store.read_prompts(workdir.pool).ids[0] == 'i0'
  refused = [{'line': LINES[fmt], 'id': 'i1', 'reason': reason}]
  assert store.read_jsonl(workdir.quarantine) == refused
  with pytest.raises(errors.InputError, match=f'line {LINES[fmt]}: {reason}'):
    run(tmp_path / 'strict', path, strict=True)
  assert not (tmp_path / 'strict').exists()


def test_parquet_text_that_is_not_utf8(tmp_path):
  """Half a surrogate pair, as careless writers put it."""
  texts = [f'p{k}'.encode() for k in range(6000)]
  texts[5000] = b'a\xed\xa0\x80'
  column = pa.array(texts, pa.binary()).view(pa.string())
  pq.write_table(pa.table({'prompt': column}), tmp_path / 'p.parquet')
  workdir = run(tmp_path / 'w', tmp_path / 'p.parquet')
  assert len(store.read_prompts(workdir.pool)) == 5999
  assert store.read_jsonl(workdir.quarantine) == [
    {'line': 5001, 'id': '', 'reason': 'the prompt cannot be read'}
  ]


@pytest.mark.parametrize('fmt', LINES)
def test_ten_megabytes(tmp_path, fmt):
  """Are a prompt like any other; the model sees what its context holds."""
  path = write(tmp_path / f'p.{fmt}', fmt, [GOOD, HUGE])
  prompts = store.read_prompts(run(tmp_path / 'w', path).pool)
  assert prompts.prompts == [GOOD, HUGE]
  prompt_format = formats.load('demo', template='raw', separator=' ')
  ids, truncated = prompt_format.encode_prompt(prompts.prompts[1], 200, False)
  assert truncated
  assert len(ids) == 200
  assert HUGE.startswith(prompt_format.decode(ids))
