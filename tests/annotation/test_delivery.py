"""Deliveries are taken as they are meant, or refused as a whole."""

import json

from annotation_study import (
  PROMPTS,
  SMALLEST,
  Study,
  fill,
  is_csv,
  read_csv,
  write_csv,
)
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edsft_jax import annotation, errors, store
from edsft_jax import study as study_lib


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / 'work')


def deliver(study, path, change=lambda rows: None, budgets=(2,), **options):
  """Fills a todo, changes its rows and delivers it."""
  if not path.exists():
    study.run(budgets)
    fill(study.path(f'todo{path.suffix}'), path)
  rows = read_csv(path) if is_csv(path) else store.read_jsonl(path)
  change(rows)
  (write_csv if is_csv(path) else store.write_jsonl)(path, rows)
  study.run(budgets, answers_path=path, options=options)


def contents(study):
  """Every file of the workdir, to see that none changed."""
  return {
    p: p.read_bytes() for p in study.workdir.root.rglob('*') if p.is_file()
  }


# A part of the answers.


def drop(rows):
  del rows[1]


def blank(rows):
  rows[1]['response'] = ' \n'


def cancel(rows):
  rows[1]['response'] = 'half of an ans'
  for row in rows:
    row['status'] = 'cancelled' if row is rows[1] else 'done'


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (drop, '3 new answers'),
    (blank, '1 without an answer'),
    (cancel, '1 skipped'),
  ],
)
def test_a_part_is_taken_and_the_rest_asked_for(
  study, tmp_path, capsys, suffix, change, message
):
  deliver(study, tmp_path / f'a{suffix}', change)
  assert study.responses == {i: f'A {i}' for i in SMALLEST if i != 'p0'}
  assert study.ids() == ['p0']
  assert annotation.missing(study.workdir) == 1
  out = capsys.readouterr().out
  assert 'read: 3 new answers' in out
  assert message in out
  assert '1 of 4 answers are missing' in out
  # random-k2-seed0 and random-k2-seed1 need p0, min_margin's do not.
  assert study.counts['cells'] == 4
  assert study.counts['complete_cells'] == 2


def test_a_todo_without_answers_yet(study, capsys):
  study.run()
  before = study.path().read_bytes()
  study.run(answers_path=study.path())
  assert '0 new answers, 4 without an answer yet' in capsys.readouterr().out
  assert study.path().read_bytes() == before


# Rows that do not fit.


def invent(rows):
  rows.append({'prompt_id': 'p99', 'prompt': 'x', 'response': 'x'})


def no_id(rows):
  rows.append({'prompt_id': '', 'response': 'x'})


def contradict(rows):
  rows.append({'prompt_id': 'p9', 'prompt': PROMPTS['p9'], 'response': 'other'})


def several(rows):
  rows.append({**rows[1], 'response': 'another'})


def nul(rows):
  rows[1]['response'] = 'a\0b'


def shift_ids(rows):
  ids = [row['prompt_id'] for row in rows]
  for row, prompt_id in zip(rows, ids[1:] + ids[:1], strict=True):
    row['prompt_id'] = prompt_id


def swap(rows):
  rows[0]['prompt'], rows[1]['prompt'] = rows[1]['prompt'], rows[0]['prompt']


def edit(rows):
  rows[1]['prompt'] = 'Plain? '.replace('?', '!')


def blank_prompt(rows):
  rows[1]['prompt'] = ''


def error(rows):
  rows[1]['response'] = '#NAME?'


def reference(rows):
  rows[1]['prompt'] = '#REF!'


def scientific(rows):
  rows[1]['response'] = '1.23E+17'


def scientific_id(rows):
  rows[1]['prompt_id'] = '1.23E+17'


def strange_verdict(rows):
  for row in rows:
    row['status'] = 'perhaps' if row is rows[1] else 'done'


