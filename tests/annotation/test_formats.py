"""Todos in every format, and what tools deliver, come back exactly."""

import csv
import io
import json
import pathlib
import random
import re
import xml.etree.ElementTree as ET

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edsft_jax import errors, store
from edsft_jax.annotation import delivery, formats, ledger
from edsft_jax.annotation.formats import Verdict, cells, label_studio

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
_PIECES = (
  'Name', 'a', 'fish', ',', ';', '\t', '\n', '\r\n', '"', '""', "'", '=1+1',
  '=', '+', '-', '@', '\uff1d', "'=", '[', ']', '{', '}', '\\n', '\\', 'é',
  'e\u0301', '\u200b', '\u2028', '\u4e2d\u6587', '\U0001f600', '  ', '0', '007',
  '1e5', 'NaN', 'null', 'TRUE', '<b>', '&amp;', '|', '#', '%', '{{ x }}',
)  # fmt: skip
IDS = (
  '123456789012345676', '007', '1e5', '1.0', '-1', '=A1', '+7', '@x', 'TRUE',
  'null', 'NaN', 'MAR1', 'mar-1', '1-2', '1/2', '2026-11-26', '12:30', "'q",
  'id:7', '7', 'dolly:7', ' a', 'ü7', 'p-6', 'a.b', 'E5', '0x1F', '1E400',
  '€5', '5%', 'sept',
)  # fmt: skip


def generate(seed, count=40):
  """A pool with awkward ids and texts, and an answer to each prompt."""
  draw = random.Random(seed)

  def text():
    joint = draw.choice(['', ' '])
    return joint.join(draw.choices(_PIECES, k=draw.randint(1, 9)))

  ids = [*IDS, *(f'p{i}' for i in range(count - len(IDS)))]
  prompts = []
  for number in range(count):
    # Numbered, so that no two differ in white space only.
    prompt = text() + draw.choice([f'{number}?', f' {number}'])
    if number % 5 == 0:
      prompt = [
        {'role': 'user', 'content': text()},
        {'role': 'assistant', 'content': prompt},
        {'role': 'user', 'content': text()},
      ]
    prompts.append(prompt)
  answers = {}
  for i in ids:
    answer = text()
    while not answer.strip() or cells.damage(answer):
      answer = text()
    answers[i] = answer
  return store.Prompts(
    ids, prompts, [f't{i % 3}' for i in range(count)]
  ), answers


def todo(pool, extension):
  """The todo in a format, and the format."""
  form = next(f for f in formats.written() if f.extension == extension)
  return form.write(ledger.tasks(pool, pool.ids))


def filled(pool, answers, extension='csv'):
  """The rows of todo.csv or todo.jsonl with their answers."""
  text = todo(pool, extension)
  if extension == 'csv':
    rows = list(csv.DictReader(io.StringIO(text, newline='')))
  else:
    rows = [json.loads(line) for line in text.split('\n') if line]
  assert len(rows) == len(pool)
  for row, prompt_id in zip(rows, pool.ids, strict=True):
    row['response'] = answers[prompt_id]
  return rows


def as_csv(rows, delimiter=','):
  file = io.StringIO(newline='')
  writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue().encode()


def as_jsonl(rows):
  return ''.join(
    f'{json.dumps(r, ensure_ascii=False)}\n' for r in rows
  ).encode()


def as_xlsx(rows):
  book = openpyxl.Workbook()
  book.active.append(list(rows[0]))
  for row in rows:
    book.active.append(list(row.values()))
  file = io.BytesIO()
  book.save(file)
  return file.getvalue()


def as_parquet(rows):
  file = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(rows), file)
  return file.getvalue()


def in_label_studio(pool, answers):
  tasks = json.loads(todo(pool, 'label_studio.json'))
  for number, task in enumerate(tasks):
    value = {'text': [answers[task['data']['prompt_id']]]}
    result = {'from_name': 'response', 'type': 'textarea', 'value': value}
    annotation = {'completed_by': 1, 'result': [result], 'lead_time': 2.5}
    task |= {'id': 900 + number, 'annotations': [annotation]}
  return json.dumps(tasks).encode()


def in_argilla(pool, answers):
  records = json.loads(todo(pool, 'argilla.json'))
  for record in records:
    value = {'value': answers[record['id']], 'user_id': 'u1'}
    record |= {'responses': {'response': [value]}, 'status': 'completed'}
  return json.dumps(records).encode()


