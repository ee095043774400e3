"""Answers looked up, asked for and taken back; nothing dropped in silence."""

import json

from annotation_study import (
  PROMPTS,
  SMALLEST,
  Study,
  fill,
  read_csv,
  write_csv,
)
import pyarrow as pa
import pytest

from configs import default
from edsft_jax import annotation, errors, store


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path / 'work')


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
  assert [row['prompt_id'] for row in rows[:4]] == SMALLEST
  assert sorted(r['prompt_id'] for r in rows) == [
    f'p{k}' for k in (0, 1, 2, 3, 4, 5, 7, 8)
  ]
  by_id = {row['prompt_id']: row for row in rows}
  assert by_id['p1'] == {
    'prompt_id': 'p1',
    'rank': '4',
    'task': 'odd',
    'prompt': PROMPTS['p1'],
    'words': '7',
    'characters': str(len(PROMPTS['p1'])),
    'response': '',
  }
  assert by_id['p2']['prompt'] == 'One turn?'
  assert by_id['p3']['prompt'] == 'User: Hi.\n\nAssistant: Ho.\n\nUser: And?'
  in_jsonl = store.read_jsonl(study.workdir.todo)
  assert [{k: str(v) for k, v in row.items()} for row in in_jsonl] == rows
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
  rows.append({'prompt_id': 'p9', 'prompt': PROMPTS['p9'], 'response': 'known'})
  write_csv(study.path(), rows)
  study.run(answers_path=study.path())
  assert annotation.missing(study.workdir) == 0


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
  study.run((2, 4), answers_path=copy)
  assert study.ids() == ['p3', 'p7', 'p4']
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
  assert [
    r['prompt_id'] for r in store.read_jsonl(study.path('todo-2.jsonl'))
  ] == [
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
  study.run((2, 4), answers_path=tmp_path / 'both.csv')
  assert annotation.missing(study.workdir) == 1
  assert study.counts['todo'] == ['annotations/todo-2.csv']
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
  assert [
    r['prompt_id'] for r in store.read_jsonl(study.workdir.todo)
  ] == expected
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
    json.loads(study.workdir.todo.read_text().splitlines()[0])['prompt_id']
    == 'p3'
  )
