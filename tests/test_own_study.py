"""All seven stages on a person's own prompts, answered or to be answered."""

import csv
import json
import pathlib

import pyarrow.parquet as pq
import pytest
from small_study import SMALL, small

from configs import default
from edsft_jax import errors, pipeline, store, study
from edsft_jax.strategies.registry import STRATEGIES

pytestmark = pytest.mark.usefixtures('on_one_device')


# A pool whose answers can be told from everything else.


def own(**options):
  """Every seed chooses from the whole pool: it is small."""
  return small(**{'study.pool_fraction': 1.0, **options})


def _marked_rows(num_rows: int = 40) -> list[dict[str, str]]:
  return [
    {
      'id': f'q{i}',
      'prompt': f'Copy the word: thing{i}',
      'task': 'even' if i % 2 else 'odd',
      'response': f'SECRET{i}ANSWER',
      'note': f'the annotator wrote SECRET{i}ANSWER',
      'source': 'web',
    }
    for i in range(num_rows)
  ]


def _write_jsonl(path: pathlib.Path, rows) -> pathlib.Path:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _everything_in(folder: pathlib.Path) -> str:
  """The text of every file, parquet and numpy decoded."""
  parts = []
  for path in sorted(folder.rglob('*')):
    if path.suffix == '.parquet':
      parts.append(json.dumps(pq.read_table(path).to_pylist()))
    elif path.is_file():
      parts.append(path.read_bytes().decode('latin-1'))
  return '\n'.join(parts)


def test_no_answer_reaches_what_scores_and_selects(tmp_path):
  pool = _write_jsonl(tmp_path / 'pool.jsonl', _marked_rows())
  root = tmp_path / 'w'
  pipeline.run(
    own(**{'pool.path': str(pool), 'pool.limit': 0}),
    store.Workdir(root),
    ('pool', 'score', 'select'),
  )
  for part in ('pool', 'scores', 'selections'):
    text = _everything_in(root / part)
    assert 'q1' in text or 'thing1' in text or part == 'scores'
    assert 'SECRET' not in text, part
  assert 'SECRET' in _everything_in(root / 'annotations')
  assert 'SECRET' in _everything_in(root / 'heldout')


def test_buyer_gets_a_list_and_continues_with_the_filled_one(tmp_path, capsys):
  rows = [
    {k: row[k] for k in ('id', 'prompt', 'task')} for row in _marked_rows()
  ]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  heldout = _write_jsonl(
    tmp_path / 'heldout.jsonl',
    [
      {'id': f'h{i}', 'prompt': f'Copy the word: other{i}', 'response': 'x'}
      for i in range(6)
    ],
  )
  root = tmp_path / 'w'
  options = {
    'pool.path': str(pool),
    'pool.heldout_path': str(heldout),
    'pool.limit': 0,
    'study.budgets': (6,),
    'study.seeds': (0,),
    'selection.strategies': ('random', 'min_margin'),
  }
  pipeline.run(own(**options), store.Workdir(root))
  said = capsys.readouterr().out
  workdir = store.Workdir(root)
  todo = store.read_jsonl(workdir.todo)
  ids = [row['prompt_id'] for row in todo]
  wanted = set(study.selected_ids(workdir, 'random', 0)[:6]) | set(
    study.selected_ids(workdir, 'min_margin', 0)[:6]
  )
  assert sorted(ids) == sorted(wanted)
  assert str(len(wanted)) in said
  assert 'waiting for the answers' in said
  assert not workdir.runs.exists()

  filled = tmp_path / 'filled.csv'
  with workdir.todo.with_suffix('.csv').open(newline='') as f:
    table = list(csv.DictReader(f))
  with filled.open('w', newline='') as f:
    writer = csv.DictWriter(f, table[0].keys())
    writer.writeheader()
    for row in table:
      writer.writerow({**row, 'response': f'answer to {row["prompt_id"]}'})
  options['annotation.answers_path'] = str(filled)
  pipeline.run(own(**options), store.Workdir(root))
  said = capsys.readouterr().out
  assert 'full pool' not in said.split('strategy')[-1]
  assert workdir.run('min_margin-k6-seed0').evaluation('heldout').exists()
  assert workdir.report.exists()


