"""Answers looked up, asked for and taken back; nothing dropped in silence."""

import csv
import json

import pyarrow as pa
import pytest

from configs import default
from edsft_jax import annotation, errors, store

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

  def run(self, budgets=(2,), answers_path='', **study):
    config = default.get_config()
    config.selection.strategies = ('random', 'min_margin')
    config.study.update(budgets=budgets, seeds=(0, 1), **study)
    config.annotation.answers_path = str(answers_path)
    annotation.check(config, self.workdir, frozenset())
    annotation.run(config, self.workdir)

  def path(self, name='todo.csv'):
    return self.workdir.todo.with_name(name)

  def ids(self, name='todo.csv'):
    return [row['id'] for row in read_csv(self.path(name))]

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
  if source.suffix == '.csv':
    rows = [r | {'response': f'A {r["id"]}'} for r in read_csv(source)]
    write_csv(target, rows, encoding, delimiter)
  else:
    rows = store.read_jsonl(source)
    for row in rows:
      row['response'] = f'A {row["id"]}'
    store.write_jsonl(target, rows)
  return target


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / 'work')


SMALLEST = ['p3', 'p0', 'p2', 'p1']  # Of budget 2, in the order of the cells.


def test_answers_of_the_pool(study, capsys):
  study.know({i: f'A {i}' for i in PROMPTS if i != 'p9'})
  study.run((2, 3))
  assert study.responses == {i: f'A {i}' for i in SMALLEST}
  assert annotation.missing(study.workdir) == 0
  assert not study.path().exists()
  assert 'all 4 answers are known' in capsys.readouterr().out


@pytest.mark.parametrize('full_pool', [True, False])
def test_the_whole_pool_where_all_of_it_is_answered(study, full_pool):
  study.know({i: f'A {i}' for i in PROMPTS})
  study.run(full_pool=full_pool)
  assert set(study.responses) == set(PROMPTS if full_pool else SMALLEST)


def test_todo(study, capsys):
  study.run((5, 2))
  rows = read_csv(study.path())
  assert [row['id'] for row in rows[:4]] == SMALLEST
  assert sorted(r['id'] for r in rows) == [
    f'p{k}' for k in (0, 1, 2, 3, 4, 5, 7, 8)
  ]
  by_id = {row['id']: row for row in rows}
  assert by_id['p1'] == {
    'id': 'p1',
    'task': 'odd',
    'prompt': PROMPTS['p1'],
    'response': '',
  }
  assert by_id['p2']['prompt'] == 'One turn?'
  assert by_id['p3']['prompt'] == 'User: Hi.\n\nAssistant: Ho.\n\nUser: And?'
  assert store.read_jsonl(study.workdir.todo) == rows
  assert study.responses == {}
  assert annotation.missing(study.workdir) == 8
  assert study.counts['todo'] == ['annotations/todo.csv']
  out = capsys.readouterr().out
  assert '8 of 8 answers are missing' in out
  assert f'--config.annotation.answers_path={study.path()}' in out


def test_only_what_the_pool_does_not_know_is_asked(study):
  study.know({'p0': 'known', 'p3': 'known'})
  study.run()
  assert study.ids() == ['p2', 'p1']
  assert study.responses == {'p0': 'known', 'p3': 'known'}
  assert annotation.missing(study.workdir) == 2


@pytest.mark.parametrize('in_place', [True, False])
@pytest.mark.parametrize(
  ('name', 'encoding', 'delimiter'),
  [
    ('todo.csv', 'utf-8', ','),
    ('todo.csv', 'utf-8-sig', ';'),
    ('todo.jsonl', 'utf-8', ''),
  ],
)
def test_round_trip(study, tmp_path, name, encoding, delimiter, in_place):
  study.run()
  source = study.path(name)
  target = source if in_place else tmp_path / name.upper()
  fill(source, target, encoding, delimiter)
  study.run(answers_path=target)
  assert study.responses == {i: f'A {i}' for i in SMALLEST}
  assert annotation.missing(study.workdir) == 0
  # Taken for good: the file need not be named again.
  study.run()
  assert annotation.missing(study.workdir) == 0


def test_extra_columns_and_repeated_pool_answers_are_welcome(study):
  study.know({'p9': 'known'})
  study.run()
  rows = [r | {'response': 'x', 'who': 'me'} for r in read_csv(study.path())]
  rows.append({'id': 'p9', 'response': 'known'})
  write_csv(study.path(), rows)
  study.run(answers_path=study.path())
  assert annotation.missing(study.workdir) == 0


def drop(rows):
  del rows[1]


def blank(rows):
  rows[1]['response'] = ' \n'


def double(rows):
  rows.append(dict(rows[1]))


