"""Prepared TFDS datasets give the pool of the file they were made from."""

import json
import os
import subprocess
import sys

import numpy as np
from places import REPOSITORY, script_module
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from configs import default
from edsft_jax import errors, pool, store
from edsft_jax.pool import sources, tfds_dataset

TURNS = [{'role': 'user', 'content': 'Hi?'}]
BOT = {'role': 'assistant', 'content': 'Ho.'}
ROWS = [
  {'id': f'i{k}', 'level': k, 'prompt': f'Grüße\n{k}?', 'response': f'r{k}'}
  for k in range(5)
]


@pytest.fixture(scope='module')
def script():
  return script_module('make_tfds_pool')


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  path = tmp_path / 'tfds'
  monkeypatch.setenv('TFDS_DATA_DIR', str(path))
  return path


@pytest.fixture
def prepare(script, data_dir, tmp_path):
  def prepare(rows, name='mine', version='1.0.0'):
    file = tmp_path / 'p.jsonl'
    file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    script.prepare(file, name, str(data_dir), version, 'train')
    return file

  return prepare


TEXT = tfds.features.Text()
FEATURES = {
  'question': TEXT,
  'category': tfds.features.ClassLabel(names=['sums', 'facts']),
  'answers': tfds.features.Sequence(TEXT),
  'turns': tfds.features.Dataset({'role': TEXT}),
  'level': np.int32,
  'pixels': tfds.features.Tensor(shape=(2, 2), dtype=np.uint8),
  'meta': {'url': TEXT},
}


