"""Orders are extended when the pool grows and when picks are rejected."""

import json

import numpy as np
import pyarrow as pa
import pytest

from configs import default
from edsft_jax import errors, selection, store, study
from edsft_jax.strategies import orders, stage
from edsft_jax.strategies.registry import LENGTH_MATCHED, STRATEGIES

OLD, ALL, BUDGET = 40, 60, 12
WIDTH = 0.3
NAMES = tuple(STRATEGIES)
COLUMNS = (
  *(row.column for row in STRATEGIES.values() if row.column),
  'mean_confidence',
)


def _features():
  rng = np.random.default_rng(3)
  features = rng.normal(size=(ALL, 6)).astype(np.float32)
  # The new prompts are far away: they would change the scale of the kernel.
  features[OLD:] += 5
  return features


def _tasks():
  return [f't{i % 4}' for i in range(ALL)]


def _write(workdir, count, earlier=()):
  """A scored pool of the first `count` prompts."""
  ids = [f'p{i}' for i in range(count)]
  prompts = [f'prompt {i}' for i in range(count)]
  table = {'id': ids, 'prompt': prompts, 'task': _tasks()[:count]}
  store.write_parquet(workdir.pool, pa.table(table))
  rng = np.random.default_rng(4)
  scores = {
    column: rng.uniform(0.1, 0.9, size=ALL).astype(np.float32)[:count]
    for column in COLUMNS
  }
  store.write_parquet(
    workdir.scores, pa.table({'id': ids, 'generation': ids, **scores})
  )
  store.write_npy(workdir.features, _features()[:count])
  manifest = store.Manifest(workdir)
  manifest.restart('pool', {})
  manifest.finish('pool', {'rounds': list(earlier)})


def _grow(workdir):
  old = {'prompts': OLD, 'hash': store.hash_file(workdir.pool)}
  _write(workdir, ALL, [old])


def _select(workdir, *names, budget=BUDGET, seeds=(0, 1), **kernel):
  config = default.get_config()
  if LENGTH_MATCHED in names:  # It needs what it is matched to.
    names = tuple(dict.fromkeys([*names, 'facility_location']))
  config.selection.strategies = names
  config.selection.kernel.update({'width': WIDTH, **kernel})
  config.study.budgets = (budget,)
  config.study.seeds = seeds
  stage.run(config, workdir)


def _ask(workdir, ids):
  store.write_json(
    workdir.asked, {'versions': [{'number': 1, 'ids': ids}], 'hashes': []}
  )


def _reject(workdir, *ids):
  store.write_jsonl(workdir.rejected, [{'id': i, 'reason': ''} for i in ids])


def _rows(workdir, name, seed=0):
  return store.read_jsonl(workdir.selection(name, seed))


def _ids(workdir, name, seed=0):
  return [row['id'] for row in _rows(workdir, name, seed)]


@pytest.fixture
def workdir(tmp_path):
  result = store.Workdir(tmp_path)
  _write(result, OLD)
  return result


@pytest.mark.parametrize('name', NAMES)
def test_what_is_answered_stays_and_the_rest_comes_from_all(workdir, name):
  _select(workdir, name)
  before = {seed: _rows(workdir, name, seed) for seed in (0, 1)}
  answers = {f'p{i}': 'yes' for i in range(OLD)}
  store.write_parquet(workdir.pool_responses, store.response_table(answers))
  _grow(workdir)
  _select(workdir, name, budget=30)
  for seed in (0, 1):
    rows = _rows(workdir, name, seed)
    assert rows[:BUDGET] == before[seed]
    assert [row['round'] for row in rows] == [0] * BUDGET + [1] * 18
    assert [row['rank'] for row in rows] == list(range(30))
    assert len({row['id'] for row in rows}) == 30
    # A third of the pool is new, and far from the rest.
    assert any(int(row['id'][1:]) >= OLD for row in rows)


def test_new_picks_are_those_of_the_library(workdir):
  _select(workdir, 'facility_location')
  ids = _ids(workdir, 'facility_location')
  _ask(workdir, ids)
  _grow(workdir)
  _select(workdir, 'facility_location', budget=30)
  features = _features().astype(np.float64)
  old = features[:OLD]
  distances = ((old[:, None] - old[None]) ** 2).sum(-1)
  expected = selection.facility_location(
    _features(),
    18,
    similarity=selection.Rbf(gamma=1 / (WIDTH * distances.mean())),
    initial=[int(i[1:]) for i in ids],
  )
  got = _rows(workdir, 'facility_location')[BUDGET:]
  assert [row['id'] for row in got] == [f'p{i}' for i in expected.indices]
  np.testing.assert_allclose(
    [row['gain'] for row in got], expected.gains, rtol=1e-4
  )


