"""The stage as a whole: what it writes, what it refuses, what it never says."""

import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import default
from edsft_jax import errors, pool, store
from edsft_jax.pool import built, demo, sources


class Study:
  """A workdir with a pool file."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.workdir = store.Workdir(folder / 'work')

  def write(self, rows, name='pool.jsonl'):
    self.folder.mkdir(exist_ok=True)
    path = self.folder / name
    path.write_text(
      ''.join(
        row if isinstance(row, str) else f'{json.dumps(row)}\n' for row in rows
      )
    )
    return str(path)

  def run(self, rows=None, heldout_fraction=0.0, **options):
    if rows is not None:
      options['path'] = self.write(rows)
    options.setdefault('path', str(self.folder / 'pool.jsonl'))
    config = default.get_config()
    config.pool.update(options, heldout_fraction=heldout_fraction)
    pool.check(config, self.workdir, frozenset())
    pool.run(config, self.workdir)
    return store.read_prompts(self.workdir.pool)

  @property
  def counts(self):
    return store.Manifest(self.workdir).counts('pool')

  @property
  def responses(self):
    return store.read_responses(self.workdir.pool_responses)

  @property
  def quarantine(self):
    return store.read_jsonl(self.workdir.quarantine)

  @property
  def duplicates(self):
    return store.read_jsonl(self.workdir.duplicates)

  def is_untouched(self):
    return not self.workdir.root.exists()


@pytest.fixture
def study(tmp_path):
  return Study(tmp_path)


def numbered(n, **more):
  return [
    {
      'id': f'i{k}',
      'prompt': f'Prompt {k}?',
      'response': f'Answer {k}.',
      **more,
    }
    for k in range(n)
  ]


def test_what_is_written(study, capsys):
  rows = numbered(3, task='t', level=2, source='web')
  prompts = study.run(rows)
  assert prompts.ids == ['i0', 'i1', 'i2']
  assert prompts.prompts == ['Prompt 0?', 'Prompt 1?', 'Prompt 2?']
  assert prompts.tasks == ['t', 't', 't']
  table = pq.read_table(study.workdir.pool)
  assert table.column_names == ['id', 'prompt', 'task', 'level', 'source']
  assert table['level'].to_pylist() == [2, 2, 2]
  assert study.responses == {f'i{k}': f'Answer {k}.' for k in range(3)}
  assert study.quarantine == []
  assert not study.workdir.heldout.exists()
  out = capsys.readouterr().out
  assert '3 rows: 3 prompts, 3 answers known, 0 held out, 0 merged' in out
  assert '1 task: t 3' in out
  assert 'columns: prompt prompt, context none' in out


def test_duplicates_are_kept_once_and_counted(study, capsys):
  rows = [
    {'id': 'a', 'prompt': 'P', 'response': 'first'},
    {'id': 'b', 'prompt': 'P', 'response': 'second'},
    {'prompt': 'Q'},
    {'prompt': 'Q'},
    {'id': 'c', 'prompt': 'P '},
    {'id': 'd', 'prompt': 'p!'},
  ]
  prompts = study.run(rows)
  assert prompts.prompts == ['P', 'Q', 'p!']
  assert study.responses == {'a': 'first'}
  assert study.counts['duplicates'] == 3
  assert study.counts['near_duplicates'] == 1
  assert study.counts['rows'] == 6
  assert f'3 merged ({study.workdir.duplicates})' in capsys.readouterr().out
  assert study.duplicates == [
    {
      'line': 2,
      'id': 'b',
      'kept_id': 'a',
      'merged': True,
      'differs': ['response'],
    },
    {
      'line': 4,
      'id': prompts.ids[1],
      'kept_id': prompts.ids[1],
      'merged': True,
      'differs': [],
    },
    {'line': 5, 'id': 'c', 'kept_id': 'a', 'merged': True, 'differs': []},
    {
      'line': 6,
      'id': 'd',
      'kept_id': 'a',
      'merged': False,
      'differs': ['prompt'],
    },
  ]


def test_an_answered_duplicate_replaces_an_unanswered_one(study):
  rows = [
    {'id': 'a', 'prompt': 'P', 'level': 1},
    {'id': 'z', 'prompt': 'Q'},
    {'id': 'b', 'prompt': 'P', 'level': 2, 'response': 'yes'},
    {'id': 'a', 'prompt': 'R'},
  ]
  prompts = study.run(rows)
  # The id of the copy that was dropped is free again.
  assert prompts.ids == ['b', 'z', 'a']
  assert prompts.prompts == ['P', 'Q', 'R']
  assert study.responses == {'b': 'yes'}
  assert pq.read_table(study.workdir.pool)['level'].to_pylist()[0] == 2
  assert [(d['line'], d['kept_id']) for d in study.duplicates] == [(1, 'b')]


DIFFERING = [
  {'prompt': f'Prompt {i}?', 'story': f'Passage {i}', 'url': f'h://{i}'}
  for i in (0, 1)
]


def test_merged_rows_that_differ_in_a_column_of_text(study, capsys):
  rows = [DIFFERING[0], {**DIFFERING[0], 'story': 'Another one'}]
  with pytest.raises(errors.InputError, match=r'line 2.*another story'):
    study.run(rows, strict=True)
  assert study.is_untouched()
  study.run([*rows, DIFFERING[1]])
  assert '1 merged rows have another story' in capsys.readouterr().out
  assert study.duplicates[0]['differs'] == ['story']


def test_addresses_may_differ(study):
  study.run([DIFFERING[0], {**DIFFERING[0], 'url': 'h://9'}], strict=True)


def test_a_file_that_would_be_merged_away_is_refused(study):
  rows = [
    {'prompt': 'Happy or sad?', 'sentence': f'Sentence number {i}'}
    for i in range(5)
  ]
  with pytest.raises(errors.InputError, match=r'4 of 5.*context_column'):
    study.run(rows)
  assert study.is_untouched()
  assert len(study.run(rows, context_column='sentence')) == 5


def test_every_row_is_counted_once(study):
  rows = [
    *numbered(10),
    {'id': 'double', 'prompt': 'Prompt 3?'},
    {'prompt': ''},
    '{broken\n',
    {'id': 'out', 'prompt': 'Excluded?'},
  ]
  (study.folder / 'exclude.txt').write_text('out\n')
  exclude = str(study.folder / 'exclude.txt')
  study.run(rows, 0.2, exclude=exclude)
  counts = study.counts
  names = ('prompts', 'heldout', 'duplicates', 'quarantined', 'excluded')
  assert [counts[name] for name in names] == [8, 2, 1, 2, 1]
  assert counts['rows'] == len(rows)


def test_exclude(study):
  table = study.write([{'id': 'i1'}, {'prompt_id': 'i3'}], 'out.jsonl')
  assert study.run(numbered(5), exclude=table).ids == ['i0', 'i2', 'i4']
  study.write([{'id': 'i1'}], 'out.jsonl')
  with pytest.raises(errors.InputError, match=r'ids of pool\.exclude'):
    study.run(exclude=table)


def test_exclude_names_ids_that_do_not_exist(study):
  table = study.write([{'id': 'i1'}, {'id': 'nope'}], 'out.jsonl')
  with pytest.raises(errors.InputError, match=r'1 ids that are not .*: nope'):
    study.run(numbered(3), exclude=table)
  study.write([{'name': 'i1'}], 'out.jsonl')
  with pytest.raises(errors.InputError, match='no id'):
    study.run(numbered(3), exclude=table)
  assert study.is_untouched()


def test_same_id_with_another_prompt_is_refused(study):
  rows = [{'id': 7, 'prompt': 'P'}, {'id': '7', 'prompt': 'Q'}]
  assert study.run(rows).prompts == ['P']
  (refused,) = study.quarantine
  assert refused['line'] == 2
  assert refused['id'] == '7'
  assert 'line 1' in refused['reason']


def test_quarantine_says_where_and_why_but_not_what(study, capsys):
  rows = [
    *numbered(1),
    '{"prompt": "SECRET", \n',
    {'id': 'x', 'prompt': '', 'response': 'SECRET'},
    {'prompt': 'SECRET\ud800'},
  ]
  study.run(rows)
  assert [(r['line'], r['id']) for r in study.quarantine] == [
    (2, ''),
    (3, 'x'),
    (4, ''),
  ]
  assert all(r['reason'] for r in study.quarantine)
  assert 'SECRET' not in study.workdir.quarantine.read_text()
  assert study.counts['quarantined'] == 3
  out = capsys.readouterr().out
  assert f'3 quarantined ({study.workdir.quarantine})' in out


def test_strict(study):
  rows = [*numbered(2), {'prompt': ''}]
  with pytest.raises(errors.InputError, match=r'line 3: .*pool\.strict'):
    study.run(rows, strict=True)
  assert study.is_untouched()
  study.run(rows)
  with pytest.raises(errors.InputError, match='line 3'):
    study.run(strict=True)
  study.run(limit=0)


def test_limit_reads_the_first_rows(study):
  assert study.run([*numbered(5), '{broken'], limit=3).ids == ['i0', 'i1', 'i2']
  assert study.counts['quarantined'] == 0


@pytest.mark.parametrize(
  ('rows', 'options', 'message'),
  [
    ([], {}, 'no rows'),
    (['{bad\n'], {}, 'no usable row.*line 1'),
    ([{'prompt': ''}], {}, 'no usable row: 1 rejected.*empty'),
    ([{'a': 1}], {}, 'pool.prompt_column'),
    ([{'prompt': 'p'}], {'task_column': 'kind'}, 'it has the columns prompt'),
    ([{'prompt': 'p'}], {'format': 'xml'}, 'pool.format'),
    ([{'prompt': 'p'}], {'limit': -1}, 'pool.limit=-1'),
    ([{'prompt': 'p'}], {'heldout_fraction': 1.0}, 'pool.heldout_fraction=1.0'),
    ([{'prompt': 'p'}], {'heldout_fraction': -0.1}, 'pool.heldout_fraction'),
    ([{'prompt': 'p'}], {'heldout_path': 'no.csv'}, 'pool.heldout_path=no.csv'),
    (numbered(2), {'heldout_fraction': 0.9999}, 'all 2 are held out'),
    ([{'prompt': 'p'}], {'answer_in_prompt': 'no'}, 'answer_in_prompt'),
    ([{'prompt': 'p'}], {'exclude': 'no.txt'}, 'pool.exclude=no.txt'),
    ([{'text': 'p'}], {}, 'may contain responses'),
    ([{'prompt': 'p'}], {'path': ''}, 'pool.path is empty'),
    ([{'prompt': 'p'}], {'path': '/no/file.csv'}, 'does not exist'),
  ],
)
def test_bad_input_writes_nothing(study, rows, options, message):
  path = study.write(rows)
  with pytest.raises(errors.InputError, match=message) as e:
    study.run(**{'path': path, **options})
  assert '\n' not in str(e.value)
  assert study.is_untouched()


# No answer may reach what scores and selects.

SECRET = 'Xylophonic marmalade zeppelin {}'


def secret_turns(k):
  return [
    {'role': 'user', 'content': f'Question {k}?'},
    {'role': 'assistant', 'content': SECRET.format(k)},
  ]


LAYOUTS = {
  'prompt and response': lambda k: {
    'prompt': f'Question {k}?',
    'response': SECRET.format(k),
  },
  'instruction': lambda k: {
    'instruction': 'Answer this.',
    'input': f'Question {k}?',
    'output': SECRET.format(k),
  },
  'question': lambda k: {
    'question': f'Question {k}?',
    'answer': SECRET.format(k),
  },
  'messages': lambda k: {'messages': secret_turns(k)},
  'messages as text': lambda k: {'messages': json.dumps(secret_turns(k))},
  'both': lambda k: {
    'prompt': f'Question {k}?',
    'messages': secret_turns(k),
    'category': 'x',
  },
  'ShareGPT': lambda k: {
    'conversations': [
      {'from': 'human', 'value': f'Question {k}?'},
      {'from': 'gpt', 'value': SECRET.format(k)},
    ]
  },
  'turns as text in prompt': lambda k: {'prompt': json.dumps(secret_turns(k))},
  'turns as Python prints them': lambda k: {'prompt': repr(secret_turns(k))},
  'role markers': lambda k: {
    'text': f'### Human: Question {k}?### Assistant: {SECRET.format(k)}'
  },
  'turns as completion': lambda k: {
    'prompt': secret_turns(k)[:1],
    'completion': secret_turns(k)[1:],
  },
  'copies': lambda k: {
    'prompt': f'Question {k}?',
    'response': SECRET.format(k),
    'text': f'Question {k}? => {SECRET.format(k).upper()}.',
    'answer': SECRET.format(k),
    'meta': {'deep': [SECRET.format(k)]},
    'json': json.dumps({'answer': f'"{SECRET.format(k)}"\n'}),
    'task': SECRET.format(k),
  },
}


@pytest.mark.parametrize('fraction', [0.0, 0.4])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_response_under_pool(study, layout, fraction):
  rows = [{'id': f'i{k}', **LAYOUTS[layout](k)} for k in range(20)]
  rows += [
    {**LAYOUTS[layout](0), 'id': 'double'},
    {**LAYOUTS[layout](99), 'id': 'i0'},
    {**LAYOUTS[layout](98), 'id': ['bad']},
  ]
  prompts = study.run(rows, fraction)
  heldout = store.Prompts([], [], None, [])
  if fraction:
    heldout = store.read_prompts(study.workdir.heldout)
    assert len(heldout) > 0
  assert sorted([*prompts.ids, *heldout.ids]) == sorted(
    f'i{k}' for k in range(20)
  )
  answers = {
    **study.responses,
    **dict(zip(heldout.ids, heldout.responses, strict=True)),
  }
  assert answers == {f'i{k}': SECRET.format(k) for k in range(20)}

  folder = study.workdir.pool.parent
  for path in folder.iterdir():
    if path.suffix == '.parquet':
      text = json.dumps(pq.read_table(path).to_pylist())
      text += str(pq.read_schema(path).metadata)
    else:
      text = path.read_text()
    assert 'marmalade' not in text.casefold(), path
  assert 'marmalade' not in study.workdir.manifest.read_text().casefold()


def test_messages_keep_earlier_turns(study):
  turns = [*secret_turns(1), {'role': 'user', 'content': 'And then?'}]
  last = {'role': 'assistant', 'content': 'END'}
  prompts = study.run([{'id': 'a', 'messages': [*turns, last]}])
  assert prompts.prompts == [turns]
  assert study.responses == {'a': 'END'}


def test_text_and_conversations_in_one_file(study):
  turns = [{'role': 'user', 'content': 'Hi?'}]
  prompts = study.run([{'prompt': 'Hello?'}, {'prompt': turns}])
  assert prompts.prompts == ['Hello?', turns]


# Tasks.


def test_rows_without_a_task(study):
  prompts = study.run([{'prompt': 'p', 'task': 'a'}, {'prompt': 'q'}])
  assert prompts.tasks == ['a', built.NO_TASK]
  assert study.counts['tasks'] == 2


def test_a_task_that_is_the_answer(study, capsys):
  rows = [
    {
      'prompt': f'p{k}',
      'response': f'{k % 3} stars',
      'category': f'{k % 3}  STARS',
    }
    for k in range(10)
  ]
  assert study.run(rows).tasks is None
  assert "column 'category' is left out" in capsys.readouterr().out
  assert 'category' in study.counts['columns_left_out']
  assert 'category' not in pq.read_schema(study.workdir.pool).names


def test_a_named_task_that_is_the_answer(study):
  rows = [{'prompt': f'p{k}', 'output': 'x', 'label': 'x'} for k in range(3)]
  with pytest.raises(
    errors.InputError, match=r"pool.task_column='label'.*3 of"
  ):
    study.run(rows, task_column='label')
  assert study.is_untouched()


def test_a_task_that_is_the_answer_by_chance(study):
  rows = numbered(150, category='sorting')
  rows[7]['response'] = 'Sorting'
  assert study.run(rows).tasks[0] == 'sorting'


# Held-out prompts.


def test_split_is_never_in_the_pool(study):
  rows = numbered(300)
  rows += [{'id': f'n{k}', 'prompt': f'Unanswered {k}?'} for k in range(50)]
  prompts = study.run(rows, 0.2, limit=150)
  heldout = store.read_prompts(study.workdir.heldout)
  assert len(heldout) == 30
  assert len(prompts) + len(heldout) == 150
  assert set(prompts.ids).isdisjoint(heldout.ids)
  assert set(study.responses).isdisjoint(heldout.ids)
  assert heldout.responses == [f'Answer {i[1:]}.' for i in heldout.ids]
  assert study.counts['heldout'] == len(heldout)


def test_nothing_to_split_off(study, capsys):
  study.run([{'prompt': 'p'}], 0.5)
  assert 'nothing is held out' in capsys.readouterr().out
  assert not study.workdir.heldout.exists()


def test_heldout_file(study, capsys):
  study.write(
    [
      {'question': 'New?', 'answer': 'Yes.', 'category': 'c'},
      {'question': 'Prompt 1?', 'answer': 'In the pool.'},
      {'question': 'Unanswered?'},
      {'question': 'New?', 'answer': 'Twice.'},
      {'question': ''},
      {'question': 'prompt 2', 'answer': 'Nearly in the pool.'},
      {'question': 'And?', 'answer': 'So.'},
    ],
    'held.jsonl',
  )
  held = str(study.folder / 'held.jsonl')
  turns = [
    {'role': 'user', 'content': 'And?'},
    {'role': 'assistant', 'content': 'So.'},
    {'role': 'user', 'content': 'Then?'},
  ]
  rows = [*numbered(3, prompts='x'), {'id': 'turns', 'messages': turns}]
  # A file needs no split: the fraction is not applied.
  prompts = study.run(rows, 0.9, heldout_path=held, id_column='id')
  assert len(prompts) == 4
  heldout = store.read_prompts(study.workdir.heldout)
  assert heldout.prompts == ['New?']
  assert heldout.tasks == ['c']
  assert heldout.responses == ['Yes.']
  counts = store.Manifest(study.workdir).counts('heldout')
  columns = counts.pop('columns')
  assert counts == {
    'prompts': 1,
    'without_response': 1,
    'in_pool': 1,
    'near_pool': 1,
    'in_conversation': 1,
    'duplicates': 1,
    'quarantined': 1,
  }
  assert columns.startswith('prompt question, context none, ')
  out = capsys.readouterr().out
  assert f'held-out columns: {columns}' in out
  assert '1 held-out prompt from' in out


def test_heldout_file_without_answers(study):
  held = study.write([{'prompt': 'New?'}], 'held.jsonl')
  with pytest.raises(errors.InputError, match='1 have no response'):
    study.run(numbered(3), heldout_path=held)


def test_heldout_file_may_come_later_but_not_change(study):
  study.run([{'prompt': 'p'}, {'prompt': 'q'}], 0.5)
  made = study.workdir.pool.stat().st_mtime_ns
  held = study.write([{'prompt': 'New?', 'response': 'a'}], 'held.jsonl')
  study.run(heldout_path=held, heldout_fraction=0.5)
  study.run(heldout_path=held, heldout_fraction=0.5)
  assert study.workdir.pool.stat().st_mtime_ns == made
  assert len(store.read_prompts(study.workdir.heldout)) == 1
  study.write([{'prompt': 'Newer?', 'response': 'a'}], 'held.jsonl')
  with pytest.raises(errors.InputError, match=r'file of pool\.heldout_path'):
    study.run(heldout_path=held, heldout_fraction=0.5)
  with pytest.raises(errors.InputError, match='heldout in this workdir'):
    study.run(heldout_fraction=0.5)


def test_heldout_file_does_not_replace_a_split(study):
  study.run(numbered(50), 0.3)
  held = study.write([{'prompt': 'New?', 'response': 'a'}], 'held.jsonl')
  with pytest.raises(errors.InputError, match=r'pool\.heldout_fraction'):
    study.run(heldout_path=held, heldout_fraction=0.3)


# Running again.


def test_large_files_show_a_bar(tmp_path, capsys):
  path = tmp_path / 'pool.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in numbered(20)))
  for large, shown in ((path.stat().st_size + 1, False), (100, True)):
    file = sources.Files([path], 'jsonl', large)
    assert len(list(file.rows(0))) == 20
    assert ('rows' in capsys.readouterr().err) == shown


def test_second_run_skips(study, capsys):
  study.run(numbered(4))
  before = study.workdir.pool.stat().st_mtime_ns
  first = capsys.readouterr().out
  study.run()
  assert study.workdir.pool.stat().st_mtime_ns == before
  assert capsys.readouterr().out == first


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    ({'limit': 2}, 'pool.limit'),
    ({'rows': numbered(5)}, 'file of pool.path'),
    ({'heldout_fraction': 0.3}, 'pool.heldout_fraction'),
    ({'task_column': 'prompt'}, 'pool.task_column'),
  ],
)
def test_changed_input_is_refused(study, options, name):
  study.run(numbered(4))
  with pytest.raises(errors.InputError, match='another --workdir') as e:
    study.run(**options)
  assert name in str(e.value)


def test_the_same_file_elsewhere_is_the_same_pool(study):
  study.run(numbered(4))
  path = study.write(numbered(4), 'moved.jsonl')
  study.run(path=path)


def test_an_interrupted_run_leaves_no_pool_and_starts_over(study, monkeypatch):
  write = store.write_parquet

  def fail(path, table):
    if path == study.workdir.pool:
      raise KeyboardInterrupt
    write(path, table)

  monkeypatch.setattr(store, 'write_parquet', fail)
  with pytest.raises(KeyboardInterrupt):
    study.run(numbered(20), 0.3)
  assert not study.workdir.pool.exists()
  monkeypatch.undo()
  # The file may be another one, since nothing was kept to resume from.
  prompts = study.run(numbered(10), 0.3)
  heldout = store.read_prompts(study.workdir.heldout)
  assert len(prompts) + len(heldout) == 10
  assert set(study.responses) == set(prompts.ids)
  assert not list(study.workdir.root.rglob('*.partial'))


def test_an_interrupted_run_leaves_no_stale_heldout(study, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(store, 'write_jsonl', fail)
  with pytest.raises(KeyboardInterrupt):
    study.run(numbered(20), 0.3)
  monkeypatch.undo()
  study.run(numbered(20), 0.0)
  assert not study.workdir.heldout.exists()


# The demo and real files.


def test_demo(study):
  prompts = study.run(path='demo', heldout_fraction=0.1)
  heldout = store.read_prompts(study.workdir.heldout)
  sizes = {task: prompts.tasks.count(task) for task in set(prompts.tasks)}
  assert set(sizes) == set(demo.TASKS)
  assert 1800 < len(prompts) < 2400
  rows = len(prompts) + len(heldout)
  assert len(heldout) == round(0.1 * rows)
  assert max(sizes.values()) > 10 * min(sizes.values())
  assert study.counts['duplicates'] > 0
  assert study.counts['quarantined'] == 0


def test_demo_never_changes():
  """The generated pool on every machine and Python version."""
  rows = demo.rows()
  assert store.hash_json(rows) == DEMO_HASH
  demo.rows.cache_clear()
  assert demo.rows() == rows


DEMO_HASH = '6b349250cf2f77bc8de722646774374859695366b80c06ad06d3397f6e1f6371'


@pytest.mark.parametrize('name', ['dolly15k', 'sni_pool'])
def test_real_pools(study, shared, name):
  path = str(shared / 'data' / f'{name}.jsonl.gz')
  prompts = study.run(path=path, limit=200, heldout_fraction=0.1)
  heldout = store.read_prompts(study.workdir.heldout)
  assert len(prompts) + len(heldout) + study.counts['duplicates'] == 200
  assert len(set(prompts.tasks)) > 1
  assert len(study.responses) == len(prompts)
  text = json.dumps(
    pq.read_table(study.workdir.pool).drop(['id', 'prompt']).to_pylist()
  )
  assert not any(r in text for r in heldout.responses)


def test_files_of_a_folder_and_of_a_pattern(study, capsys):
  folder = study.folder / 'parts'
  folder.mkdir()
  study.write(numbered(2), 'parts/b.jsonl')
  study.write([{'prompt': 'First?'}, {'prompt': ''}], 'parts/a.jsonl')
  (folder / 'README.md').write_text('x')
  prompts = study.run(path=str(folder))
  assert prompts.prompts == ['First?', 'Prompt 0?', 'Prompt 1?']
  assert '2 read, 1 ignored' in capsys.readouterr().out
  (refused,) = study.quarantine
  assert (refused['file'], refused['line']) == ('a.jsonl', 2)
  again = Study(study.folder / 'again')
  assert again.run(path=str(folder / '*.jsonl')).ids == prompts.ids
  with pytest.raises(errors.InputError, match='matches no file'):
    again.run(path=str(folder / '*.csv'))
  (study.folder / 'none').mkdir()
  with pytest.raises(errors.InputError, match='no file with a known extension'):
    again.run(path=str(study.folder / 'none'))


def test_a_dataset_saved_to_disk(study):
  table = pa.Table.from_pylist(numbered(3))
  folder = study.folder / 'data' / 'train'
  folder.mkdir(parents=True)
  for i, part in enumerate((table[:2], table[2:])):
    with pa.ipc.new_stream(folder / f'data-{i}.arrow', part.schema) as writer:
      writer.write_table(part)
  files = [{'filename': 'data-0.arrow'}, {'filename': 'data-1.arrow'}]
  (folder / 'state.json').write_text(json.dumps({'_data_files': files}))
  assert study.run(path=str(folder)).ids == ['i0', 'i1', 'i2']
  splits = folder.with_name('dataset_dict.json')
  splits.write_text(json.dumps({'splits': ['train', 'test']}))
  with pytest.raises(errors.InputError, match='splits train, test: name one'):
    study.run(path=str(folder.parent))


def test_an_hf_dataset_without_its_package(study, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(errors.InputError, match='pip install datasets'):
    study.run(path='hf:owner/name/train')
  with pytest.raises(errors.InputError, match='hf:NAME/SPLIT'):
    study.run(path='hf:name')


def test_prompts_that_contain_their_answers(study):
  rows = [
    {'prompt': f'Repeat the word w{i}', 'response': f'w{i}'} for i in range(9)
  ]
  with pytest.raises(errors.InputError, match='9 of 9 answered rows'):
    study.run(rows)
  assert study.is_untouched()
  assert len(study.run(rows, answer_in_prompt='keep')) == 9


def test_a_task_per_prompt_is_none(study, capsys):
  rows = numbered(25)
  for i, row in enumerate(rows):
    row['task'] = f't{i}'
  assert study.run(rows).tasks is None
  assert 'each of the 25 prompts has its own task' in capsys.readouterr().out
  named = Study(study.folder / 'named')
  named.folder.mkdir()
  with pytest.raises(errors.InputError, match='a column with a few labels'):
    named.run(rows, task_column='task')


def test_heldout_prompts_may_each_have_their_own_task(study):
  rows, heldout = numbered(25), numbered(50)[25:]
  for i, row in enumerate(rows):
    row['task'] = f't{i % 5}'
  for i, row in enumerate(heldout):
    row['task'] = f't{i}'
  path = study.folder / 'heldout.jsonl'
  store.write_jsonl(path, heldout)
  study.run(rows, heldout_path=str(path))
  assert store.read_prompts(study.workdir.heldout).tasks == [
    row['task'] for row in heldout
  ]


def test_heldout_tasks_that_are_answers_are_left_out(study, capsys):
  heldout = numbered(50)[25:]
  for row in heldout:
    row['task'] = row['response']
  path = study.folder / 'heldout.jsonl'
  store.write_jsonl(path, heldout)
  study.run(numbered(25), heldout_path=str(path))
  assert store.read_prompts(study.workdir.heldout).tasks is None
  message = "held-out column 'task' is left out: it equals the response in 25"
  assert message in capsys.readouterr().out


def test_prompts_with_role_markers(study, capsys):
  rows = [
    {'text': f'### Human: Prompt {i}?### Assistant: Answer {i}.'}
    for i in range(3)
  ]
  prompts = study.run([*rows, {'text': 'Prompt 9?'}])
  assert prompts.prompts[0] == [{'role': 'user', 'content': 'Prompt 0?'}]
  assert prompts.prompts[3] == 'Prompt 9?'
  assert list(study.responses.values()) == [f'Answer {i}.' for i in range(3)]
  assert '(Guanaco) and split into turns: 3' in capsys.readouterr().out


ANSWERED = {
  'Guanaco': '### Human: Name a fish.### Assistant: SECRET',
  'dialogue': 'Continue.\n\nHuman: Hi?\n\nAssistant: SECRET',
  'Gemma': (
    '<start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nSECRET'
  ),
  'question and answer': '### Question: Hi?\n### Answer: SECRET',
  'plain question and answer': 'Question: Hi?\nAnswer: SECRET',
}


@pytest.mark.parametrize('name', ANSWERED)
def test_answers_after_role_markers_in_a_few_prompts(study, name):
  rows = [*numbered(3), {'prompt': ANSWERED[name]}]
  assert study.run(rows).ids == ['i0', 'i1', 'i2']
  (row,) = study.quarantine
  assert 'answer_in_prompt=keep' in row['reason']
  assert 'SECRET' not in json.dumps(study.quarantine)


@pytest.mark.parametrize('name', ANSWERED)
def test_role_markers_without_an_answer(study, name):
  text = ANSWERED[name].removesuffix('SECRET').rstrip()
  prompts = study.run([*numbered(3), {'prompt': text}])
  assert prompts.prompts[3] == text


def test_answers_in_prompts_may_be_kept(study):
  text = ANSWERED['Guanaco']
  rows = [*numbered(3), {'prompt': text}]
  prompts = study.run(rows, answer_in_prompt='keep')
  assert prompts.prompts[3] == text


def test_an_answer_that_has_begun_next_to_its_response(study):
  """As prompts ask for a chain of thought."""
  text = "Question: 1 + 1?\nAnswer: Let's think step by step."
  rows = [*numbered(3), {'prompt': text, 'response': '2'}]
  assert study.run(rows).prompts[3] == text


def test_choices_in_columns_of_their_own(study):
  rows = [
    {'question': 'Which?', 'A': 'x', 'B': 'y', 'answer': 'A'},
    {'question': 'Which?', 'A': 3, 'B': 4, 'answer': 'B'},
  ]
  prompts = study.run(rows)
  assert prompts.prompts == ['Which?\nA. x\nB. y', 'Which?\nA. 3\nB. 4']
  assert study.counts['duplicates'] == 0


def test_a_name_in_one_turn_changes_no_other(study, tmp_path):
  named = [{'role': 'user', 'content': 'Hi?', 'name': 'bob'}]
  other = [
    {'role': 'user', 'content': 'Ho?'},
    {'role': 'assistant', 'content': 'a'},
  ]
  other = [*other, {'role': 'user', 'content': 'b'}]
  path = tmp_path / 'held.jsonl'
  rows = [{'prompt': 'ho', 'response': 'x'}, {'prompt': 'c', 'response': 'd'}]
  path.write_text('\n'.join(map(json.dumps, rows)))
  prompts = study.run(
    [{'messages': named}, {'messages': other}], heldout_path=str(path)
  )
  assert prompts.prompts == [named, other]
  assert store.read_prompts(study.workdir.heldout).prompts == ['c']


def test_a_bad_held_out_file_leaves_nothing(study, tmp_path):
  path = tmp_path / 'held.jsonl'
  path.write_text('{"prompt": "a"}')
  with pytest.raises(errors.InputError, match=r'pool\.heldout_path'):
    study.run(numbered(3), heldout_path=str(path))
  assert not study.workdir.pool.exists()


def test_a_name_of_a_column_that_cannot_be_written(study):
  rows = [*numbered(2), '{"prompt": "p", "re\\ud800": "z"}\n']
  assert len(study.run(rows)) == 3
  assert any('ud800' in name for name in study.counts['columns_left_out'])
