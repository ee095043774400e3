"""What tools deliver under names of their own is honoured, or refused."""

import csv
import json

import pytest

from edsft_jax import errors, store
from edsft_jax.annotation import delivery, formats


def pool():
  return store.Prompts(
    [f'p{k}' for k in range(4)], [f'Prompt {k}?' for k in range(4)], None
  )


def take(path, **rules):
  rows = formats.read(path).rows
  return delivery.take(path, rows, pool(), {}, (), delivery.Rules(**rules))


def write(path, rows):
  """Rows as JSON lines, or as CSV without the empty cells."""
  if path.suffix == '.jsonl':
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return path
  with path.open('w', newline='') as f:
    writer = csv.DictWriter(f, list(dict.fromkeys(n for r in rows for n in r)))
    writer.writeheader()
    writer.writerows(rows)
  return path


def answered(number, **others):
  return {
    'prompt_id': f'p{number}',
    'prompt': f'Prompt {number}?',
    'response': f'A {number}',
    **others,
  }


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
@pytest.mark.parametrize(
  ('name', 'yes', 'no'),
  [
    ('review_status', 'approved', 'rejected'),
    ('state', 'done', 'rejected'),
    ('AssignmentStatus', 'Approved', 'Rejected'),
    ('Approve', 'x', 'no'),
    ('is_accepted', 'true', 'FALSE'),
    ('Reject', '', 'x'),
    ('what_became_of_it', 'Accepted', 'Unusable'),
    ('what_became_of_it', '', 'discarded'),
  ],
)
def test_columns_that_hold_verdicts(tmp_path, suffix, name, yes, no):
  rows = [answered(0, **{name: yes}), answered(1, **{name: no})]
  taken = take(write(tmp_path / f'a{suffix}', rows))
  assert list(taken.answers) == ['p0']
  assert list(taken.rejections) == ['p1']


def test_a_skip_in_a_column_with_a_name_of_its_own(tmp_path):
  rows = [answered(0, stage='done'), answered(1, stage='in progress')]
  taken = take(write(tmp_path / 'a.csv', rows))
  assert list(taken.answers) == ['p0']
  assert taken.counts['skipped'] == 1


@pytest.mark.parametrize('name', ['review_status', 'state', 'Reject', 'review'])
def test_a_verdict_that_means_nothing_known(tmp_path, name):
  rows = [answered(0, **{name: 'rejected'}), answered(1, **{name: 'meh'})]
  with pytest.raises(errors.InputError, match=f'a.csv has {name}=meh, which'):
    take(write(tmp_path / 'a.csv', rows))


def test_columns_that_hold_something_else(tmp_path):
  others = {
    'AcceptTime': 'Mon Mar 02 2026',
    'reviewed_by': 'Ann',
    'statement': 'x',
    'difficulty': 'valid',
    'reason': 'rejected',
    'task': 'open',
  }
  taken = take(write(tmp_path / 'a.csv', [answered(0, **others)]))
  row = taken.answers['p0']
  assert row.others['AcceptTime'] == 'Mon Mar 02 2026'
  assert row.others['difficulty'] == 'valid'


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
@pytest.mark.parametrize('name', ['response', 'user_input'])
def test_prodigy_without_the_fields_it_adds(tmp_path, suffix, name):
  words = ['accept', 'reject', 'ignore']
  rows = [answered(k, answer=word) for k, word in enumerate(words)]
  for row in rows:
    row[name] = row.pop('response')
  taken = take(write(tmp_path / f'a{suffix}', rows))
  assert list(taken.answers) == ['p0']
  assert list(taken.rejections) == ['p1']
  assert taken.counts['skipped'] == 1


# Label Studio.


def result(name, **value):
  return {'from_name': name, 'value': value}


def task(number, *results, **of_annotation):
  data = {'prompt_id': f'p{number}', 'prompt': f'Prompt {number}?'}
  annotation = {'id': number, 'result': list(results), **of_annotation}
  return {'id': 900 + number, 'data': data, 'annotations': [annotation]}


def text(answer, name='response'):
  return result(name, text=[answer])


@pytest.mark.parametrize('word', ['Unusable', 'rejected'])
@pytest.mark.parametrize('name', ['status', 'mine'])
def test_choices_of_label_studio(tmp_path, name, word):
  path = tmp_path / 'export.json'
  store.write_json(
    path,
    [
      task(0, text('A 0'), result(name, choices=['accepted'])),
      task(1, text('A 1'), result(name, choices=[word])),
      task(2, text('A 2'), result('quality', choices=['good'])),
    ],
  )
  taken = take(path)
  assert list(taken.answers) == ['p0', 'p2']
  assert list(taken.rejections) == ['p1']


def test_a_choice_that_means_nothing_known(tmp_path):
  path = tmp_path / 'export.json'
  tasks = [task(0, text('A 0'), result('status', choices=['meh']))]
  store.write_json(path, tasks)
  with pytest.raises(errors.InputError, match='status=meh'):
    take(path)


def test_reviews_of_label_studio(tmp_path):
  path = tmp_path / 'export.json'
  first = {'accepted': False, 'created_at': '2026-01-01'}
  last = {'accepted': True, 'created_at': '2026-01-02'}
  store.write_json(
    path,
    [
      task(0, text('A 0'), reviews=[]),
      task(1, text('A 1'), reviews=[{'accepted': False}]),
      task(2, text('A 2'), reviews=[last, first]),
    ],
  )
  taken = take(path)
  assert list(taken.answers) == ['p0', 'p2']
  assert list(taken.rejections) == ['p1']


# Answers under other names.


def argilla(number, responses, **others):
  return {
    'id': f'p{number}',
    'fields': {'prompt': f'Prompt {number}?'},
    'responses': responses,
    'status': 'completed',
    **others,
  }


