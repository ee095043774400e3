"""Files in every format give the same rows, and bad files name themselves."""

import csv
import datetime
import gzip
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edsft_jax import errors
from edsft_jax.tables import readers, spreadsheet, typed

ROWS = [
  {'id': 'a', 'prompt': 'Grüße,\n"zwei" Zeilen', 'response': 'ja'},
  {'id': 'b', 'prompt': 'x; y, z', 'response': None},
]


def write_csv(path, delimiter=',', encoding='utf-8'):
  with path.open('w', encoding=encoding, newline='') as f:
    writer = csv.DictWriter(f, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)


def write(path):
  lines = ''.join(f'{json.dumps(row)}\n' for row in ROWS)
  if path.name.startswith('array'):
    path.write_text(json.dumps(ROWS, indent=1))
  elif path.name.startswith('utf16'):
    write_csv(path, '\t', 'utf-16')
  elif path.suffix == '.jsonl':
    path.write_text(lines)
  elif path.suffix == '.gz':
    path.write_bytes(gzip.compress(lines.encode()))
  elif path.suffix == '.json':
    path.write_text(json.dumps(ROWS))
  elif path.suffix == '.zst':
    path.write_bytes(pa.compress(lines.encode(), 'zstd', asbytes=True))
  elif path.suffix == '.csv':
    write_csv(path)
  elif path.suffix == '.tsv':
    write_csv(path, '\t')
  elif path.suffix == '.arrow':
    table = pa.Table.from_pylist(ROWS)
    kind = pa.ipc.new_stream if 'stream' in path.name else pa.ipc.new_file
    with kind(path, table.schema) as writer:
      writer.write_table(table)
  elif path.suffix == '.xlsx':
    book = openpyxl.Workbook()
    book.create_sheet('empty')
    book.active.append(list(ROWS[0]))
    for row in ROWS:
      book.active.append(list(row.values()))
    book.save(path)
  else:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
  return path


def read(path, fmt='auto'):
  return list(readers.read(path, readers.find_format(path, fmt, 'pool.format')))


@pytest.mark.parametrize(
  'name',
  [
    'p.jsonl',
    'p.jsonl.gz',
    'p.jsonl.zst',
    'array.jsonl',
    'p.json',
    'p.csv',
    'p.tsv',
    'utf16.csv',
    'p.parquet',
    'p.arrow',
    'stream.arrow',
    'p.xlsx',
    'P.JSONL',
  ],
)
def test_formats_agree(tmp_path, name):
  path = write(tmp_path / name.lower())
  path = path.rename(tmp_path / name)
  rows = read(path)
  assert [row.values for row in rows] == ROWS


def test_lines_are_those_of_the_file(tmp_path):
  path = write(tmp_path / 'p.csv')
  assert [row.line for row in read(path)] == [2, 4]
  path = tmp_path / 'p.jsonl'
  path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
  assert [row.line for row in read(path)] == [2, 4]


def test_format_overrides_the_ending(tmp_path):
  path = write(tmp_path / 'p.csv').rename(tmp_path / 'p.txt')
  assert [row.values for row in read(path, 'csv')] == ROWS
  with pytest.raises(
    errors.InputError, match=r'no known extension.*pool\.format'
  ):
    read(path)
  with pytest.raises(errors.InputError, match=r"pool\.format='xml'"):
    read(path, 'xml')


@pytest.mark.parametrize(
  ('delimiter', 'name'), [(';', 'p.csv'), ('\t', 'p.csv'), ('\t', 'p.tsv')]
)
def test_csv_as_spreadsheets_save_it(tmp_path, delimiter, name):
  path = tmp_path / name
  write_csv(path, delimiter, 'utf-8-sig')
  assert [row.values for row in read(path)] == ROWS


def test_csv_as_people_type_it(tmp_path):
  path = tmp_path / 'p.csv'
  path.write_text('prompt, response\na, b\n')
  assert [row.values for row in read(path)] == [
    {'prompt': 'a', 'response': ' b'}
  ]


@pytest.mark.parametrize('name', ['p.jsonl', 'p.jsonl.gz', 'p.json'])
def test_text_as_windows_saves_it(tmp_path, name):
  path = tmp_path / name
  lines = [json.dumps(row) for row in ROWS]
  text = '\n'.join(lines) if 'jsonl' in name else json.dumps(ROWS, indent=2)
  data = text.replace('\n', '\r\n').encode('utf-8-sig')
  path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  assert [row.values for row in read(path)] == ROWS