def in_prodigy(pool, answers):
  rows = filled(pool, answers, 'jsonl')
  for row in rows:
    row['text'] = row.pop('prompt')
    row['user_input'] = row.pop('response')
    row |= {'_input_hash': 1, '_timestamp': 5, 'answer': 'accept'}
  return as_jsonl(rows)


# The name of a delivered file -> its bytes.
DELIVERIES = {
  'a.csv': lambda p, a: as_csv(filled(p, a)),
  'semicolons.csv': lambda p, a: as_csv(filled(p, a), ';'),
  'utf16.csv': lambda p, a: as_csv(filled(p, a)).decode().encode('utf-16'),
  'a.tsv': lambda p, a: as_csv(filled(p, a), '\t'),
  'a.xlsx': lambda p, a: as_xlsx(filled(p, a)),
  'from_jsonl.xlsx': lambda p, a: as_xlsx(filled(p, a, 'jsonl')),
  'a.json': lambda p, a: json.dumps(filled(p, a, 'jsonl')).encode(),
  'lines.json': lambda p, a: as_jsonl(filled(p, a, 'jsonl')),
  'a.jsonl': lambda p, a: as_jsonl(filled(p, a, 'jsonl')),
  'from_csv.jsonl': lambda p, a: as_jsonl(filled(p, a)),
  'a.parquet': lambda p, a: as_parquet(filled(p, a, 'jsonl')),
  'label_studio.json': in_label_studio,
  'argilla.json': in_argilla,
  'prodigy.jsonl': in_prodigy,
}


def take(path, pool, **rules):
  delivered = formats.read(path)
  return delivered, delivery.take(
    path, delivered.rows, pool, {}, (), delivery.Rules(**rules)
  )


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', DELIVERIES)
def test_every_answer_comes_back_exactly(tmp_path, name, seed):
  pool, answers = generate(seed)
  path = tmp_path / name
  path.write_bytes(DELIVERIES[name](pool, answers))
  if name.endswith('.xlsx'):  # Cells of workbooks have one kind of line end.
    answers = {i: text.replace('\r\n', '\n') for i, text in answers.items()}
  _, taken = take(path, pool)
  assert {i: row.response for i, row in taken.answers.items()} == answers
  assert not taken.rejections
  assert not taken.counts
  # The same content under a name that says nothing.
  unnamed = tmp_path / 'delivery'
  path.rename(unnamed)
  if not name.startswith(('a.tsv', 'semicolons')):
    assert take(unnamed, pool)[1] == taken


@pytest.mark.parametrize('seed', range(3))
def test_nothing_in_the_csv_is_run_or_converted(seed):
  pool, _ = generate(seed)
  rows = list(csv.DictReader(io.StringIO(todo(pool, 'csv'), newline='')))
  for row, prompt_id, prompt in zip(rows, pool.ids, pool.prompts, strict=True):
    for cell in row.values():
      assert not re.match('[=+\\-@\t\r\n\uff1d]', cell)
    assert re.fullmatch('id:.*|[A-Za-z_][^/ ]*', row['prompt_id'])
    if prompt_id.lower() in ('mar1', 'sept', 'true', 'null', 'e5x'):
      assert row['prompt_id'].startswith('id:')
    assert cells.restore(row['prompt']) == ledger.readable(prompt)


@pytest.mark.parametrize('extension', ['jsonl', 'label_studio.json'])
def test_what_annotators_are_shown(extension):
  pool, _ = generate(0)
  text = todo(pool, extension)
  rows = (
    [task['data'] for task in json.loads(text)]
    if extension != 'jsonl'
    else [json.loads(line) for line in text.split('\n') if line]
  )
  for rank, row in enumerate(rows, 1):
    prompt = ledger.readable(pool.prompts[rank - 1])
    assert row['prompt_id'] == pool.ids[rank - 1]
    assert row['prompt'] == prompt
    assert (row['rank'], row['task']) == (rank, pool.tasks[rank - 1])
    assert row['words'] == len(prompt.split())
    assert row['characters'] == len(prompt)


def test_an_id_that_fits_two_prompts_needs_the_prompt(tmp_path):
  pool = store.Prompts(['7', 'id:7'], ['Seven?', 'Other?'], None)
  path = tmp_path / 'a.jsonl'
  path.write_bytes(as_jsonl([{'prompt_id': 'id:7', 'response': 'x'}]))
  with pytest.raises(errors.InputError, match='id:7: 7 or id:7'):
    take(path, pool)
  for prompt, prompt_id in (('Seven?', '7'), ('Other?', 'id:7')):
    row = {'prompt_id': 'id:7', 'prompt': prompt, 'response': 'x'}
    path.write_bytes(as_jsonl([row]))
    assert list(take(path, pool)[1].answers) == [prompt_id]


