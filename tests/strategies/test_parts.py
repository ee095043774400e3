"""Each seed chooses from its own part of the pool (study.pool_fraction)."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from configs import default
from edsft_jax import errors, parts, selection, store, study
from edsft_jax.strategies import stage
from edsft_jax.strategies.registry import STRATEGIES

SIZE, BUDGET = 60, 6
COLUMNS = (
  *(row.column for row in STRATEGIES.values() if row.column),
  'mean_confidence',
)


def _features(size):
  return np.random.default_rng(3).normal(size=(size, 6)).astype(np.float32)


def _scores(size):
  rng = np.random.default_rng(4)
  return {c: rng.uniform(0.1, 0.9, 90).astype('f4')[:size] for c in COLUMNS}


@pytest.fixture
def workdir(tmp_path):
  made = store.Workdir(tmp_path)
  _write(made, SIZE)
  return made


def _write(workdir, size, earlier=()):
  """A scored pool."""
  ids = [f'p{i}' for i in range(size)]
  tasks = [f't{i % 4}' for i in range(size)]
  store.write_parquet(
    workdir.pool, pa.table({'id': ids, 'prompt': ids, 'task': tasks})
  )
  store.write_parquet(
    workdir.scores, pa.table({'id': ids, 'generation': ids, **_scores(size)})
  )
  store.write_npy(workdir.features, _features(size))
  manifest = store.Manifest(workdir)
  manifest.restart('pool', {})
  manifest.finish('pool', {'rounds': list(earlier)})


def _config(*names, fraction=0.3, seeds=(0, 1, 2), budget=BUDGET, **options):
  config = default.get_config()
  config.selection.strategies = names
  config.selection.kernel.width = 0.3
  config.study.budgets = (budget,)
  config.study.seeds = seeds
  config.study.pool_fraction = fraction
  config.update_from_flattened_dict(options)
  return config


def _select(workdir, *names, **options):
  config = _config(*names, **options)
  study.check(config)
  stage.run(config, workdir)
  return config


def _positions(workdir, name, seed):
  rows = store.read_jsonl(workdir.selection(name, seed))
  return [int(row['id'][1:]) for row in rows]


def _parts(count=3, fraction=0.3, sizes=(SIZE,)):
  made = parts.Parts(fraction, {i: i for i in range(count)}, sizes)
  return [made.of_seed(seed) for seed in range(count)]


@pytest.mark.parametrize(
  ('fraction', 'count', 'size'), [(0.3, 3, 18), (0.1, 10, 6), (1 / 3, 3, 20)]
)
def test_parts_share_no_prompt_and_have_their_share(fraction, count, size):
  made = _parts(count, fraction)
  assert [len(part) for part in made] == [size] * count
  assert len(np.unique(np.concatenate(made))) == size * count
  for part in made:
    assert (np.diff(part) > 0).all()
    # The pool was shuffled: a part is not a piece of it.
    assert np.ptp(part) > size


def test_every_strategy_chooses_from_the_part_of_its_seed(workdir):
  _select(workdir, *STRATEGIES)
  for name, (seed, part) in itertools.product(STRATEGIES, enumerate(_parts())):
    picks = _positions(workdir, name, seed)
    assert len({*picks}) == BUDGET
    assert {*picks} <= {*part.tolist()}, name


def test_picks_are_those_of_the_library_on_the_part(workdir):
  names = ('facility_location', 'min_margin', 'k_center', 'random')
  _select(workdir, *names)
  for seed, part in enumerate(_parts()):
    features = _features(SIZE)[part]
    expected = {
      'facility_location': selection.facility_location(
        features, BUDGET, similarity=selection.Rbf(width=0.3)
      ),
      'min_margin': selection.top(
        _scores(SIZE)['min_margin'][part], BUDGET, largest=False
      ),
      'k_center': selection.k_center(features, BUDGET),
      'random': selection.random(len(part), BUDGET, seed),
    }
    for name in names:
      wanted = part[expected[name].indices].tolist()
      assert _positions(workdir, name, seed) == wanted
  record = store.read_json(workdir.selection_record('facility_location'))
  assert [bound['seed'] for bound in record['bounds']] == [0, 1, 2]


def test_the_width_comes_from_a_part(workdir):
  config = _config('facility_location')
  config.selection.kernel.width = 0.0
  stage.run(config, workdir)
  assert store.read_json(workdir.gains_curves)['num_prompts'] == 18


def test_random_may_have_more_seeds(workdir):
  config = _select(
    workdir,
    'random',
    'k_center',
    seeds=(0, 1),
    fraction=0.25,
    **{'study.random_seeds': (0, 1, 5, 7)},
  )
  assert store.read_json(workdir.parts)['seeds'] == [0, 1, 5, 7]
  picks = [_positions(workdir, 'random', seed) for seed in (0, 1, 5, 7)]
  assert len({*itertools.chain(*picks)}) == 4 * BUDGET
  assert not workdir.selection('k_center', 5).exists()
  seeds = [
    (c.strategy, c.seed) for c in study.cells(config) if c.strategy == 'random'
  ]
  assert seeds == [('random', s) for s in (0, 1, 5, 7)]
  assert len(study.cells(config)) == 6


def test_a_seed_keeps_its_part(workdir):
  _select(workdir, 'random', 'k_center', seeds=(4, 2))
  before = {s: _positions(workdir, 'k_center', s) for s in (4, 2)}
  _select(workdir, 'random', 'k_center', seeds=(9, 2, 4))
  after = {s: _positions(workdir, 'k_center', s) for s in (4, 2)}
  assert after == before
  assert len({*itertools.chain(*before.values())}) == 2 * BUDGET
  new = _positions(workdir, 'k_center', 9)
  assert {*new}.isdisjoint(itertools.chain(*before.values()))
  with pytest.raises(errors.InputError, match='of seeds 4, 2, 9, 11 together'):
    _select(workdir, 'random', 'k_center', seeds=(9, 2, 11))


def test_parts_grow_with_the_pool(workdir):
  _select(workdir, 'random', 'facility_location')
  before = [_positions(workdir, 'random', s) for s in range(3)]
  asked = [f'p{i}' for i in itertools.chain(*before)]
  store.write_json(
    workdir.asked, {'versions': [{'number': 1, 'ids': asked}], 'hashes': []}
  )
  old = {'prompts': SIZE, 'hash': store.hash_file(workdir.pool)}
  _write(workdir, 90, [old])
  _select(workdir, 'random', 'facility_location', budget=20)
  grown = _parts(sizes=(SIZE, 30))
  for seed, part in enumerate(_parts()):
    assert {*part} < {*grown[seed]}
    assert len(grown[seed]) == 18 + 9
    picks = _positions(workdir, 'random', seed)
    assert picks[:BUDGET] == before[seed]
    assert {*picks} <= {*grown[seed].tolist()}
  assert len(np.unique(np.concatenate(grown))) == 3 * 27


def test_another_fraction_is_refused(workdir):
  _select(workdir, 'random')
  with pytest.raises(errors.InputError, match=r'pool_fraction \(was 0.3, is'):
    _select(workdir, 'random', fraction=0.2)
  with pytest.raises(errors.InputError, match=r'pool_fraction \(was 0.3, is'):
    _select(workdir, 'random', fraction=1.0)


def test_a_workdir_from_before_there_were_parts_stays_valid(workdir, capsys):
  _select(workdir, 'random', fraction=1.0)
  path = workdir.selection_record('random')
  record = store.read_json(path)
  del record['fingerprint']['study.pool_fraction']
  store.write_json(path, record)
  _select(workdir, 'random', fraction=1.0)
  assert 'already done' in capsys.readouterr().out
  assert not workdir.parts.exists()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'fraction': 0.34}, 'give at most 0.33, fewer seeds, or 1.0'),
    ({'fraction': 0.5, 'seeds': (0, 1, 2)}, '3 seeds need 150% of the pool'),
    ({'fraction': 0.0}, 'study.pool_fraction is 0.0'),
    ({'fraction': 1.1}, 'study.pool_fraction is 1.1'),
    ({'fraction': float('nan')}, 'study.pool_fraction is nan'),
    ({'budget': 19}, 'each seed has: 18 of 60 prompts'),
    ({'study.random_seeds': (0, 0)}, 'study.random_seeds has duplicates'),
    ({'study.random_seeds': (2**32,)}, 'study.random_seeds has 4294967296'),
    ({'study.random_seeds': (3, 4)}, '5 seeds need 150%'),
    ({'study.full_pool_seeds': (0, 0)}, 'study.full_pool_seeds has duplicates'),
  ],
)
def test_bad_options_are_named(workdir, options, message):
  with pytest.raises(errors.InputError, match=message):
    _select(workdir, 'random', 'k_center', **options)


@pytest.mark.parametrize('fraction', [1.0, 0.1])
def test_ten_seeds_have_the_whole_pool_or_a_tenth(fraction):
  study.check(_config('random', fraction=fraction, seeds=tuple(range(10))))


def test_budgets_that_nearly_empty_a_part_are_told(workdir, capsys):
  _select(workdir, 'random')
  assert 'each seed chooses 6 from its 18 prompts' in capsys.readouterr().out