def invent(rows):
  rows.append({'id': 'p99', 'response': 'x'})


def no_id(rows):
  rows.append({'id': '', 'response': 'x'})


def contradict(rows):
  rows.append({'id': 'p9', 'response': 'other'})


def nul(rows):
  rows[1]['response'] = 'a\0b'


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
@pytest.mark.parametrize('in_place', [True, False])
@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (drop, r'1 missing \(p0\)'),
    (blank, r'1 empty \(p0\)'),
    (double, r'1 duplicate \(p0\)'),
    (invent, r'1 unknown \(p99\)'),
    (no_id, r'1 unknown \(\(line \d+: no id\)\)'),
    (contradict, r'1 already answered differently \(p9\)'),
    (nul, r'1 not Unicode \(p0\)'),
  ],
)
def test_faults_are_reported_by_name(
  study, tmp_path, suffix, in_place, spoil, message
):
  study.know({'p9': 'known'})
  study.run()
  manifest = study.workdir.manifest.read_text()
  source = study.path(f'todo{suffix}')
  path = fill(source, source if in_place else tmp_path / f'a{suffix}')
  rows = read_csv(path) if suffix == '.csv' else store.read_jsonl(path)
  spoil(rows)
  write = write_csv if suffix == '.csv' else store.write_jsonl
  write(path, rows)
  before = path.read_bytes()
  with pytest.raises(errors.InputError, match=message) as e:
    study.run(answers_path=path)
  assert str(path) in str(e.value)
  assert '\n' not in str(e.value)
  assert study.responses == {}
  assert study.workdir.manifest.read_text() == manifest
  assert path.read_bytes() == before


def test_all_faults_at_once_and_long_lists_are_cut(study, tmp_path):
  path = tmp_path / 'a.csv'
  rows = [{'id': f'x{k}', 'response': 'a'} for k in range(12)]
  rows += [{'id': 'p0', 'response': ''}, {'id': 'p2', 'response': 'a'}] * 2
  write_csv(path, rows)
  with pytest.raises(errors.InputError) as e:
    study.run(answers_path=path)
  text = str(e.value)
  assert (
    '12 unknown (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9 and 2 more)' in text
  )
  assert '1 empty (p0)' in text
  assert '2 duplicate (p0, p2)' in text
  assert '2 missing (p3, p1)' in text