def test_huge_cell(tmp_path):
  text = 'word ' * 100_000
  (tmp_path / 'p.csv').write_text(f'prompt\n"{text}"\n')
  (tmp_path / 'p.jsonl').write_text(json.dumps({'prompt': text}))
  for name in ('p.csv', 'p.jsonl'):
    assert read(tmp_path / name)[0].values == {'prompt': text}
  assert csv.field_size_limit() == 131072


def test_broken_jsonl_lines_do_not_stop_the_rest(tmp_path):
  path = tmp_path / 'p.jsonl'
  lines = [
    '{"prompt": "ok"}',
    '{"prompt": "SECRET',
    '["SECRET"]',
    '"SECRET"',
    '9' * 5000,
    '[' * 100_000,
    '{"prompt": "also"}',
  ]
  path.write_text('\n'.join(lines))
  rows = read(path)
  assert [row.values is None for row in rows] == [False, *[True] * 5, False]
  assert all(row.problem for row in rows[1:-1])
  assert not any('SECRET' in row.problem for row in rows)


def test_broken_csv_rows_do_not_stop_the_rest(tmp_path):
  path = tmp_path / 'p.csv'
  path.write_text('prompt,response\na,b\nx,y,z\nonly\n"q"r,s\n\nc,d\n')
  rows = read(path)
  assert [row.line for row in rows] == [2, 3, 4, 5, 7]
  assert [row.values is None for row in rows] == [
    False,
    True,
    True,
    True,
    False,
  ]
  assert rows[1].problem == '3 fields, but the header has 2'


def test_json_in_its_other_shapes(tmp_path):
  path = tmp_path / 'p.json'
  path.write_text(json.dumps({'data': ROWS}))
  assert [row.values for row in read(path)] == ROWS
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in ROWS))
  assert [row.values for row in read(path)] == ROWS
  path.write_text(json.dumps(ROWS[0], indent=2))
  assert [row.values for row in read(path)] == ROWS[:1]
  path.write_text(json.dumps([*ROWS, 3]))
  assert read(path)[2].problem == 'not an object but a number'