class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A dataset with configs, and with much that is not a prompt."""

  # TFDS takes a package that it does not install to look up a module's folder
  # by a dotted name.
  __module__ = 'other'
  name = 'other'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = tuple(
    tfds.core.BuilderConfig(name=name) for name in ('de', 'en-GB')
  )

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(FEATURES),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(6),
      'test': self._generate_examples(2),
    }

  def _generate_examples(self, n):
    for k in range(n):
      yield (
        k,
        {
          'question': b'\xff\xfe' if k == 1 else f'{self.name} {k}?',
          'category': k % 2 if k else -1,
          'answers': [f'first {k}', 'second'] if k else [],
          'turns': [{'role': 'x'}],
          'level': k,
          'pixels': np.zeros((2, 2), np.uint8),
          'meta': {'url': 'x'},
        },
      )


@pytest.fixture
def other(data_dir):
  builder = Other(data_dir=data_dir, config='en-GB')
  builder.download_and_prepare(file_format='array_record')
  return builder.data_path


def read(path, limit=0):
  return [row.values for row in tfds_dataset.Split(path).rows(limit)]


def run(folder, path, **options):
  config = default.get_config()
  config.pool.update({'path': str(path), 'heldout_fraction': 0.0, **options})
  workdir = store.Workdir(folder)
  pool.check(config, workdir, frozenset())
  pool.run(config, workdir)
  return workdir


def test_a_file_prepared_by_the_script_is_the_same_pool(tmp_path):
  """By the commands, in fresh interpreters, without TensorFlow."""
  rows = [*ROWS, {'id': 'x', 'prompt': 'a\0b'}]
  file = tmp_path / 'p.jsonl'
  file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  data_dir = tmp_path / 'tfds'

  def start(*command, **env):
    return subprocess.run(
      [sys.executable, *command],
      cwd=REPOSITORY,
      env={**os.environ, 'PYTHONPATH': '.', **env},
      capture_output=True,
      text=True,
      check=True,
    ).stdout

  script = 'scripts/make_tfds_pool.py'
  out = start(script, str(file), '--name=mine', f'--data_dir={data_dir}')
  assert '6 rows in' in out
  assert '--config.pool.path=tfds:mine:1.0.0/train' in out
  code = (
    'import pathlib, sys\n'
    'from configs import default\n'
    'from edsft_jax import store, pool\n'
    'config = default.get_config()\n'
    "config.pool.path = 'tfds:mine/train'\n"
    'config.pool.heldout_fraction = 0.0\n'
    'pool.run(config, store.Workdir(pathlib.Path(sys.argv[1])))\n'
    "print([m for m in ('tensorflow', 'torch') if m in sys.modules])\n"
  )
  out = start('-c', code, str(tmp_path / 'w'), TFDS_DATA_DIR=str(data_dir))
  assert out.splitlines()[-1] == '[]'

  made = store.Workdir(tmp_path / 'w')
  direct = run(tmp_path / 'direct', file)
  for name in ('pool', 'pool_responses', 'quarantine'):
    path = getattr(made, name)
    assert path.read_bytes() == getattr(direct, name).read_bytes(), name
  assert len(store.read_prompts(made.pool)) == 5


MIXED = [
  {'messages': [*TURNS, BOT], 'level': 2, 'ok': True, 'extra': ''},
  {'messages': [*TURNS, BOT, *TURNS], 'big': 2**70},
  {'messages': None, 'level': 3, 'share': 0.5},
  {'messages': [], 'level': 3, 'share': 0.25, 'big': 7},
  {'messages': [{'role': 'user', 'content': 'a\0b'}], 'notes': {'a': 1}},
]


def test_conversations_gaps_and_mixed_columns(prepare, tmp_path):
  file = prepare(MIXED)
  direct, made = (
    pq.read_table(run(tmp_path / name, path).pool)
    for name, path in (('a', file), ('b', 'tfds:mine/train'))
  )
  assert direct.num_rows == 2
  assert made.select(direct.column_names).equals(direct)
  assert made.num_columns == direct.num_columns


def test_the_files_order_and_numbers(prepare):
  prepare([{'prompt': f'p{k}'} for k in range(3000)])
  split = tfds_dataset.Split('tfds:mine/train')
  rows = list(split.rows())
  assert [row.values['prompt'] for row in rows] == [
    f'p{k}' for k in range(3000)
  ]
  assert [row.line for row in rows] == list(range(1, 3001))
  assert len(list(split.rows(limit=1500))) == 1500
  assert read('tfds:mine/train[7:9]') == [{'prompt': 'p7'}, {'prompt': 'p8'}]
  assert read('tfds:mine/train[:0]') == []


def test_a_dataset_with_configs(other, tmp_path):
  workdir = run(tmp_path / 'w', 'tfds:other/en-GB:1.0.0/train')
  prompts = store.read_prompts(workdir.pool)
  assert prompts.prompts == [f'other {k}?' for k in (0, 2, 3, 4, 5)]
  assert prompts.tasks == ['none', 'sums', 'facts', 'sums', 'facts']
  answers = store.read_responses(workdir.pool_responses)
  assert list(answers.values()) == [f'first {k}' for k in (2, 3, 4, 5)]
  columns = pq.read_schema(workdir.pool).names
  assert columns == ['id', 'prompt', 'task', 'level']
  (refused,) = store.read_jsonl(workdir.quarantine)
  assert (refused['line'], refused['reason']) == (2, 'the prompt is not text')
  with pytest.raises(errors.InputError, match='line 2: the prompt is not'):
    run(tmp_path / 'strict', 'tfds:other/en-GB/train', strict=True)


def test_heldout_path(other, prepare, tmp_path):
  prepare(ROWS)
  workdir = run(
    tmp_path / 'w', 'tfds:mine/train', heldout_path='tfds:other/en-GB/train'
  )
  heldout = store.read_prompts(workdir.heldout)
  assert heldout.prompts == [f'other {k}?' for k in (2, 3, 4, 5)]


def test_the_newest_version(prepare):
  for version in ('1.2.0', '1.10.0', '1.9.0'):
    prepare([{'prompt': version}], version=version)
  assert read('tfds:mine/train') == [{'prompt': '1.10.0'}]
  assert read('tfds:mine:1.2.0/train') == [{'prompt': '1.2.0'}]


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('tfds:', 'write tfds:NAME/SPLIT'),
    ('tfds:mine', 'write tfds:NAME/SPLIT'),
    ('tfds:../tfds/mine/train', 'write tfds:NAME/SPLIT'),
    ('tfds:other/../train', 'write tfds:NAME/SPLIT'),
    ('tfds:none/train', r'\(it has mine, other\).*TFDS_DATA_DIR.*prepare'),
    ('tfds:mine/test', r'one of the splits train \(5\)'),
    ('tfds:mine/train[:x]', 'Error parsing split'),
    ('tfds:mine/train[7:9]', '5 examples'),
    ('tfds:mine/de/train', r'no config de \(it has none\)'),
    ('tfds:mine:2.0.0/train', r'no version 2\.0\.0 \(it has 1\.0\.0\)'),
    ('tfds:other/train', 'has the configs en-GB: name one'),
    ('tfds:other/de/train', r'no config de \(it has en-GB\)'),
    ('tfds:mine/train[:0]', 'has no rows'),
  ],
)
def test_what_is_not_there(prepare, other, tmp_path, path, message):
  prepare(ROWS)
  for options in ({'path': path}, {'path': 'demo', 'heldout_path': path}):
    if path.endswith('[:0]') and 'heldout_path' in options:
      continue  # Found when it is read.
    with pytest.raises(errors.InputError, match=message) as e:
      run(tmp_path / 'w', **options)
    assert path in str(e.value)
    assert '\n' not in str(e.value)
    assert not (tmp_path / 'w').exists()


def test_nothing_prepared_at_all(data_dir):
  with pytest.raises(errors.InputError, match=r'\(it has none\)'):
    read('tfds:mine/train')


def test_prepared_for_tensorflow_alone(prepare, data_dir):
  prepare(ROWS)
  path = data_dir / 'mine' / '1.0.0' / 'dataset_info.json'
  path.write_text(path.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(errors.InputError, match='prepared as tfrecord, not as'):
    read('tfds:mine/train')


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('mine-train.array_record-00000-of-00001', None),
    ('mine-train.array_record-00000-of-00001', lambda b: b[: len(b) // 2]),
    ('mine-train.array_record-00000-of-00001', lambda b: b''),
    ('dataset_info.json', None),
    ('dataset_info.json', lambda b: b[:20]),
    ('features.json', None),
    ('features.json', lambda b: b[:20]),
  ],
)
def test_damage(prepare, data_dir, name, change):
  prepare([{'prompt': f'{k} {os.urandom(50).hex()}'} for k in range(2000)])
  path = data_dir / 'mine' / '1.0.0' / name
  content = path.read_bytes()
  path.unlink() if change is None else path.write_bytes(change(content))
  with pytest.raises(errors.InputError, match='damaged: prepare it') as e:
    read('tfds:mine/train')
  assert '\n' not in str(e.value)


def test_a_changed_dataset_is_refused(prepare, tmp_path):
  prepare(ROWS)
  run(tmp_path / 'w', 'tfds:mine/train')
  # The same rows, prepared again: TFDS writes other bytes.
  prepare(ROWS, name='copy')
  run(tmp_path / 'w', 'tfds:copy/train[:100%]')
  prepare([*ROWS[:-1], {**ROWS[-1], 'response': 'other'}], version='1.0.1')
  for path in ('tfds:mine/train', 'tfds:copy/train[:3]'):
    with pytest.raises(errors.InputError, match=r'file of pool\.path'):
      run(tmp_path / 'w', path)


def test_big_datasets_show_a_bar(prepare, capsys):
  prepare(ROWS)
  split = tfds_dataset.Split('tfds:mine/train')
  capsys.readouterr()
  for large, shown in ((len(ROWS) + 1, False), (3, True)):
    assert len(list(sources.Dataset(split, large).rows(0))) == len(ROWS)
    assert ('5/5' in capsys.readouterr().err) == shown


# What the script refuses.


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'no rows'),
    ('{"prompt": "a"}\n{"prompt', 'line 2: broken JSON'),
    ('\n{"prompt": "a\\ud800"}', "line 2: 'prompt' has half of a surrogate"),
    (
      '{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}',
      "column 'prompt' holds text and turns",
    ),
  ],
)
def test_files_that_cannot_be_prepared(
  script, data_dir, tmp_path, text, message
):
  file = tmp_path / 'p.jsonl'
  file.write_text(text)
  with pytest.raises(errors.InputError, match=message):
    script.prepare(file, 'mine', str(data_dir), '1.0.0', 'train')
  assert not data_dir.exists()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': '../mine'}, '--name=../mine'),
    ({'version': '2'}, '--version=2'),
    ({}, 'already exists'),
  ],
)
def test_datasets_that_cannot_be_written(prepare, options, message):
  prepare(ROWS)
  with pytest.raises(errors.InputError, match=message):
    prepare(ROWS, **options)
