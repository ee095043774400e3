"""After pool.append, only the new prompts are scored."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import default
from edsft_jax import errors, pool, scoring, store
from edsft_jax.scoring import encoding, loading, shards

GOLDEN = pathlib.Path(__file__).parents[1] / 'models' / 'goldens' / 'tied_v4'
OLD, ALL = 11, 21


def _rows(stop):
  rng = np.random.default_rng(7)
  return [
    {
      'id': f'p{k}',
      'prompt': ' '.join(f'w{i}' for i in rng.integers(3, 60, size=length)),
      'task': f't{k % 2}',
    }
    for k, length in enumerate(rng.integers(2, 15, size=stop))
  ]


def _config(path, **options):
  config = default.get_config()
  config.model.path = str(GOLDEN)
  config.pool.update(path=str(path), append=True)
  config.scoring.update(
    {
      'max_new_tokens': 6,
      'shard_prompts': 4,
      'batch_tokens': 256,
      **options,
    }
  )
  return config


def _run(folder, count, score=True, **options):
  folder.mkdir(exist_ok=True)
  path = folder / 'pool.jsonl'
  rows = _rows(ALL)[:count]
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  workdir = store.Workdir(folder / 'work')
  config = _config(path, **options)
  pool.run(config, workdir)
  if score:
    scoring.run(config, workdir)
  return workdir


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """All prompts scored together."""
  return _run(tmp_path_factory.mktemp('whole'), ALL)


# Only features: less to compile.
FEATURES = {'generate': False, 'prompt_scores': False}


def _mark_features(workdir):
  """Replaces what was computed by other numbers, to recognise it by."""
  np.save(workdir.features, np.full_like(np.load(workdir.features), 9.0))


def _compare_features(workdir, whole, first):
  """Rows from `first` are those of a pool that was scored at once."""
  ids = [pq.read_table(w.scores)['id'].to_pylist() for w in (workdir, whole)]
  assert ids[0] == ids[1]
  features = [np.load(w.features)[first:] for w in (workdir, whole)]
  np.testing.assert_allclose(*features, atol=1e-5)


def _mark(workdir):
  """Replaces what was scored by other numbers, to recognise it by."""
  table = pq.read_table(workdir.scores)
  marks = pa.array(np.full(len(table), 9.0, np.float32))
  at = table.column_names.index('min_margin')
  pq.write_table(table.set_column(at, 'min_margin', marks), workdir.scores)
  features = np.load(workdir.features)
  np.save(workdir.features, np.full_like(features, 9.0))


def _compare(workdir, whole, first):
  """Rows from `first` are those of a pool that was scored at once."""
  got, expected = pq.read_table(workdir.scores), pq.read_table(whole.scores)
  assert got['id'].equals(expected['id'])
  assert got.column_names == expected.column_names
  assert got['generation'][first:].equals(expected['generation'][first:])
  for name in ('min_margin', 'mean_entropy', 'prompt_min_margin'):
    np.testing.assert_allclose(
      got[name].to_numpy()[first:],
      expected[name].to_numpy()[first:],
      atol=1e-5,
    )
  np.testing.assert_allclose(
    np.load(workdir.features)[first:],
    np.load(whole.features)[first:],
    atol=1e-5,
  )


def test_only_new_prompts_are_scored(tmp_path, whole, capsys):
  workdir = _run(tmp_path, OLD)
  _mark(workdir)
  seconds = store.Manifest(workdir).stages['score'].seconds
  _run(tmp_path, ALL)
  assert store.Manifest(workdir).stages['score'].seconds > seconds
  assert (
    pq.read_table(workdir.scores)['min_margin'].to_numpy()[:OLD] == 9
  ).all()
  assert (np.load(workdir.features)[:OLD] == 9).all()
  _compare(workdir, whole, OLD)
  assert f'{OLD} prompts scored earlier' in capsys.readouterr().out
  assert store.Manifest(workdir).counts('score')['prompts'] == ALL
  assert not workdir.score_shards.exists()


def test_a_pool_may_grow_twice(tmp_path, whole):
  _run(tmp_path, 5, **FEATURES)
  _run(tmp_path, OLD, **FEATURES)
  workdir = _run(tmp_path, ALL, **FEATURES)
  _compare_features(workdir, whole, 0)


def test_a_pool_may_grow_twice_between_scorings(tmp_path, whole):
  workdir = _run(tmp_path, 5, **FEATURES)
  _mark_features(workdir)
  _run(tmp_path, OLD, score=False, **FEATURES)
  _run(tmp_path, ALL, **FEATURES)
  assert (np.load(workdir.features)[:5] == 9).all()
  _compare_features(workdir, whole, 5)


@pytest.mark.parametrize('where', ['first shard', 'second shard', 'join'])
def test_an_interrupted_run_goes_on(tmp_path, whole, monkeypatch, where):
  workdir = _run(tmp_path, OLD, **FEATURES)
  _mark_features(workdir)
  with monkeypatch.context() as patch:
    if where == 'join':

      def stopped(*_):
        raise KeyboardInterrupt

      patch.setattr(shards, 'join_scores', stopped)
    else:
      left = [1 if where == 'first shard' else 2]
      write = shards.write

      def stop_after(path, *args):
        if not left[0]:
          raise KeyboardInterrupt
        left[0] -= 1
        write(path, *args)

      patch.setattr(shards, 'write', stop_after)
    with pytest.raises(KeyboardInterrupt):
      _run(tmp_path, ALL, **FEATURES)
  scored = []
  write = shards.write

  def counted(path, *args):
    scored.append(path.name)
    write(path, *args)

  monkeypatch.setattr(shards, 'write', counted)
  _run(tmp_path, ALL, **FEATURES)
  names = ['00000', '00001', '00002']
  done = {'first shard': 0, 'second shard': 1, 'join': 3}[where]
  assert scored == names[done:]
  assert (np.load(workdir.features)[:OLD] == 9).all()
  _compare_features(workdir, whole, OLD)


def test_other_options_do_not_mix_with_earlier_scores(tmp_path):
  _run(tmp_path, OLD, **FEATURES)
  with pytest.raises(errors.InputError, match=r'scoring\.max_new_tokens'):
    _run(tmp_path, ALL, max_new_tokens=5, **FEATURES)


def test_options_may_not_change_while_new_prompts_are_scored(
  tmp_path, monkeypatch
):
  _run(tmp_path, OLD, **FEATURES)
  with monkeypatch.context() as patch:
    patch.setattr(loading, 'EncodedPool', None)
    with pytest.raises(AttributeError):
      _run(tmp_path, ALL, **FEATURES)
  with pytest.raises(errors.InputError, match=r'scoring\.max_new_tokens'):
    _run(tmp_path, ALL, max_new_tokens=5, **FEATURES)


def test_the_sample_of_each_task_stays(tmp_path):
  options = {'confidence_prompts_per_task': 3, **FEATURES}
  workdir = _run(tmp_path, 4, **options)
  before = pq.read_table(workdir.scores)['confidence_sample'].to_pylist()
  assert before == [True] * 4
  _run(tmp_path, ALL, **options)
  table = pq.read_table(workdir.scores)
  sample = table['confidence_sample'].to_numpy()
  assert sample[:4].all()
  # Each of the two tasks had two.
  assert [int(sample[t::2].sum()) for t in range(2)] == [3, 3]


def test_a_full_sample_draws_no_new_prompts():
  tasks = ['a', 'b'] * 6
  earlier = np.array([True, True, True, False])
  drawn = encoding.draw(tasks, 2, earlier)
  assert drawn[:4].tolist() == earlier.tolist()
  assert drawn[0::2].sum() == 2
  assert drawn[1::2].sum() == 2
  assert drawn[5::2].sum() == 1