def test_one_table_of_formats():
  names = [form.name for form in formats.FORMATS]
  assert len(set(names)) == len(names)
  extensions = [form.extension for form in formats.written()]
  assert extensions[0] == 'csv'
  assert sorted(extensions) == sorted(
    ['argilla.json', 'csv', 'jsonl', 'label_studio.json']
  )


# Label Studio: exports of a real server; see scripts/try_label_studio.sh.

EXPORTS = FIXTURES / 'label_studio'


def exported_pool():
  rows = store.read_jsonl(EXPORTS / 'pool.jsonl')
  prompts = [row.get('prompt', row.get('messages')) for row in rows]
  return store.Prompts([row['id'] for row in rows], prompts, None)


@pytest.mark.parametrize(
  ('name', 'form'),
  [
    ('export.json', 'Label Studio JSON'),
    ('export-min.json', 'a Label Studio table'),
    ('export.csv', 'a Label Studio table'),
    ('export.tsv', 'a Label Studio table'),
  ],
)
def test_exports_of_a_label_studio_server(name, form):
  expected = store.read_json(EXPORTS / 'expected.json')
  delivered, taken = take(EXPORTS / name, exported_pool())
  assert delivered.format == form
  assert {i: row.response for i, row in taken.answers.items()} == expected[
    'answers'
  ]
  assert {i: row.reason for i, row in taken.rejections.items()} == expected[
    'rejected'
  ]
  # Only JSON has tasks without an annotation.
  assert taken.counts['skipped'] == (name == 'export.json')
  row = next(iter(taken.answers.values()))
  assert row.annotator == '1'
  assert float(row.others['lead_time']) == 12.5
  assert row.others['created_at'].startswith('20')


def test_a_swapped_prompt_in_a_label_studio_export(tmp_path):
  tasks = store.read_json(EXPORTS / 'export.json')
  first, second = tasks[0]['data'], tasks[1]['data']
  first['prompt'], second['prompt'] = second['prompt'], first['prompt']
  path = tmp_path / 'export.json'
  store.write_json(path, tasks)
  ids = f'{first["prompt_id"]}, {second["prompt_id"]}'
  with pytest.raises(errors.InputError, match=rf'2 with another.*\({ids}\)'):
    take(path, exported_pool())


def test_two_parts_of_an_answer_are_not_joined(tmp_path):
  tasks = store.read_json(EXPORTS / 'export.json')
  answered = next(task for task in tasks if task['annotations'][0]['result'])
  result = answered['annotations'][0]['result'][0]
  result['value']['text'] = ['one', 'two']
  path = tmp_path / 'export.json'
  store.write_json(path, tasks)
  with pytest.raises(errors.InputError, match='the response has 2 parts'):
    take(path, exported_pool())
  rows = store.read_json(EXPORTS / 'export-min.json')
  rows[0]['response'] = ['one', 'two']
  store.write_json(path, rows)
  with pytest.raises(errors.InputError, match='the response has several parts'):
    take(path, exported_pool())


def test_the_number_of_a_task_is_not_an_id(tmp_path):
  """Tables of an older todo have no prompt_id, and its id is overwritten."""
  rows = store.read_json(EXPORTS / 'export-min.json')
  pool = exported_pool()
  for number, row in enumerate(rows):
    row['id'] = pool.ids[number]  # Those of other prompts.
    del row['prompt_id']
  path = tmp_path / 'export.json'
  store.write_json(path, rows)
  expected = store.read_json(EXPORTS / 'expected.json')
  taken = take(path, pool)[1]
  assert {i: row.response for i, row in taken.answers.items()} == expected[
    'answers'
  ]


def test_the_labelling_configuration():
  """Its tags have the names of the data and of the exported columns."""
  view = ET.fromstring(label_studio.CONFIG)
  assert view.tag == 'View'
  named = {tag.get('name'): tag for tag in view if tag.get('name')}
  assert set(named) == {'prompt', 'response', 'verdict', 'reason'}
  assert named['prompt'].get('value') == '$prompt'
  for name in ('response', 'verdict', 'reason'):
    assert named[name].get('toName') == 'prompt'


# Argilla.


def record(number, responses, **others):
  return {
    'id': f'p{number}',
    'fields': {'prompt': f'Prompt {number}?'},
    'metadata': {'task': 't', 'rank': number},
    'suggestions': {},
    'responses': responses,
    'vectors': {},
    'status': 'completed',
    '_server_id': f's{number}',
    **others,
  }