def test_the_suggested_width_and_the_scale_stay(workdir):
  _select(workdir, 'facility_location', width=0.0)
  curves = workdir.gains_curves.read_bytes()
  _ask(workdir, _ids(workdir, 'facility_location'))
  _grow(workdir)
  _select(workdir, 'facility_location', budget=20, width=0.0)
  assert workdir.gains_curves.read_bytes() == curves
  record = store.read_json(workdir.selection_record('facility_location'))
  assert record['num_scale_prompts'] == OLD
  assert 'gamma' in record['similarity']
  _select(workdir, 'log_determinant', budget=20, width=0.0)
  assert workdir.gains_curves.read_bytes() == curves


def test_what_is_neither_asked_for_nor_answered_is_chosen_again(workdir):
  _select(workdir, 'random')
  before = _ids(workdir, 'random')
  kept = [before[1], before[4], before[7]]
  _ask(workdir, kept[:2])
  store.write_parquet(workdir.responses, store.response_table({kept[2]: 'a'}))
  _grow(workdir)
  _select(workdir, 'random')
  rows = _rows(workdir, 'random')
  assert [row['id'] for row in rows if row['round'] == 0] == kept
  assert [row['id'] for row in rows[:3]] == kept
  assert len(rows) == BUDGET


def test_nothing_left_to_choose(workdir):
  _select(workdir, 'random', 'facility_location')
  before = [_rows(workdir, n) for n in ('random', 'facility_location')]
  _ask(workdir, [f'p{i}' for i in range(OLD)])
  _grow(workdir)
  _select(workdir, 'random', 'facility_location')
  after = [_rows(workdir, n) for n in ('random', 'facility_location')]
  assert after == before


def test_a_larger_budget_in_the_same_round(workdir):
  _select(workdir, *NAMES)
  # Only what the first strategy chose is asked for.
  _ask(workdir, _ids(workdir, NAMES[0]))
  _grow(workdir)
  _select(workdir, *NAMES, budget=20)
  before = {name: _rows(workdir, name) for name in NAMES}
  # What is asked for only matters when the pool has just grown.
  _ask(workdir, [])
  _select(workdir, *NAMES, budget=30)
  for name in NAMES:
    rows = _rows(workdir, name)
    assert rows[:20] == before[name]
    assert len(rows) == 30


def test_a_second_run_changes_nothing(workdir, capsys):
  _select(workdir, 'random', 'k_center')
  _grow(workdir)
  _select(workdir, 'random', 'k_center')
  before = _rows(workdir, 'random')
  _select(workdir, 'random', 'k_center')
  assert 'already done' in capsys.readouterr().out
  assert _rows(workdir, 'random') == before


def test_a_strategy_added_later_chooses_from_all(workdir):
  _select(workdir, 'random')
  _ask(workdir, _ids(workdir, 'random'))
  _grow(workdir)
  _select(workdir, 'random', 'k_center')
  assert {row['round'] for row in _rows(workdir, 'k_center')} == {1}
  expected = selection.k_center(_features(), BUDGET)
  assert _ids(workdir, 'k_center') == [f'p{i}' for i in expected.indices]


def test_interrupted_before_the_record(workdir, monkeypatch):
  _select(workdir, 'random')
  _ask(workdir, _ids(workdir, 'random')[:5])
  _grow(workdir)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(store, 'write_json', killed)
    with pytest.raises(KeyboardInterrupt):
      _select(workdir, 'random', budget=20)
  before = [_rows(workdir, 'random', seed) for seed in (0, 1)]
  _select(workdir, 'random', budget=20)
  assert [_rows(workdir, 'random', seed) for seed in (0, 1)] == before
  assert workdir.selection_record('random').exists()


def test_other_options_are_still_refused(workdir):
  _select(workdir, 'facility_location')
  _grow(workdir)
  with pytest.raises(errors.InputError, match=r'kernel\.width'):
    _select(workdir, 'facility_location', width=1.0)


@pytest.mark.parametrize('name', NAMES)
def test_rejected_picks_are_replaced(workdir, name):
  _select(workdir, name)
  before = _ids(workdir, name)
  _reject(workdir, before[2], before[11], 'p39')
  _select(workdir, name)
  rows = _rows(workdir, name)
  assert [row['id'] for row in rows[:BUDGET]] == before
  rejected = {row['id'] for row in rows if row['status'] == 'rejected'}
  assert {before[2], before[11]} <= rejected
  assert len(rows) == BUDGET + len(rejected)
  chosen = study.selected_ids(workdir, name, 0)
  assert len(chosen) == BUDGET
  assert not rejected & {*chosen}
  assert {row['round'] for row in rows} == {0}


