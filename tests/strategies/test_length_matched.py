"""random_length_matched draws prompts of the lengths of another strategy."""

import numpy as np
import pyarrow as pa
import pytest

from configs import default
from edsft_jax import errors, store, study, verify
from edsft_jax.strategies import stage

OLD, ALL, BUDGET = 300, 400, 40
MATCHED = 'random_length_matched'
LENGTHS = np.random.default_rng(1).permutation(ALL) + 1


def _write(workdir, count=ALL, earlier=()):
  """A scored pool; the score of a prompt is its length."""
  ids = [f'p{i}' for i in range(count)]
  prompts = ['x' * length for length in LENGTHS[:count]]
  store.write_parquet(workdir.pool, pa.table({'id': ids, 'prompt': prompts}))
  scores = {'min_margin': LENGTHS[:count].astype(np.float32)}
  store.write_parquet(
    workdir.scores, pa.table({'id': ids, 'generation': ids, **scores})
  )
  store.write_npy(
    workdir.features,
    np.random.default_rng(2).normal(size=(count, 4)).astype(np.float32),
  )
  manifest = store.Manifest(workdir)
  manifest.restart('pool', {})
  manifest.finish('pool', {'rounds': list(earlier)})


def _config(*names, budget=BUDGET, **options):
  config = default.get_config()
  config.selection.strategies = names
  config.selection.length_matched_to = 'min_margin'
  config.study.budgets = (budget,)
  config.study.seeds = (0, 1)
  config.update_from_flattened_dict(options)
  return config


def _select(workdir, *names, **options):
  config = _config(*(names or (MATCHED, 'min_margin')), **options)
  study.check(config)
  stage.run(config, workdir)
  store.write_json(workdir.config, config.to_dict())
  store.record_checksums(workdir)
  return config


@pytest.fixture
def workdir(tmp_path):
  made = store.Workdir(tmp_path)
  _write(made)
  return made


def _picks(workdir, name=MATCHED, seed=0):
  rows = store.read_jsonl(workdir.selection(name, seed))
  return [int(row['id'][1:]) for row in rows]


def _lengths(workdir, name=MATCHED, seed=0):
  return LENGTHS[_picks(workdir, name, seed)]


def test_every_prefix_has_the_lengths_of_the_other_strategy(workdir):
  """The smallest margins are the shortest prompts."""
  _select(workdir, budget=200)
  other = _lengths(workdir, 'min_margin')
  for seed in (0, 1):
    drawn = _lengths(workdir, seed=seed)
    for m in (20, 50, 100, 200):
      assert abs(drawn[:m].mean() - other[:m].mean()) < 8
      assert drawn[:m].max() <= m + 20
    assert drawn[:100].mean() < LENGTHS.mean() / 3
  assert _picks(workdir, seed=0) != _picks(workdir, seed=1)
  assert (_picks(workdir)[:20]) != _picks(workdir, 'min_margin')[:20]


def test_a_larger_budget_and_a_smaller_one_have_the_same_first_picks(workdir):
  _select(workdir, budget=10)
  first = _picks(workdir)
  _select(workdir)
  assert len(_picks(workdir)) == BUDGET
  assert _picks(workdir)[:10] == first


def test_it_can_be_added_to_a_finished_study(workdir, tmp_path_factory):
  _select(workdir, 'min_margin')
  _select(workdir)
  together = store.Workdir(tmp_path_factory.mktemp('together'))
  _write(together)
  _select(together)
  assert _picks(workdir) == _picks(together)


def test_parts_of_the_pool(workdir):
  _select(workdir, **{'study.pool_fraction': 0.5})
  first, second = (set(_picks(workdir, seed=seed)) for seed in (0, 1))
  assert not first & second
  # The shortest of each half.
  assert _lengths(workdir).max() < 2 * BUDGET + 60


def test_rejected_picks_are_replaced_and_the_others_stay(workdir):
  _select(workdir)
  before = _picks(workdir)
  rejected = [f'p{i}' for i in before[:3]]
  store.write_jsonl(workdir.rejected, [{'id': i} for i in rejected])
  config = _select(workdir)
  after = _picks(workdir)
  assert after[:BUDGET] == before
  assert len(study.selected_ids(workdir, MATCHED, 0)) >= BUDGET
  assert _lengths(workdir).max() <= BUDGET + 30
  verify.run(config, workdir)


def test_a_grown_pool_keeps_what_was_answered(tmp_path):
  workdir = store.Workdir(tmp_path)
  _write(workdir, OLD)
  old = {'prompts': OLD, 'hash': store.hash_file(workdir.pool)}
  _select(workdir)
  before = _picks(workdir)
  settled = before[:15]
  store.write_json(
    workdir.asked,
    {'versions': [{'number': 1, 'ids': [f'p{i}' for i in settled]}]},
  )
  _write(workdir, ALL, [old])
  _select(workdir, budget=80)
  after = _picks(workdir)
  assert after[:15] == settled
  assert len(set(after)) == 80
  assert max(after) >= OLD
  other = _lengths(workdir, 'min_margin')
  assert abs(_lengths(workdir)[15:].mean() - other[15:].mean()) < 10


def test_verify_makes_it_again_and_finds_a_change(workdir, capsys):
  config = _select(workdir)
  verify.run(config, workdir)
  path = workdir.selection(MATCHED, 1)
  store.write_jsonl(path, store.read_jsonl(path)[::-1])
  with pytest.raises(errors.InputError, match='does not match its records'):
    verify.run(config, workdir)
  assert f'{path} has ' in capsys.readouterr().out


def test_another_strategy_to_match_is_refused_in_the_same_workdir(workdir):
  names = (MATCHED, 'min_margin', 'k_center')
  _select(workdir, *names)
  with pytest.raises(errors.InputError, match=r'length_matched_to \(was'):
    _select(workdir, *names, **{'selection.length_matched_to': 'k_center'})


@pytest.mark.parametrize(
  ('other', 'says'),
  [
    ('min_margn', "'min_margn'.*did you mean 'min_margin'"),
    ('facility_location', 'one of selection.strategies'),
    ('random', "'random'.*besides random"),
    (MATCHED, f"'{MATCHED}'.*did you mean"),
  ],
)
def test_a_strategy_that_is_not_in_the_study_is_refused(other, says):
  config = _config('random', MATCHED, 'min_margin')
  config.selection.length_matched_to = other
  with pytest.raises(errors.InputError, match=says):
    study.check(config)
  config.selection.strategies = ('random', 'min_margin')
  study.check(config)
