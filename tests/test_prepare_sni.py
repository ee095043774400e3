"""The real study's pool, from files in the data set's own form."""

import json

from places import REPOSITORY, run_python

SCRIPT = REPOSITORY / 'scripts' / 'prepare_sni.py'


def _tasks(folder):
  """Three tasks of 30 instances; one is long, one quotes hate speech."""
  folder.mkdir()
  for name, category, factor in (
    ('task1_short', 'Question Answering', 1),
    ('task2_long', 'Summarization', 200),
    ('task3_hate', 'Toxic Language Detection', 1),
  ):
    (folder / f'{name}.json').write_text(
      json.dumps(
        {
          'Definition': [f'Do {name}.'],
          'Categories': [category],
          'Instances': [
            {
              'id': f'{name}-{i}',
              'input': f'x{i} ' * (factor if i % 3 else 1),
              'output': [f'answer {i}', 'another'],
            }
            for i in range(30)
          ],
        }
      )
    )
  return folder


def _run(*arguments):
  return run_python(SCRIPT, *map(str, arguments))


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_pool_and_a_held_out_set_of_short_prompts(tmp_path):
  tasks, made = _tasks(tmp_path / 'tasks'), tmp_path / 'made'
  result = _run(
    f'--pool={tasks}', f'--heldout={tasks}', f'--folder={made}', '--per_task=2'
  )
  assert result.returncode == 0, result.stderr
  pool, heldout = _rows(made / 'pool.jsonl'), _rows(made / 'heldout.jsonl')
  assert len(pool) == 30 + 10
  assert sorted(row['task'] for row in heldout) == [
    *('task1_short', 'task1_short', 'task2_long', 'task2_long')
  ]
  by_id = {row['id']: row for row in pool}
  assert by_id['sni:task1_short-7'] == {
    'id': 'sni:task1_short-7',
    'task': 'task1_short',
    'category': 'Question Answering',
    'prompt': 'Do task1_short.\n\nx7 ',
    'response': 'answer 7',
  }
  # Not in the data set's order; a smaller pool is the start of a larger one.
  assert [row['id'] for row in pool] != sorted(by_id)
  fewer = tmp_path / 'fewer'
  _run(
    *(f'--pool={tasks}', f'--heldout={tasks}', f'--folder={fewer}'),
    '--num_prompts=7',
  )
  assert _rows(fewer / 'pool.jsonl') == pool[:7]


def test_the_listed_instances_in_their_order(tmp_path):
  tasks, made = _tasks(tmp_path / 'tasks'), tmp_path / 'made'
  ids = tmp_path / 'ids.csv'
  ids.write_text(
    'split,id\npool,sni:task2_long-1\npool,sni:task1_short-0\n'
    'heldout,sni:task1_short-3\n'
  )
  where = f'--pool={tasks}', f'--heldout={tasks}', f'--folder={made}'
  assert _run(*where, f'--ids={ids}').returncode == 0
  assert [row['id'] for row in _rows(made / 'pool.jsonl')] == [
    *('sni:task2_long-1', 'sni:task1_short-0')
  ]
  assert [row['id'] for row in _rows(made / 'heldout.jsonl')] == [
    'sni:task1_short-3'
  ]
  ids.write_text(ids.read_text() + 'heldout,sni:task9-1\n')
  result = _run(*where, f'--ids={ids}')
  assert result.returncode
  assert '--heldout lacks 1 of 2 listed instances' in (
    result.stdout + result.stderr
  )