def cut(data):
  return data[: len(data) // 2]


BAD_FILES = {
  'latin1.jsonl': ('{"prompt": "Grüße"}'.encode('latin-1'), 'not text'),
  'utf16.csv': ('prompt,response\na,b\n'.encode('utf-16-le'), 'not text'),
  'picture.jsonl': (b'\x89PNG\r\n\x1a\n' + bytes(range(256)), 'not text'),
  'cut.jsonl.gz': (cut(gzip.compress(b'{"prompt": "a"}\n' * 99)), 'damaged'),
  'cut.jsonl.zst': (
    cut(pa.compress(b'{"prompt": "a"}\n' * 99, 'zstd', asbytes=True)),
    'damaged',
  ),
  'latin1.csv.gz': (
    gzip.compress('prompt\nGrüße\n'.encode('latin-1')),
    'UTF-8',
  ),
  'open.csv': (b'prompt\na\n"b\nc\nd\n', 'line 3 is never closed'),
  'twice.csv': (b'prompt,prompt\na,b\n', 'two columns'),
  'bad.json': (b'[{"prompt": "a"},', 'not JSON'),
  'number.json': (b'3', 'holds a number'),
  'bad.parquet': (b'PAR1 but not really', 'damaged'),
  'bad.arrow': (b'ARROW1 but not really', 'damaged'),
  'bad.xlsx': (b'PK but not really', 'not an .xlsx workbook'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_files(tmp_path, name):
  data, message = BAD_FILES[name]
  path = tmp_path / name
  path.write_bytes(data)
  with pytest.raises(errors.InputError, match=message) as e:
    read(path)
  assert str(path) in str(e.value)
  assert '\n' not in str(e.value)


def test_unreadable(tmp_path):
  with pytest.raises(errors.InputError, match='does not exist'):
    readers.check_readable(tmp_path / 'none.jsonl', 'pool.path')
  with pytest.raises(errors.InputError, match='is a folder'):
    readers.check_readable(tmp_path, 'pool.path')


def swallowed(delimiter, width, first, last):
  """A file of ten records with a quote open from one record to another."""
  rows = []
  for i in range(10):
    prompt = f'Name, say, item {i}' if delimiter == '\t' else f'Name item {i}'
    if i == first:
      prompt = f'"{prompt}'
    if i == last:
      prompt = f'{prompt}"'
    cells = [str(i), prompt, f'x{i}'][-width:]
    rows.append(delimiter.join(cells))
  header = delimiter.join(['id', 'prompt', 'response'][-width:])
  return '\n'.join([header, *rows, ''])


@pytest.mark.parametrize('delimiter', ['\t', ',', ';'])
@pytest.mark.parametrize('width', [2, 3])
@pytest.mark.parametrize(('first', 'last'), [(2, 7), (3, 5), (0, 9)])
def test_a_quote_that_swallows_records(tmp_path, delimiter, width, first, last):
  path = tmp_path / 'p.csv'
  path.write_text(swallowed(delimiter, width, first, last))
  rows = read(path)
  assert [row.line for row in rows] == list(range(2, 12))
  broken = [row.line for row in rows if row.values is None]
  assert broken == list(range(first + 2, last + 3))
  assert f'line {first + 2}' in rows[first].problem


def test_a_quote_that_swallows_records_and_closes_within_a_cell(tmp_path):
  path = tmp_path / 'p.tsv'
  text = swallowed('\t', 3, 2, None).replace('item 7', 'item "7" here')
  path.write_text(text)
  rows = read(path)
  assert [row.line for row in rows] == list(range(2, 12))
  assert [row.values is None for row in rows] == [
    2 <= i <= 7 for i in range(10)
  ]


@pytest.mark.parametrize(
  'cell',
  [
    'Dear Ann, Bob\nhow, say, are you?\nwell, I, am',
    'one\n\ntwo',
    'f(a,b)\nreturn',
    'a,b,c\nd',
    '1,2\n3',
    'x\n' * 50,
  ],
)
def test_cells_with_several_lines(tmp_path, cell):
  for names in (['prompt', 'response'], ['id', 'prompt', 'response']):
    path = tmp_path / 'p.csv'
    with path.open('w', newline='') as f:
      writer = csv.writer(f)
      writer.writerow(names)
      writer.writerow(['1', cell, 'x'][-len(names) :])
    (row,) = read(path)
    assert row.values['prompt'] == cell


def test_values_without_a_python_equivalent(tmp_path):
  """One such value makes neither the column nor the file unreadable."""
  days = pa.array([0, 4_000_000, None], pa.int32()).cast(pa.date32())
  nested = pa.ListArray.from_arrays(
    pa.array([0, 1, 2, 2], pa.int32()), days[:2]
  )
  table = pa.table({'prompt': ['a', 'b', 'c'], 'due': days, 'at': nested})
  pq.write_table(table, tmp_path / 'p.parquet')
  rows = read(tmp_path / 'p.parquet')
  assert [row.values['prompt'] for row in rows] == ['a', 'b', 'c']
  assert [row.values['due'] for row in rows] == [
    '1970-01-01',
    '12921-08-18',
    None,
  ]
  assert rows[1].values['at'] is typed.UNREADABLE
  assert len(rows[0].values['at']) == 1


def test_a_workbook_with_two_filled_sheets(tmp_path):
  book = openpyxl.Workbook()
  book.active.append(['prompt'])
  book.active.append(['a'])
  book.create_sheet('more').append(['prompt'])
  book.save(tmp_path / 'p.xlsx')
  with pytest.raises(errors.InputError, match='2 sheets with rows'):
    read(tmp_path / 'p.xlsx')


@pytest.mark.parametrize(
  ('lines', 'broken'),
  [
    (['"Name a fish,Trout', 'Name b",Wren'], 2),
    (['Name a fish,"Trout', 'Name b,Wren', 'Say ""c"",D', '"'], 4),
    (['Name a fish,"Trout', 'Name b,Wren"'], 2),
  ],
)
def test_records_of_two_columns_in_one_cell(tmp_path, lines, broken):
  path = tmp_path / 'p.csv'
  path.write_text('\n'.join(['prompt,response', *lines, 'Last,one', '']))
  rows = list(read(path))
  assert [row.values is None for row in rows] == [True] * broken + [False]
  assert rows[-1].values == {'prompt': 'Last', 'response': 'one'}


@pytest.mark.parametrize('separator', [';', '|', ','])
@pytest.mark.parametrize('says_so', [True, False])
def test_separators(tmp_path, separator, says_so):
  path = tmp_path / 'p.csv'
  lines = [f'prompt{separator}response', f'a{separator}b']
  first = [f'sep={separator}'] if says_so else []
  path.write_text('\n'.join([*first, *lines]))
  (row,) = read(path)
  assert row.values == {'prompt': 'a', 'response': 'b'}
  assert row.line == (3 if says_so else 2)


def test_a_jsonl_array_after_blank_lines(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text('\n\n[{"prompt": "a"},\n{"prompt": "b"}]\n')
  assert [row.values['prompt'] for row in read(path)] == ['a', 'b']


def test_json_with_lists_of_records_names_them(tmp_path):
  path = tmp_path / 'p.json'
  rows = [{'prompt': 'a'}]
  for contents in ({'data': rows, 'version': 1}, {'data': rows, 'test': rows}):
    path.write_text(json.dumps(contents))
    with pytest.raises(errors.InputError, match='an object with data'):
      list(read(path))


def test_the_canary_of_big_bench_is_no_second_list(tmp_path):
  path = tmp_path / 'p.json'
  path.write_text(json.dumps({'canary': 'Do not train.', 'examples': ROWS}))
  assert [row.values for row in read(path)] == ROWS


@pytest.mark.parametrize('end', ['\r', '\r\n', '\n'])
def test_every_line_end_ends_a_line(tmp_path, end):
  # More than the part of the file that is read first.
  rows = [{'prompt': f'prompt {i}'} for i in range(500)]
  path = tmp_path / 'p.jsonl'
  path.write_bytes(''.join(json.dumps(row) + end for row in rows).encode())
  found = read(path)
  assert [row.values for row in found] == rows
  assert [row.line for row in found] == list(range(1, 501))
  path = tmp_path / 'p.csv'
  text = ''.join(f'{i},"a\rb"{end}' for i in range(900))
  path.write_bytes(f'prompt,response{end}{text}'.encode())
  assert [row.values for row in read(path)] == [
    {'prompt': str(i), 'response': 'a\rb'} for i in range(900)
  ]


def _workbook(tmp_path, rows):
  """An openpyxl sheet of these rows, and a function that reads it."""
  book = openpyxl.Workbook()
  for row in rows:
    book.active.append(row)

  def saved():
    path = tmp_path / 'p.xlsx'
    book.save(path)
    return read(path)

  return book.active, saved


def test_all_rows_of_a_merged_cell_have_its_value(tmp_path):
  rows = [['Title', None], ['q', 'context'], ['a', 'C'], ['b', None]]
  sheet, saved = _workbook(tmp_path, rows[1:])
  sheet.merge_cells('B2:B3')
  assert [row.values for row in saved()] == [
    {'q': 'a', 'context': 'C'},
    {'q': 'b', 'context': 'C'},
  ]
  # A title over several columns does not fill them.
  sheet.append(['Part 2'])
  sheet.merge_cells('A4:B5')
  assert [row.values for row in saved()[2:]] == [
    {'q': 'Part 2', 'context': None},
    {'q': 'Part 2', 'context': None},
  ]


def test_cells_are_read_as_they_are_shown(tmp_path):
  sheet, saved = _workbook(
    tmp_path,
    [
      ['prompt', 'response'],
      ['a_x000D_\nb', 7],
      ['c', 0.5],
      ['d', '#N/A'],
      ['e', '=1+1'],
      ['f', datetime.date(2020, 1, 2)],
      ['g', True],
    ],
  )
  sheet['B3'].number_format = '0%'
  prompts, found = zip(*(row.values.values() for row in saved()), strict=True)
  assert prompts == ('a\nb', 'c', 'd', 'e', 'f', 'g')
  assert found[0] == '7'
  assert spreadsheet.stored(found[0]) == 7
  assert [str(value).partition(',')[0] for value in found[1:]] == [
    'a number in the form 0% (0.5)',
    'an error (#N/A)',
    'a formula without a result',
    'a date (2020-01-02T00:00:00)',
    'TRUE',
  ]


def test_json_with_one_record(tmp_path):
  path = tmp_path / 'p.json'
  row = {'id': 'x', 'messages': [{'role': 'user', 'content': 'a'}]}
  path.write_text(json.dumps(row))
  assert [found.values for found in read(path)] == [row]
