"""Which columns of a file have which role."""

import pytest

from edsft_jax import errors
from edsft_jax.pool import columns


def find(*names, **named):
  return columns.find('FILE', names, columns.Named(**named))


@pytest.mark.parametrize(
  ('names', 'prompts', 'contexts', 'responses', 'task'),
  [
    (('prompt', 'response'), ('prompt',), (), ('response',), None),
    (('Prompt', 'Completion'), ('Prompt',), (), ('Completion',), None),
    (
      ('input', 'output', 'instruction', 'category'),
      ('instruction',),
      ('input',),
      ('output',),
      'category',
    ),
    (
      ('question', 'context', 'choices', 'answer', 'task', 'category'),
      ('question',),
      ('context', 'choices'),
      ('answer',),
      'task',
    ),
    (('id', 'input', 'target', 'task'), ('input',), (), ('target',), 'task'),
    (('inputs', 'targets'), ('inputs',), (), ('targets',), None),
    (
      ('definition', 'inputs', 'targets'),
      ('definition',),
      ('inputs',),
      ('targets',),
      None,
    ),
    (('messages', 'prompt'), ('prompt', 'messages'), (), (), None),
    (('conversations', 'source'), ('conversations',), (), (), None),
    (
      ('answer', 'response', 'prompt'),
      ('prompt',),
      (),
      ('response', 'answer'),
      None,
    ),
    (('text', 'instruction'), ('instruction',), (), (), None),
    (('text', 'source'), ('text',), (), (), None),
  ],
)
def test_usual_columns(names, prompts, contexts, responses, task):
  found = find(*names)
  assert found.prompts == prompts
  assert found.contexts == contexts
  assert found.responses == responses
  assert found.task == task
  assert not found.task_named


def test_system_and_history():
  found = find('history', 'instruction', 'system', 'input', 'output')
  assert found.systems == ('system', 'history')


def test_named_columns_win():
  found = find(
    'prompt', 'p', 'r', 't', 'key', 'task', 'id', 'response', 'c', 's',
    prompt='p', response='r', task='t', id='key', context='c', system='s',
  )  # fmt: skip
  assert found == columns.Columns(
    prompts=('p',),
    contexts=('c',),
    systems=('s',),
    responses=('r',),
    task='t',
    task_named=True,
    id='key',
  )


@pytest.mark.parametrize(
  ('named', 'names'),
  [
    ('instruction', ('id', 'instruction', 'input', 'output')),
    ('question', ('question', 'context', 'choices', 'answer')),
    ('prompt', ('instruction', 'prompt', 'input', 'messages')),
    ('input', ('input', 'target')),
  ],
)
def test_naming_the_detected_column_changes_nothing(named, names):
  assert find(*names, prompt=named) == find(*names)


def test_none_switches_a_role_off():
  names = ('id', 'task', 'instruction', 'input', 'system', 'output')
  off = dict.fromkeys(('id', 'task', 'context', 'system', 'response'), 'none')
  assert find(*names, **off) == columns.Columns(prompts=('instruction',))
  with pytest.raises(errors.InputError, match='prompt'):
    find(*names, prompt='none')
  with pytest.raises(errors.InputError, match='rename the column'):
    find(*names, 'none', task='none')


UNNAMED = ('', 'Unnamed: 0', 'Unnamed: 3_level_1', '__index_level_0__')


@pytest.mark.parametrize('name', UNNAMED)
def test_an_unnamed_column_has_no_role(name):
  found = find(name, 'instruction', 'output')
  assert found == columns.Columns(
    prompts=('instruction',), responses=('output',), unnamed=1
  )
  assert name not in found.used


@pytest.mark.parametrize(
  'role', ['prompt', 'context', 'system', 'response', 'task', 'id']
)
def test_a_named_column_that_does_not_exist(role):
  with pytest.raises(errors.InputError, match='columns prompt, response') as e:
    find('prompt', 'response', **{role: 'nope'})
  assert f"pool.{role}_column='nope'" in str(e.value)


def test_columns_that_make_no_sense():
  with pytest.raises(
    errors.InputError, match=r'pool\.prompt_column to .* columns: a, b'
  ):
    find('a', 'b', '')
  with pytest.raises(errors.InputError, match='is also the column of'):
    find('prompt', 'x', response='x', task='x')
  assert find('text', 'x', prompt='text').responses == ()
  for role in ('prompt', 'task', 'context', 'system'):
    with pytest.raises(
      errors.InputError, match='has the name of an answer column'
    ):
      find('prompt', 'Output', **{role: 'Output'})


def test_a_heldout_file_may_lack_named_columns():
  named = columns.Named(prompt='p', task='t', id='none')
  found = columns.find(
    'FILE', ['question', 'answer', 't', 'id'], named, optional=True
  )
  assert (found.prompts, found.task, found.id) == (('question',), 't', None)