@pytest.mark.slow
def test_buyer_without_a_heldout_file_gets_the_list_too(tmp_path, capsys):
  rows = [{'id': row['id'], 'prompt': row['prompt']} for row in _marked_rows()]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  root = tmp_path / 'w'
  options = {
    'pool.path': str(pool),
    'pool.limit': 0,
    'study.budgets': (3,),
    'study.seeds': (0,),
    'selection.strategies': ('random',),
  }
  pipeline.run(own(**options), store.Workdir(root))
  assert 'waiting for the answers' in capsys.readouterr().out
  todo = store.read_jsonl(store.Workdir(root).todo)
  answers = _write_jsonl(
    tmp_path / 'answers.jsonl', [{**row, 'response': 'x'} for row in todo]
  )
  options['annotation.answers_path'] = str(answers)
  with pytest.raises(errors.InputError, match=r'set pool\.heldout_path'):
    pipeline.run(own(**options), store.Workdir(root))
  assert not (root / 'runs').exists()


def test_an_unusable_pool_leaves_nothing_behind(tmp_path):
  pool = tmp_path / 'pool.jsonl'
  pool.write_bytes(bytes(range(256)))
  with pytest.raises(errors.InputError, match=r'pool\.jsonl'):
    workdir = store.Workdir(tmp_path / 'w')
    pipeline.run(own(**{'pool.path': str(pool)}), workdir)
  assert not (tmp_path / 'w').exists()


def test_a_budget_beyond_the_pool_is_found_before_scoring(tmp_path):
  pool = _write_jsonl(tmp_path / 'pool.jsonl', _marked_rows())
  config = own(**{'pool.path': str(pool), 'study.budgets': (8, 4000)})
  with pytest.raises(errors.InputError, match='4000, which exceeds the pool'):
    pipeline.run(config, store.Workdir(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'scores').exists()


def test_a_task_strategy_finds_tasks_where_a_pool_has_none(tmp_path):
  rows = [{'prompt': row['prompt']} for row in _marked_rows()]
  pool = _write_jsonl(tmp_path / 'pool.jsonl', rows)
  config = own(**{'pool.path': str(pool), 'pool.limit': 0})
  config.selection.strategies = ('weighted_task_diversity',)
  config.selection.task_clusters = 3
  workdir = store.Workdir(tmp_path / 'w')
  pipeline.run(config, workdir, ('pool', 'score', 'select'))
  picks = store.read_jsonl(workdir.selection('weighted_task_diversity', 0))
  assert {pick['task'] for pick in picks} == {f'cluster {i}' for i in range(3)}


@pytest.mark.slow
def test_real_prompts_and_a_pretrained_model(tmp_path, shared):
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      **SMALL,
      'pool.path': str(shared / 'data' / 'dolly15k.jsonl.gz'),
      'pool.limit': 40,
      'scoring.batch_tokens': 4096,
      'model.path': str(shared / 'models' / 'stories260K'),
      'study.budgets': (8,),
      'study.seeds': (0,),
      'study.full_pool': False,
      'finetuning.max_length': 64,
      'evaluation.limit': 4,
      'selection.strategies': tuple(STRATEGIES),
    }
  )
  root = tmp_path / 'w'
  pipeline.run(config, store.Workdir(root), ('pool', 'score', 'select'))
  config.selection.strategies = ('random', 'facility_location')
  pipeline.run(config, store.Workdir(root))
  workdir = store.Workdir(root)
  for strategy in tuple(STRATEGIES):
    ids = study.selected_ids(workdir, strategy, 0)
    assert len(set(ids)) == 8, strategy
  for strategy in ('random', 'facility_location'):
    path = workdir.run(f'{strategy}-k8-seed0').evaluation('heldout')
    evaluation = store.read_json(path)
    assert 0 < evaluation['metrics']['loss']['value'] < 20