def by(*values):
  return [{'value': v, 'user_id': f'u{k}'} for k, v in enumerate(values)]


def deliver(tmp_path, records, **rules):
  path = tmp_path / 'export.json'
  path.write_text(json.dumps(records))
  return take(path, **rules)


def test_a_control_of_label_studio(tmp_path):
  quality = result('quality', choices=['good'])
  tasks = [task(k, text(f'A {k}', 'answer'), quality) for k in range(2)]
  taken = deliver(tmp_path, tasks)
  assert [row.response for row in taken.answers.values()] == ['A 0', 'A 1']
  tasks[1]['annotations'][0]['result'].append(text('well', 'comment'))
  with pytest.raises(errors.InputError, match='texts in answer, comment'):
    deliver(tmp_path, tasks)
  tasks[0]['annotations'][0]['result'].append(text('this', 'response'))
  assert deliver(tmp_path, tasks).answers['p0'].response == 'this'


def test_a_question_of_argilla(tmp_path):
  records = [argilla(k, {'answer': by(f'A {k}')}) for k in range(2)]
  records[1]['responses']['usable'] = by('rejected')
  records[0]['responses']['stars'] = by(4)
  taken = deliver(tmp_path, records)
  assert taken.answers['p0'].response == 'A 0'
  assert list(taken.rejections) == ['p1']
  records[1]['responses']['comment'] = by('well')
  with pytest.raises(errors.InputError, match='texts in answer, comment'):
    deliver(tmp_path, records)


@pytest.mark.parametrize('name', ['answer', 'Completion', 'output'])
@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_a_column_next_to_an_empty_response(tmp_path, name, suffix):
  rows = [answered(k, **{name: f'A {k}'}) for k in range(2)]
  for row in rows:
    row['response'] = ''
  path = tmp_path / f'a{suffix}'
  taken = take(write(path, rows))
  assert [row.response for row in taken.answers.values()] == ['A 0', 'A 1']
  assert name not in taken.answers['p0'].others
  rows[0]['output' if name == 'answer' else 'answer'] = 'x'
  with pytest.raises(errors.InputError, match='call the one with the answers'):
    take(write(path, rows))
  rows[0]['response'] = 'this'
  assert take(write(path, rows)).answers['p0'].response == 'this'


def test_a_column_next_to_verdicts(tmp_path):
  rows = [answered(0, answer='A 0', status=''), answered(1, status='rejected')]
  for row in rows:
    del row['response']
  taken = take(write(tmp_path / 'a.csv', rows))
  assert taken.answers['p0'].response == 'A 0'
  assert list(taken.rejections) == ['p1']


# Malformed exports.


@pytest.mark.parametrize(
  'broken',
  [
    argilla(0, {'response': ['x']}),
    argilla(0, {'response': 'x'}),
    argilla(0, 'x'),
    argilla(0, ['x']),
    argilla(0, {'response': by('A 0')}, metadata='zz'),
    argilla(0, {'response': by('A 0')}, id={'a': 1}),
    argilla(0, [{'values': {'response': 'x'}}]),
    argilla(0, [{'values': 'x'}]),
    argilla(0, {'response': by({'a': 1})}),
  ],
)
def test_malformed_records_of_argilla(tmp_path, broken):
  records = [broken, argilla(1, {'response': by('A 1')})]
  with pytest.raises(errors.InputError, match='no row is accepted') as e:
    deliver(tmp_path, records)
  assert '\n' not in str(e.value)


def annotated(annotations, **others):
  return {**task(0), 'annotations': annotations, **others}


@pytest.mark.parametrize(
  'broken',
  [
    annotated(['x']),
    annotated([None]),
    annotated([{'result': {'a': 1}}]),
    annotated([{'result': ['x']}]),
    annotated([{'result': [{'from_name': 'response', 'value': 'x'}]}]),
    annotated([{'result': [result('response', text=[5])]}]),
    annotated([{'result': [text('A 0')], 'id': {'a': 1}}]),
    annotated([{'result': [text('A 0')], 'reviews': ['x']}]),
    annotated([{'result': [text('A 0')]}], data={'prompt_id': {'a': 1}}),
  ],
)
def test_malformed_tasks_of_label_studio(tmp_path, broken):
  with pytest.raises(errors.InputError, match='no row is accepted') as e:
    deliver(tmp_path, [broken, task(1, text('A 1'))])
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('cell', 'found'),
  [
    (['a0', 'b0'], ['a0', 'b0']),
    ("['a0', 'b0']", ['a0', 'b0']),
    ("['a0' 'b0']", ['a0', 'b0']),  # A numpy array.
    ("['a0'\n \"b's\"]", ['a0', "b's"]),
    ('["a0"]', ['a0']),
    ("['a\\n0']", ['a\n0']),
    ('[]', []),
    ('', []),
  ],
)
def test_lists_of_argilla_in_csv(tmp_path, cell, found):
  row = {'id': 'p0', 'status': 'completed', 'prompt': 'Prompt 0?'}
  path = tmp_path / 'a.csv'
  users = "['u0', 'u1']" if len(found) == 2 else ''
  row |= {'response.responses': cell, 'response.responses.users': users}
  taken = take(write(path, [row]), duplicates='first')
  assert [r.response for r in taken.answers.values()] == found[:1]


@pytest.mark.parametrize('cell', ['a0', "['a0'", '[f(1)]', "['a0', 'b0']"])
def test_what_is_no_list_of_argilla(tmp_path, cell):
  row = {'id': 'p0', 'status': 'completed', 'prompt': 'Prompt 0?'}
  row |= {'response.responses': cell, 'response.responses.users': "['u0']"}
  with pytest.raises(errors.InputError, match=r'1 response\.responses'):
    take(write(tmp_path / 'a.csv', [row]))