def accept_nothing(rows):
  for row in rows:
    row['status'] = 'accepted'
  rows[1]['response'] = ''


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
@pytest.mark.parametrize('in_place', [True, False])
@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (invent, r'1 unknown \(p99\)'),
    (no_id, r'1 unknown \(\(line \d+: no id\)\)'),
    (contradict, r'1 already answered differently \(p9\).*annotation\.amend'),
    (several, r'1 with several different.*\(p0\).*annotation\.duplicates'),
    (nul, r'1 not Unicode \(p0\)'),
    (shift_ids, r'4 with another prompt than the pool \(p0, p2, p1, p3\)'),
    (swap, r'2 with another prompt than the pool \(p3, p0\)'),
    (edit, r'1 with another prompt than the pool \(p0\)'),
    (blank_prompt, r'1 without the text of the prompt \(p0\)'),
    (error, r'\(p0: the spreadsheet error #NAME\? as the answer\)'),
    (reference, r'\(p0: the spreadsheet error #REF! as the prompt\)'),
    (scientific, r'\(p0: the number 1\.23E\+17 as the answer\)'),
    (scientific_id, r'a spreadsheet changed \(the number 1\.23E\+17\)'),
    (strange_verdict, r'1 status=perhaps \(p0\)'),
    (accept_nothing, r'1 accepted without an answer \(p0\)'),
  ],
)
def test_a_row_that_does_not_fit_refuses_the_file(
  study, tmp_path, suffix, in_place, spoil, message
):
  study.know({'p9': 'known'})
  study.run()
  source = study.path(f'todo{suffix}')
  path = fill(source, source if in_place else tmp_path / f'a{suffix}')
  rows = read_csv(path) if suffix == '.csv' else store.read_jsonl(path)
  spoil(rows)
  if suffix == '.csv':
    rows = [dict.fromkeys(rows[0], '') | row for row in rows]
  (write_csv if suffix == '.csv' else store.write_jsonl)(path, rows)
  before = contents(study)
  with pytest.raises(errors.InputError, match=message) as e:
    study.run(answers_path=path)
  assert str(path) in str(e.value)
  assert '\n' not in str(e.value)
  assert contents(study) == before


def test_all_faults_at_once_and_long_lists_are_cut(study, tmp_path):
  path = tmp_path / 'a.csv'
  rows = [{'id': f'x{k}', 'response': 'a'} for k in range(102)]
  rows += [{'id': 'p0', 'response': '#NAME?'}, {'id': 'p2', 'response': 'a'}]
  rows += [{'id': 'p2', 'response': 'b'}]
  write_csv(path, rows)
  with pytest.raises(errors.InputError) as e:
    study.run(answers_path=path)
  text = str(e.value)
  assert '102 unknown (x0, x1, ' in text
  assert 'x98, x99 and 2 more)' in text
  assert '1 damaged by a spreadsheet (p0: ' in text
  assert '1 with several different answers or verdicts (p2)' in text


def test_a_shortened_id_is_told_from_an_unknown_one(study, tmp_path):
  number = '123456789012345676'
  prompts = {number: 'Long?', 'p0': 'Plain?'}
  table = {'id': list(prompts), 'prompt': list(prompts.values())}
  store.write_parquet(study.workdir.pool, pa.table(table))
  for strategy in ('random', 'min_margin'):
    for seed in (0, 1):
      rows = [{'rank': r, 'id': i} for r, i in enumerate(prompts)]
      store.write_jsonl(study.workdir.selection(strategy, seed), rows)
  study.run()
  path = tmp_path / 'a.csv'
  path.write_text('id,response\n123456789012345000,x\n')
  with pytest.raises(
    errors.InputError, match=rf'123456789012345000, maybe {number}\)'
  ):
    study.run(answers_path=path)
  path.write_text(f'id,response\n{number},x\n')
  study.run(answers_path=path)
  assert study.responses == {number: 'x'}