def by(*answers):
  return [{'value': text, 'user_id': f'u{k}'} for k, text in enumerate(answers)]


def argilla_pool():
  numbers = range(6)
  return store.Prompts(
    [f'p{k}' for k in numbers], [f'Prompt {k}?' for k in numbers], None
  )


def test_argilla_records(tmp_path):
  path = tmp_path / 'records.json'
  reject = {'verdict': by('rejected'), 'reason': by('not a question')}
  records = [
    record(0, {'response': by('zero')}),
    record(1, {'response': by('draft')}, status='pending'),
    record(2, reject),
    record(3, {'response': by('same', 'same')}),
    record(4, {}, status='pending'),
  ]
  path.write_text(json.dumps(records))
  delivered, taken = take(path, argilla_pool())
  assert delivered.format == 'Argilla records'
  assert delivered.notes == [
    '2 records without a submitted response: drafts are left out'
  ]
  answers = {i: row.response for i, row in taken.answers.items()}
  assert answers == {'p0': 'zero', 'p3': 'same'}
  assert taken.answers['p3'].annotator == 'u0'
  assert {i: r.reason for i, r in taken.rejections.items()} == {
    'p2': 'not a question'
  }
  assert taken.counts['skipped'] == 2
  records.append(record(5, {'response': by('one', 'other')}))
  path.write_text(json.dumps(records))
  with pytest.raises(errors.InputError, match=r'several different.*\(p5\)'):
    take(path, argilla_pool())
  assert take(path, argilla_pool(), duplicates='last')[1].answers[
    'p5'
  ].response == ('other')


def test_flat_argilla_records(tmp_path):
  def flat(number, texts, statuses):
    users = [f'u{k}' for k in range(len(texts))]
    return {
      'id': f'p{number}',
      'status': 'completed',
      'prompt': f'Prompt {number}?',
      'rank': number,
      'response.responses': texts or None,
      'response.responses.users': users or None,
      'response.responses.status': statuses or None,
    }

  rows = [
    flat(0, ['zero'], ['submitted']),
    flat(1, ['thrown away'], ['discarded']),
    flat(2, ['half', 'whole'], ['draft', 'submitted']),
    flat(3, [], []) | {'status': 'pending'},
  ]
  for path in (tmp_path / 'a.parquet', tmp_path / 'a.json'):
    content = json.dumps(rows).encode()
    path.write_bytes(as_parquet(rows) if path.suffix != '.json' else content)
    taken = take(path, argilla_pool())[1]
    answers = {i: row.response for i, row in taken.answers.items()}
    assert answers == {'p0': 'zero', 'p2': 'whole'}
    assert set(taken.rejections) == {'p1'}


def test_records_of_argilla_1(tmp_path):
  def given(text, status):
    values = {'response': {'value': text}} if text else {}
    return {'user_id': 'u', 'status': status, 'values': values}

  rows = [
    record(0, [given('zero', 'submitted')], external_id='p0', id='uuid-0'),
    record(1, [given(None, 'discarded')], external_id='p1', id='uuid-1'),
    record(2, [given('draft', 'draft')], external_id='p2', id='uuid-2'),
  ]
  path = tmp_path / 'records.jsonl'
  path.write_bytes(as_jsonl(rows))
  taken = take(path, argilla_pool())[1]
  assert {i: r.response for i, r in taken.answers.items()} == {'p0': 'zero'}
  assert set(taken.rejections) == {'p1'}


# Prodigy.


@pytest.mark.parametrize('place', ['prompt_id', 'id', 'meta', 'old meta'])
def test_prodigy_verdicts(tmp_path, place):
  def row(number, answer):
    prompt_id = f'p{number}'
    where = {'meta': {'meta': {'prompt_id': prompt_id}}}
    where['old meta'] = {'meta': {'id': prompt_id, 'source': 'x'}}
    return {
      'text': f'Prompt {number}?',
      'user_input': f'A {number}',
      'answer': answer,
      '_input_hash': -5,
      '_task_hash': 7,
      '_annotator_id': 'session-ann',
      '_timestamp': 1_700_000_000 + number,
      **where.get(place, {place: prompt_id}),
    }

  path = tmp_path / 'out.jsonl'
  path.write_bytes(
    as_jsonl([row(0, 'accept'), row(1, 'reject'), row(2, 'ignore')])
  )
  delivered, taken = take(path, argilla_pool())
  assert delivered.format == 'Prodigy'
  assert [row.id for row in delivered.rows] == ['p0', 'p1', 'p2']
  assert {i: r.response for i, r in taken.answers.items()} == {'p0': 'A 0'}
  assert set(taken.rejections) == {'p1'}
  assert taken.counts['skipped'] == 1
  assert taken.answers['p0'].annotator == 'session-ann'
  assert taken.answers['p0'].others['_timestamp'] == 1_700_000_000