def test_an_empty_file_misses_everything(study, tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('id,response\n')
  with pytest.raises(errors.InputError, match='4 missing'):
    study.run(answers_path=path)


BAD_FILES = {
  'nope.csv': (None, 'is not a file'),
  'a.xlsx': (b'x', r'neither \.csv nor \.jsonl'),
  'a.csv': (b'id,answer\np0,x\n', 'one column response'),
  'twice.csv': (b'id,response,response\n', 'one column response'),
  'empty.csv': (b'', 'one column id'),
  'latin.csv': ('id,response\np0,ü\n'.encode('latin-1'), 'not text'),
  'wide.csv': (b'id,response\np0,a,b\n', 'line 2: more fields'),
  'open.csv': (b'id,response\np0,"a\n', 'never closed'),
  'a.jsonl': (b'{"id": "p0", \n', 'line 1: broken JSON'),
  'list.jsonl': (b'["p0"]\n', 'line 1: not an object'),
  'int.jsonl': (b'{"id": 3, "response": "x"}\n', 'line 1: not an object'),
  'number.jsonl': (b'{"id": "p0", "response": 3}\n', 'line 1: the response'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_files(study, tmp_path, name):
  data, message = BAD_FILES[name]
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.InputError, match=message) as e:
    study.run(answers_path=tmp_path / name)
  assert str(tmp_path / name) in str(e.value)
  assert not study.workdir.manifest.exists()


# Rounds.


def test_growing_budgets_ask_for_the_new_prompts_alone(study, tmp_path):
  study.run()
  first = fill(study.path(), tmp_path / 'first.csv')
  # The filled file stays valid in the very run in which budgets grow.
  study.run((2, 4), answers_path=first)
  assert study.ids() == ['p7', 'p4']
  assert annotation.missing(study.workdir) == 2
  # An old file says nothing about new prompts, and is not an error.
  study.run((2, 4), answers_path=first)
  assert study.ids() == ['p7', 'p4']
  second = fill(study.path(), tmp_path / 'second.csv')
  study.run((2, 4), answers_path=second)
  assert annotation.missing(study.workdir) == 0
  assert set(study.responses) == {*SMALLEST, 'p7', 'p4'}
  assert not study.path().exists()


def test_a_copy_stays_valid_when_budgets_grow_before_it_is_filled(
  study, tmp_path
):
  study.run()
  copy = fill(study.path(), tmp_path / 'copy.csv')
  study.run((2, 4))
  assert study.ids() == [*SMALLEST, 'p7', 'p4']
  rows = read_csv(copy)
  write_csv(copy, rows[1:])
  with pytest.raises(errors.InputError, match=r'1 missing \(p3\)'):
    study.run((2, 4), answers_path=copy)
  write_csv(copy, rows)
  study.run((2, 4), answers_path=copy)
  assert study.ids() == ['p7', 'p4']


def test_an_edited_todo_is_never_rewritten(study):
  study.run()
  rows = read_csv(study.path())
  rows[0]['response'] = 'half done'
  write_csv(study.path(), rows)
  before = study.path().read_bytes()
  study.run()
  assert not study.path('todo-2.csv').exists()
  study.run((2, 4))
  assert study.path().read_bytes() == before
  assert study.ids('todo-2.csv') == ['p7', 'p4']
  assert [r['id'] for r in store.read_jsonl(study.path('todo-2.jsonl'))] == [
    'p7',
    'p4',
  ]
  assert study.counts['todo'] == [
    'annotations/todo.csv',
    'annotations/todo-2.csv',
  ]
  study.run((2, 4), answers_path=fill(study.path()))
  assert study.ids() == SMALLEST
  assert study.counts['todo'] == ['annotations/todo-2.csv']
  study.run((2, 4), answers_path=fill(study.path('todo-2.csv')))
  assert annotation.missing(study.workdir) == 0
  assert study.ids() == SMALLEST


def test_one_file_for_several_todos(study, tmp_path):
  study.run()
  fill(study.path())
  study.run((2, 4))
  fill(study.path('todo-2.csv'))
  rows = [*read_csv(study.path()), *read_csv(study.path('todo-2.csv'))]
  write_csv(tmp_path / 'both.csv', rows[:-1])
  with pytest.raises(errors.InputError, match=r'1 missing \(p4\)'):
    study.run((2, 4), answers_path=tmp_path / 'both.csv')
  write_csv(tmp_path / 'both.csv', rows)
  study.run((2, 4), answers_path=tmp_path / 'both.csv')
  assert annotation.missing(study.workdir) == 0


def test_smaller_budgets_need_no_new_file_and_lose_no_answer(study):
  study.run((4,))
  study.run((2,), answers_path=fill(study.path()))
  study.run((2,))
  assert len(study.responses) == 6
  study.run((4,))
  assert annotation.missing(study.workdir) == 0


def test_a_changed_answer_is_refused(study):
  study.run()
  path = fill(study.path())
  study.run(answers_path=path)
  path.write_text(path.read_text().replace('A p0', 'B p0'))
  with pytest.raises(errors.InputError, match=r'differently \(p0\)'):
    study.run(answers_path=path)


def test_cut_short_while_asking(study, monkeypatch):
  study.run()
  replacing = store.replacing

  def fail(path):
    if path.name == 'todo.jsonl':
      raise KeyboardInterrupt
    return replacing(path)

  monkeypatch.setattr(store, 'replacing', fail)
  with pytest.raises(KeyboardInterrupt):
    study.run((2, 4))
  monkeypatch.undo()
  study.run((2, 4))
  expected = [*SMALLEST, 'p7', 'p4']
  assert study.ids() == expected
  assert [r['id'] for r in store.read_jsonl(study.workdir.todo)] == expected
  assert not study.path('todo-2.csv').exists()


def test_another_pool_is_refused(study):
  study.run()
  store.write_parquet(
    study.workdir.pool,
    pa.table({'id': list(PROMPTS), 'prompt': list(PROMPTS)}),
  )
  with pytest.raises(errors.InputError, match='annotate in this workdir'):
    study.run()


def test_what_must_be_there(study):
  with pytest.raises(
    errors.InputError, match=r'6 prompts, study\.budgets needs 7'
  ):
    study.run((7,))
  study.workdir.selection('min_margin', 1).unlink()
  with pytest.raises(errors.InputError, match='run the select stage'):
    study.run()
  config = default.get_config()
  annotation.check(config, study.workdir, frozenset({'pool', 'select'}))
  study.workdir.pool.unlink()
  with pytest.raises(errors.InputError, match='run the pool stage'):
    annotation.check(config, study.workdir, frozenset({'select'}))


def test_todo_without_tasks(tmp_path):
  study = Study(tmp_path)
  store.write_parquet(
    study.workdir.pool,
    pa.table({'id': list(PROMPTS), 'prompt': list(PROMPTS)}),
  )
  study.run()
  assert {row['task'] for row in read_csv(study.path())} == {''}
  assert (
    json.loads(study.workdir.todo.read_text().splitlines()[0])['id'] == 'p3'
  )