BAD_FILES = {
  'nope.csv': (None, 'is not a file'),
  'a.xlsx': (b'x', r'is not an \.xlsx workbook'),
  'old.xls': (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1x', r'save it as \.xlsx'),
  'a.parquet': (b'x', 'is damaged'),
  'a.csv': (b'id,answer\np0,x\n', 'no column response: it has id, answer'),
  'ids.csv': (b'name,response\np0,x\n', 'no column prompt_id'),
  'twice.csv': (b'id,response,response\n', "two columns 'response'"),
  'empty.csv': (b'', 'no rows'),
  'header.csv': (b'id,response\n', 'no rows'),
  'latin.csv': ('id,response\np0,ü\n'.encode('latin-1'), 'not text'),
  'wide.csv': (b'id,response\np0,a,b\n', r'3 fields.*\(\(line 2\)\)'),
  'open.csv': (b'id,response\np0,"a\n', 'never closed'),
  'a.jsonl': (b'{"id": "p0", \n', r'broken JSON.*\(\(line 1\)\)'),
  'list.jsonl': (b'["p0"]\n', 'not an object'),
  'int.jsonl': (b'{"id": 3, "response": "x"}\n', r'1 unknown \(3\)'),
  'number.jsonl': (
    b'{"id": "p0", "response": 3}\n',
    r'the response is not text \(p0\)',
  ),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_files(study, tmp_path, name):
  data, message = BAD_FILES[name]
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.InputError, match=message) as e:
    study.run(answers_path=tmp_path / name)
  assert str(tmp_path / name) in str(e.value)
  assert '\n' not in str(e.value)
  assert not study.workdir.manifest.exists()


# Several answers, and corrections.


@pytest.mark.parametrize(
  ('duplicates', 'answer'),
  [('first', 'A p0'), ('last', 'z'), ('longest', 'the longest')],
)
def test_one_of_several_annotators(study, tmp_path, capsys, duplicates, answer):
  def add(rows):
    rows.insert(2, {**rows[1], 'response': 'the longest'})
    rows.append({**rows[1], 'response': 'z'})

  deliver(study, tmp_path / 'a.csv', add, duplicates=duplicates)
  assert study.responses['p0'] == answer
  assert '1 with several answers' in capsys.readouterr().out


def test_identical_answers_pass(study, tmp_path):
  def double(rows):
    rows.append({**rows[1], 'annotator': 'me'})

  deliver(study, tmp_path / 'a.jsonl', double)
  assert study.responses == {i: f'A {i}' for i in SMALLEST}


def test_an_unknown_way_to_choose(study):
  with pytest.raises(errors.InputError, match="did you mean 'longest'"):
    study.run(options={'duplicates': 'long'})


def test_a_correction_is_taken_only_if_it_is_meant_to_be_one(
  study, tmp_path, capsys
):
  def correct(rows):
    rows[1]['response'] = 'better'

  path = tmp_path / 'a.csv'
  deliver(study, path)
  before = contents(study)
  with pytest.raises(errors.InputError, match=r'differently \(p0\)'):
    deliver(study, path, correct)
  assert contents(study) == before
  deliver(study, path, correct, amend=True)
  assert study.responses == {i: f'A {i}' for i in SMALLEST} | {'p0': 'better'}
  assert store.read_jsonl(study.workdir.amended) == [
    {'id': 'p0', 'source': 'a.csv', 'what': 'another answer'}
  ]
  assert 'corrected: p0' in capsys.readouterr().out
  before = contents(study)
  deliver(study, path, amend=True)
  del before[study.workdir.manifest]  # It has the seconds.
  assert before.items() <= contents(study).items()


def make_cell(study, cell, rows=None):
  """What the finetune stage leaves of a cell."""
  rows = rows or study_lib.selected_ids(study.workdir, cell.strategy, cell.seed)
  ids = rows[: cell.budget]
  pool = store.read_prompts(study.workdir.pool)
  prompts = dict(zip(pool.ids, pool.prompts, strict=True))
  digest = study_lib.hash_examples(ids, prompts, study.responses)
  store.write_json(
    study.workdir.run(cell.name).cell,
    {
      'strategy': cell.strategy,
      'budget': cell.budget,
      'seed': cell.seed,
      'fingerprint': {'prompts and answers': digest},
    },
  )


def test_cells_made_from_an_old_answer_are_named(study, tmp_path, capsys):
  def correct(rows):
    next(r for r in rows if r['prompt_id'] == 'p3')['response'] = 'better'

  path = tmp_path / 'a.csv'
  deliver(study, path)
  cells = [
    study_lib.Cell(s, 2, k) for s in ('random', 'min_margin') for k in (0, 1)
  ]
  for cell in cells:
    make_cell(study, cell)
  deliver(study, path, correct, amend=True)
  # p3 is in random's order for seed 0 alone.
  assert study_lib.outdated(study.workdir) == [cells[0]]
  out = capsys.readouterr().out
  assert '1 cell made from old answers' in out
  assert 'random-k2-seed0' in out


# Rejected prompts.


def reject(*ids, reason='not a question'):
  def change(rows):
    for row in rows:
      row['status'] = 'rejected' if row['prompt_id'] in ids else ''
      row['reason'] = reason if row['prompt_id'] in ids else ''
      row['annotator'] = 'ann'

  return change


def test_rejected_prompts_are_kept_and_replaced(study, tmp_path, capsys):
  deliver(study, tmp_path / 'a.csv', reject('p0'))
  assert store.read_jsonl(study.workdir.rejected) == [
    {
      'id': 'p0',
      'reason': 'not a question',
      'source': 'a.csv',
      'annotator': 'ann',
    }
  ]
  assert 'p0' not in study.responses
  # random's next picks are p1, which is answered, for seed 0, and p3 for 1;
  # the orders have them already.
  assert study.counts['rejected'] == 1
  assert study.counts['unreplaced'] == 0
  assert not study.path().exists()
  assert study_lib.selected_ids(study.workdir, 'random', 0)[:2] == ['p3', 'p1']
  assert study_lib.selected_ids(study.workdir, 'random', 1)[:2] == ['p2', 'p3']
  out = capsys.readouterr().out
  assert '3 new answers, 1 rejected' in out
  # The file may be named again.
  study.run(answers_path=tmp_path / 'a.csv')
  assert '0 new answers, 4 known before' in capsys.readouterr().out
  assert len(store.read_jsonl(study.workdir.rejected)) == 1


def test_replacements_that_are_to_be_selected_first(study, tmp_path, capsys):
  """The orders have six picks."""
  deliver(study, tmp_path / 'a.csv', reject('p0', 'p1'), budgets=(2, 5))
  assert study.counts['unreplaced'] == 1
  assert '1 rejected pick not replaced yet' in capsys.readouterr().out
  # Random's sixth pick for seed 0, and the new ones of others.
  assert study.ids() == ['p9', 'p6']


def test_a_rejection_and_an_answer_need_amend(study, tmp_path):
  path = tmp_path / 'a.csv'
  deliver(study, path, reject('p0'))
  with pytest.raises(errors.InputError, match=r'rejected before.*\(p0\)'):
    deliver(study, path, reject())
  with pytest.raises(errors.InputError, match=r'and rejected now \(p3\)'):
    deliver(study, path, reject('p0', 'p3'))
  deliver(study, path, reject('p3'), amend=True)
  assert study.responses['p0'] == 'A p0'
  assert 'p3' not in study.responses
  assert [r['id'] for r in store.read_jsonl(study.workdir.rejected)] == ['p3']


def test_an_answer_of_the_pool_can_be_rejected(study, tmp_path):
  study.know({'p0': 'known'})
  study.run()
  path = tmp_path / 'a.jsonl'
  store.write_jsonl(path, [{'prompt_id': 'p0', 'rejected': True}])
  study.run(answers_path=path, options={'amend': True})
  assert 'p0' not in study.responses
  study.run()
  assert 'p0' not in study.responses


@pytest.mark.parametrize('duplicates', ['refuse', 'first', 'last'])
def test_annotators_who_disagree_about_a_prompt(study, tmp_path, duplicates):
  def both(rows):
    for row in rows:
      row['status'] = ''
    rows.append({**rows[1], 'status': 'rejected'})

  path = tmp_path / 'a.csv'
  if duplicates == 'refuse':
    with pytest.raises(errors.InputError, match=r'or verdicts \(p0\)'):
      deliver(study, path, both)
  else:
    deliver(study, path, both, duplicates=duplicates)
    assert ('p0' in study.responses) == (duplicates == 'first')


@pytest.mark.parametrize(
  ('column', 'value', 'verdict'),
  [
    ('status', 'Rejected', 'rejected'),
    ('Verdict', 'unusable', 'rejected'),
    ('decision', 'DECLINED', 'rejected'),
    ('rejected', 'TRUE', 'rejected'),
    ('Rejected', '1', 'rejected'),
    ('accepted', 'no', 'rejected'),
    ('status', 'skipped', 'skipped'),
    ('status', 'in progress', 'skipped'),
    ('was_cancelled', 'true', 'skipped'),
    ('ignored', 'x', 'skipped'),
    ('rejected', 'no', 'answered'),
    ('status', 'Submitted', 'answered'),
    ('accepted', 'yes', 'answered'),
  ],
)
def test_words_for_verdicts(study, tmp_path, column, value, verdict):
  def mark(rows):
    for row in rows:
      row[column] = value if row['prompt_id'] == 'p0' else ''

  deliver(study, tmp_path / 'a.csv', mark)
  assert ('p0' in study.responses) == (verdict == 'answered')
  assert study.workdir.rejected.exists() == (verdict == 'rejected')


# What is kept.


def test_annotators_times_and_costs_are_kept(study, tmp_path):
  def note(rows):
    for k, row in enumerate(rows):
      row |= {'annotator': f'a{k}', 'lead_time': 1.5, 'cost': k, 'tags': ['x']}

  deliver(study, tmp_path / 'a.jsonl', note, budgets=(2, 4))
  table = pq.read_table(study.workdir.responses).to_pylist()
  assert table[0] == {
    'id': 'p3',
    'response': 'A p3',
    'annotator': 'a0',
    'lead_time': 1.5,
    'cost': 0,
  }
  # A second delivery, with other columns and types.
  study.run((2, 4, 6))
  path = fill(study.path(), tmp_path / 'b.csv')
  rows = [row | {'cost': 0.5, 'who': 'ü'} for row in read_csv(path)]
  write_csv(path, rows)
  study.run((2, 4, 6), answers_path=path)
  after = pq.read_table(study.workdir.responses).to_pylist()
  assert after[0] == table[0] | {'cost': 0.0, 'who': None}
  assert after[-1]['who'] == 'ü'
  assert len(after) == len(PROMPTS)


def test_a_workbook_as_people_fill_it(study, tmp_path):
  study.run()
  book = openpyxl.Workbook()
  sheet = book.active
  rows = read_csv(study.path())
  sheet.append(list(rows[0]))
  for row in rows:
    # A neutralised prompt stays as it was imported.
    sheet.append([*row.values()])
  answers = ['Text', 42, True, 'A\nB, "c"; =1']
  column = list(rows[0]).index('response') + 1
  for line, answer in enumerate(answers, 2):
    sheet.cell(line, column).value = answer
  for line, cost in enumerate(['cost', 1, 2.5, None, 4], 1):
    sheet.cell(line, column + 1).value = cost
  book.save(tmp_path / 'a.xlsx')
  study.run(answers_path=tmp_path / 'a.xlsx')
  table = pq.read_table(study.workdir.responses)
  assert table['cost'].to_pylist() == [1.0, 2.5, None, 4.0]
  assert [study.responses[i] for i in SMALLEST] == [
    'Text',
    '42',
    'TRUE',
    'A\nB, "c"; =1',
  ]


def test_a_date_in_a_workbook_is_refused(study, tmp_path):
  import datetime

  book = openpyxl.Workbook()
  book.active.append(['prompt_id', 'response'])
  book.active.append(['p0', datetime.date(2026, 3, 1)])
  book.save(tmp_path / 'a.xlsx')
  with pytest.raises(
    errors.InputError, match=r'the response is a date.*\(p0\)'
  ):
    study.run(answers_path=tmp_path / 'a.xlsx')


def test_a_file_without_ids_is_matched_by_the_text(study, tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(
    json.dumps(
      [
        {'prompt': '  Plain?\r\n', 'response': 'A'},
        {'prompt': 'One   turn?', 'response': 'B'},
      ]
    )
  )
  study.run(answers_path=path)
  assert study.responses == {'p0': 'A', 'p2': 'B'}
  path.write_text(json.dumps([{'prompt': 'Plane?', 'response': 'A'}]))
  with pytest.raises(errors.InputError, match=r'than the pool \(\(line 1'):
    study.run(answers_path=path)


@pytest.mark.parametrize(
  ('column', 'word', 'other'),
  [
    ('review_status', 'rejected', 'accepted'),
    ('AssignmentStatus', 'Rejected', 'Approved'),
    ('state', 'REJECTED', ''),
    ('answer', 'reject', 'accept'),
  ],
)
def test_columns_of_verdicts_by_their_words(
  study, tmp_path, column, word, other
):
  def change(rows):
    for row in rows:
      row[column] = word if row['prompt_id'] == 'p0' else other

  deliver(study, tmp_path / 'back.csv', change)
  assert 'p0' not in study.responses
  assert [row['id'] for row in store.read_jsonl(study.workdir.rejected)] == [
    'p0'
  ]


def test_columns_that_only_look_like_verdicts_are_kept(study, tmp_path):
  def change(rows):
    for row, word in zip(rows, ('draft', 'good', 'bad', 'ok'), strict=True):
      row['quality'] = word

  deliver(study, tmp_path / 'back.csv', change)
  assert set(study.responses) == set(SMALLEST)


def test_an_unknown_word_in_a_column_of_verdicts(study, tmp_path):
  def change(rows):
    for row, word in zip(rows, ('rejected', 'hm', '', ''), strict=True):
      row['review'] = word

  with pytest.raises(errors.InputError, match='review=hm'):
    deliver(study, tmp_path / 'back.csv', change)


def test_answers_in_another_column_are_not_overlooked(study, tmp_path):
  def change(rows):
    for row in rows:
      row['answer'] = row['response']
      row['response'] = ''

  deliver(study, tmp_path / 'back.csv', change)
  assert set(study.responses) == set(SMALLEST)


@pytest.mark.parametrize('column', ['note', 'reason', 'annotator', 'n\ud800'])
def test_damaged_text_in_other_columns_changes_nothing(study, tmp_path, column):
  study.run()
  before = contents(study)
  path = fill(study.path('todo.jsonl'), tmp_path / 'back.jsonl')
  rows = store.read_jsonl(path)
  rows[0]['status'] = 'rejected'
  rows[1][column] = 'a\ud800'
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  with pytest.raises(errors.InputError, match='not Unicode'):
    study.run(answers_path=path)
  assert contents(study) == before


@pytest.mark.parametrize('answer', ['########', 'nan', 'None', 'null'])
def test_what_programs_write_for_nothing_is_no_answer(study, tmp_path, answer):
  def change(rows):
    rows[0]['response'] = answer

  with pytest.raises(errors.InputError, match='damaged by a spreadsheet'):
    deliver(study, tmp_path / 'back.csv', change)


def test_answers_that_differ_in_white_space_at_the_ends(study, tmp_path):
  def change(rows):
    rows.append(rows[0] | {'response': rows[0]['response'] + ' \n'})

  deliver(study, tmp_path / 'back.csv', change)
  assert set(study.responses) == set(SMALLEST)


def test_a_delivery_of_ids_alone_is_said_to_be_unchecked(
  study, tmp_path, capsys
):
  def change(rows):
    for row in rows:
      del row['prompt']

  deliver(study, tmp_path / 'back.csv', change)
  assert 'no column prompt' in capsys.readouterr().out