def test_a_column_answer_is_a_verdict_only_in_prodigy(tmp_path):
  path = tmp_path / 'out.jsonl'
  path.write_bytes(as_jsonl([{'prompt_id': 'p0', 'answer': 'accept'}]))
  with pytest.raises(errors.InputError, match='no column response'):
    take(path, argilla_pool())


# Cells of spreadsheets.


@pytest.mark.parametrize(
  ('text', 'found'),
  [
    ('#NAME?', 'the spreadsheet error #NAME?'),
    ('#REF!', 'the spreadsheet error #REF!'),
    ('#DIV/0!', 'the spreadsheet error #DIV/0!'),
    ('#N/A', 'the spreadsheet error #N/A'),
    ('#WERT!', 'the spreadsheet error #WERT!'),
    ('#¡REF!', 'the spreadsheet error #¡REF!'),
    ('Err:508', 'the spreadsheet error Err:508'),
    ('1.23E+17', 'the number 1.23E+17'),
    ('1,23457E+17', 'the number 1,23457E+17'),
    ('#name', ''),
    ('# N/A', ''),
    ('1E5', ''),
    ('Is it #REF!', ''),
    ('about 1.23E+17', ''),
  ],
)
def test_errors_and_numbers_of_spreadsheets(text, found):
  assert cells.damage(text) == found


def test_a_formula_with_a_result_is_not_an_answer(tmp_path):
  """The annotator saw the result; the text is another one."""
  book = openpyxl.Workbook()
  book.active.append(['prompt_id', 'response'])
  book.active.append(['p0', '=1+1'])
  book.save(tmp_path / 'a.xlsx')
  # No result: a program wrote text.
  rows = formats.read(tmp_path / 'a.xlsx').rows
  assert rows[0].response == '=1+1'
  import zipfile

  with zipfile.ZipFile(tmp_path / 'a.xlsx') as source:
    parts = {name: source.read(name) for name in source.namelist()}
  with zipfile.ZipFile(tmp_path / 'b.xlsx', 'w') as target:
    for name, data in parts.items():
      data = re.sub(rb'<v ?/>|<v></v>', b'<v>2</v>', data)
      target.writestr(name, data)
  rows = formats.read(tmp_path / 'b.xlsx').rows
  assert 'a formula (2), made by the spreadsheet' in rows[0].problem


def test_verdicts_outweigh_answers():
  assert formats.Verdict is Verdict
  from edsft_jax.annotation.formats import verdicts

  found = [Verdict.ANSWERED, None, Verdict.SKIPPED, Verdict.REJECTED]
  assert verdicts.heaviest(found) is Verdict.REJECTED
  assert verdicts.heaviest(found[:3]) is Verdict.SKIPPED
  assert verdicts.heaviest([None]) is None


def _label_studio(tmp_path, *annotations, **data):
  path = tmp_path / 'export.json'
  task = {'data': {'prompt_id': 'p0', 'prompt': 'Plain?', **data}}
  path.write_text(json.dumps([task | {'annotations': list(annotations)}]))
  return formats.read(path).rows


def _result(name, **value):
  return {'from_name': name, 'value': value}


@pytest.mark.parametrize(
  'annotation',
  [
    'x',
    None,
    {'result': {'a': 1}},
    {'result': ['x']},
    {'result': [_result('response', text=[5])]},
    {'result': [{'from_name': 'response', 'value': 'x'}]},
    {'result': [], 'reviews': 'x'},
  ],
)
def test_label_studio_exports_of_no_known_form(tmp_path, annotation):
  (row,) = _label_studio(tmp_path, annotation)
  assert row.problem


def _argilla(tmp_path, **values):
  path = tmp_path / 'records.json'
  fields = {'fields': {'prompt': 'Plain?'}, 'metadata': {'prompt_id': 'p0'}}
  path.write_text(json.dumps([fields | values]))
  return formats.read(path).rows


@pytest.mark.parametrize(
  'responses',
  [
    {'response': ['x']},
    {'response': 'x'},
    [{'user_id': 'u', 'values': 'x'}],
    ['x'],
  ],
)
def test_argilla_records_of_no_known_form(tmp_path, responses):
  (row,) = _argilla(tmp_path, responses=responses)
  assert row.problem