def test_a_rejection_alone_settles_a_pick(workdir):
  """Whatever asked for it is not in this workdir."""
  _select(workdir, 'random')
  before = _ids(workdir, 'random')
  _reject(workdir, before[3])
  _grow(workdir)
  _select(workdir, 'random')
  rows = _rows(workdir, 'random')
  assert [row['id'] for row in rows if row['round'] == 0] == [before[3]]
  assert len(study.selected_ids(workdir, 'random', 0)) == BUDGET


def test_a_rejection_that_is_taken_back_changes_no_order(workdir):
  _select(workdir, 'random')
  _reject(workdir, _ids(workdir, 'random')[0])
  _select(workdir, 'random')
  longer = _ids(workdir, 'random')
  workdir.rejected.unlink()
  _select(workdir, 'random', seeds=(0, 1, 2))
  assert _ids(workdir, 'random') == longer
  assert len(longer) == BUDGET + 1


def test_too_many_rejected(workdir):
  _select(workdir, 'random')
  before = _rows(workdir, 'random')
  _reject(workdir, *(f'p{i}' for i in range(OLD - BUDGET + 1)))
  with pytest.raises(errors.InputError, match='rejected the pool has 11'):
    _select(workdir, 'random')
  assert _rows(workdir, 'random') == before


def test_a_rejected_replacement_is_replaced_too(workdir):
  _select(workdir, 'random')
  first = _ids(workdir, 'random')
  _reject(workdir, first[0])
  _select(workdir, 'random')
  second = _ids(workdir, 'random')
  _reject(workdir, first[0], second[-1])
  _select(workdir, 'random')
  rows = _rows(workdir, 'random')
  assert [row['id'] for row in rows[: BUDGET + 1]] == second
  assert [row['status'] for row in rows].count('chosen') == BUDGET
  assert len(study.selected_ids(workdir, 'random', 0)) == BUDGET


def test_rejected_picks_before_and_after_the_pool_grew(workdir):
  _select(workdir, 'k_center')
  first = _ids(workdir, 'k_center')
  _ask(workdir, first)
  _reject(workdir, first[3])
  _grow(workdir)
  _select(workdir, 'k_center')
  rows = _rows(workdir, 'k_center')
  assert [row['id'] for row in rows[:BUDGET]] == first
  assert [row['status'] for row in rows].count('rejected') == 1
  assert [row['round'] for row in rows] == [0] * BUDGET + [1]
  _reject(workdir, first[3], rows[-1]['id'])
  _select(workdir, 'k_center')
  again = _rows(workdir, 'k_center')
  assert [row['round'] for row in again] == [0] * BUDGET + [1, 1]
  assert len(study.selected_ids(workdir, 'k_center', 0)) == BUDGET


def test_bounds_are_only_given_for_orders_from_the_whole_pool(workdir):
  def bounds():
    path = workdir.selection_record('facility_location')
    return json.loads(path.read_text())['bounds']

  _select(workdir, 'facility_location')
  assert [bound['budget'] for bound in bounds()] == [BUDGET]
  _reject(workdir, _ids(workdir, 'facility_location')[0])
  _select(workdir, 'facility_location')
  assert bounds() == []


def test_an_older_file_has_neither_round_nor_status(workdir):
  _select(workdir, 'random')
  path = workdir.selection('random', 0)
  old = ('rank', 'id', 'gain', 'score', 'task')
  rows = [{name: row[name] for name in old} for row in _rows(workdir, 'random')]
  store.write_jsonl(path, rows)
  record = store.read_json(workdir.selection_record('random'))
  del record['num_scale_prompts']
  store.write_json(workdir.selection_record('random'), record)
  _ask(workdir, [row['id'] for row in rows])
  _grow(workdir)
  _select(workdir, 'random', budget=15)
  got = _rows(workdir, 'random')
  assert [row['id'] for row in got[:BUDGET]] == [row['id'] for row in rows]
  assert [row['round'] for row in got] == [0] * BUDGET + [1] * 3
  assert orders.settled_ids(workdir) == {row['id'] for row in rows}


def test_a_status_follows_where_no_pick_is_missing(workdir):
  """The order is long enough for the budget, or a rejection is taken back."""
  _select(workdir, 'random', 'k_center', budget=20)
  before = {n: _ids(workdir, n) for n in ('random', 'k_center')}
  second = before['random'][1]
  _reject(workdir, second)
  _select(workdir, 'random', 'k_center')
  assert _ids(workdir, 'random') == before['random']
  assert [
    row['id'] for row in _rows(workdir, 'random') if row['status'] == 'rejected'
  ] == [second]
  _reject(workdir)
  _select(workdir, 'random', 'k_center')
  assert {row['status'] for row in _rows(workdir, 'random')} == {'chosen'}
  assert {n: _ids(workdir, n) for n in before} == before
