"""The select stage: every strategy by name against a few lines of numpy."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from configs import default
from edsft_jax import console, errors, selection, store, study
from edsft_jax.strategies import scores as scores_lib
from edsft_jax.strategies import stage
from edsft_jax.strategies.registry import LENGTH_MATCHED, STRATEGIES

N, BUDGET = 40, 12
ALL = tuple(STRATEGIES)
BY_SCORE = [row.name for row in STRATEGIES.values() if row.column]
WIDTH = 0.3


def _features() -> np.ndarray:
  rng = np.random.default_rng(3)
  centers = rng.normal(size=(5, 6)) * 3
  return (centers[rng.integers(5, size=N)] + rng.normal(size=(N, 6))).astype(
    np.float32
  )


def _tasks() -> list[str]:
  return [f't{min(i % 7, 3)}' for i in range(N)]


def _write(workdir: store.Workdir, tasks: bool = True) -> None:
  ids = [f'p{i}' for i in range(N)]
  columns = {'id': ids, 'prompt': [f'prompt {i}' for i in range(N)]}
  if tasks:
    columns['task'] = _tasks()
  store.write_parquet(workdir.pool, pa.table(columns))
  rng = np.random.default_rng(4)
  scores = {
    column: rng.uniform(0.1, 0.9, size=N).astype(np.float32)
    for column in (
      *BY_SCORE,
      'mean_confidence',
      'first_token_confidence',
      'log_probability',
    )
  }
  for column in ('num_prompt_tokens', 'num_generated_tokens'):
    scores[column] = rng.integers(1, 50, size=N)
  store.write_parquet(
    workdir.scores, pa.table({'id': ids, 'generation': ids, **scores})
  )
  store.write_npy(workdir.features, _features())


@pytest.fixture
def workdir(tmp_path) -> store.Workdir:
  result = store.Workdir(tmp_path)
  _write(result)
  return result


def _config(*names: str, budgets=(5, BUDGET), seeds=(0, 1)):
  config = default.get_config()
  if LENGTH_MATCHED in names:  # It needs what it is matched to.
    names = (*names, 'facility_location')
  config.selection.strategies = names or ALL
  config.selection.kernel.width = WIDTH
  config.study.budgets = budgets
  config.study.seeds = seeds
  return config


def _picks(workdir, name, seed=0) -> list[int]:
  return [int(i[1:]) for i in study.selected_ids(workdir, name, seed)]


# Brute force, from the definitions in PAPERS and in float64.


def _kernel() -> np.ndarray:
  x = _features().astype(np.float64)
  squared = ((x[:, None] - x[None]) ** 2).sum(-1)
  return np.exp(-squared / (WIDTH * squared.mean()))


def _best_first(value_of, budget=BUDGET) -> list[int]:
  """Greedy: the largest value, the lowest index among equals."""
  chosen: list[int] = []
  for _ in range(budget):
    left = [i for i in range(N) if i not in chosen]
    values = [value_of([*chosen, i]) for i in left]
    chosen.append(left[int(np.argmax(values))])
  return chosen


def _facility_location() -> list[int]:
  kernel = _kernel()
  return _best_first(lambda s: kernel[:, s].max(axis=1).sum())


def _log_determinant() -> list[int]:
  kernel = _kernel() + 1e-6 * np.eye(N)
  return _best_first(lambda s: np.linalg.slogdet(kernel[np.ix_(s, s)])[1])


def _k_center() -> list[int]:
  x = _features().astype(np.float64)
  distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
  chosen = [0]
  while len(chosen) < BUDGET:
    nearest = distance[:, chosen].min(axis=1)
    nearest[chosen] = -1
    chosen.append(int(np.argmax(nearest)))
  return chosen


def _score_order(workdir, name) -> list[int]:
  column, largest = {
    'mean_entropy': ('mean_entropy', True),
    'max_entropy': ('max_entropy', True),
    'least_confidence': ('least_confidence', True),
    'min_confidence': ('min_confidence', False),
    'mean_margin': ('mean_margin', False),
    'min_margin': ('min_margin', False),
    'prompt_mean_entropy': ('prompt_mean_entropy', True),
    'prompt_max_entropy': ('prompt_max_entropy', True),
    'prompt_least_confidence': ('prompt_least_confidence', True),
    'prompt_min_confidence': ('prompt_min_confidence', False),
    'prompt_mean_margin': ('prompt_mean_margin', False),
    'prompt_min_margin': ('prompt_min_margin', False),
  }[name]
  values = store.read_parquet(workdir.scores)[column].to_numpy()
  return np.argsort(-values if largest else values, kind='stable')[
    :BUDGET
  ].tolist()


def _task_counts(weights: dict[str, float]) -> list[dict[str, int]]:
  """How many each task has after each pick, by Sainte-Lague."""
  tasks = _tasks()
  order = list(dict.fromkeys(tasks))
  counts = dict.fromkeys(order, 0)
  steps = []
  for _ in range(BUDGET):
    free = [t for t in order if counts[t] < tasks.count(t)]
    best = max(
      free,
      key=lambda t: (
        weights[t] / (counts[t] + 0.5),
        -counts[t],
        -order.index(t),
      ),
    )
    counts[best] += 1
    steps.append(dict(counts))
  return steps


def test_every_named_strategy_matches_brute_force(workdir):
  stage.run(_config(), workdir)

  for name in BY_SCORE:
    assert _picks(workdir, name) == _score_order(workdir, name), name
  assert _picks(workdir, 'facility_location') == _facility_location()
  assert _picks(workdir, 'log_determinant') == _log_determinant()
  assert _picks(workdir, 'k_center') == _k_center()
  assert sorted(set(_picks(workdir, 'random'))) == sorted(
    _picks(workdir, 'random')
  )
  assert _picks(workdir, 'random', 0) != _picks(workdir, 'random', 1)

  tasks = _tasks()
  confidence = store.read_parquet(workdir.scores)['mean_confidence']
  by_task = {
    t: np.mean(
      [c for c, u in zip(confidence.to_numpy(), tasks, strict=True) if u == t],
      dtype=np.float64,
    )
    for t in set(tasks)
  }
  for name, weights in (
    ('task_diversity', dict.fromkeys(by_task, 1.0)),
    ('weighted_task_diversity', {t: 1 / c for t, c in by_task.items()}),
  ):
    expected = _task_counts(weights)
    for seed in (0, 1):
      picks = _picks(workdir, name, seed)
      for m in range(1, BUDGET + 1):
        got = {t: 0 for t in by_task}
        for i in picks[:m]:
          got[tasks[i]] += 1
        assert got == expected[m - 1], (name, m)
    assert _picks(workdir, name, 0) != _picks(workdir, name, 1)


def test_rows_are_strict_json_with_rank_gain_score_and_task(workdir):
  stage.run(_config('min_margin', 'k_center', 'random'), workdir)

  def no_constant(name):
    raise AssertionError(f'{name} is not JSON')

  for name in ('min_margin', 'k_center', 'random'):
    lines = workdir.selection(name, 0).read_text().splitlines()
    rows = [json.loads(x, parse_constant=no_constant) for x in lines]
    assert [row['rank'] for row in rows] == list(range(BUDGET))
    columns = {'rank', 'id', 'gain', 'score', 'task', 'round', 'status'}
    assert set(rows[0]) == columns
    assert rows[1]['task'] == _tasks()[int(rows[1]['id'][1:])]
    assert (rows[1]['score'] is not None) == (name == 'min_margin')
  k_center = store.read_jsonl(workdir.selection('k_center', 0))
  assert k_center[0]['gain'] is None
  assert k_center[1]['gain'] >= k_center[2]['gain'] > 0


def test_without_randomness_the_seeds_share_one_file(workdir):
  stage.run(_config('facility_location', 'random'), workdir)
  first, second = (workdir.selection('facility_location', s) for s in (0, 1))
  assert first.samefile(second)
  assert not workdir.selection('random', 0).samefile(
    workdir.selection('random', 1)
  )


def test_more_budget_extends_and_more_seeds_and_names_redo_nothing(workdir):
  stage.run(_config('min_margin', 'random', budgets=(5,)), workdir)
  before = {s: _picks(workdir, 'random', s) for s in (0, 1)}
  stamp = workdir.selection('min_margin', 0).stat().st_mtime_ns

  stage.run(
    _config('min_margin', 'random', 'k_center', budgets=(5,), seeds=(0, 1)),
    workdir,
  )
  assert workdir.selection('min_margin', 0).stat().st_mtime_ns == stamp

  stage.run(
    _config('min_margin', 'random', budgets=(5, 9), seeds=(0, 1, 2)), workdir
  )
  for seed, old in before.items():
    assert _picks(workdir, 'random', seed)[:5] == old
    assert len(_picks(workdir, 'random', seed)) == 9

  stage.run(_config('min_margin', budgets=(3,)), workdir)
  assert len(_picks(workdir, 'min_margin')) == 9


def test_a_budget_that_grew_with_other_seeds_reaches_every_seed(workdir):
  names = ('random', 'min_margin')
  stage.run(_config(*names, budgets=(5,), seeds=(0,)), workdir)
  stage.run(_config(*names, budgets=(9,), seeds=(1,)), workdir)
  stage.run(_config(*names, budgets=(5, 9), seeds=(0, 1)), workdir)
  for name in names:
    assert [len(_picks(workdir, name, seed)) for seed in (0, 1)] == [9, 9]


def test_only_the_options_that_a_strategy_reads_bind_it(workdir):
  stage.run(_config('random', 'facility_location'), workdir)
  config = _config('random')
  config.selection.kernel.width = 0.7
  stage.run(config, workdir)
  config = _config('random', 'facility_location')
  config.selection.kernel.width = 0.7
  with pytest.raises(errors.InputError, match=r'selection\.kernel\.width'):
    stage.run(config, workdir)


def test_the_suggested_width_is_kept_when_the_budget_grows(workdir):
  config = _config('facility_location', budgets=(4,))
  config.selection.kernel.width = 0.0
  stage.run(config, workdir)
  curves = store.read_json(workdir.gains_curves)
  old = _picks(workdir, 'facility_location')
  config.study.budgets = (4, 30)
  stage.run(config, workdir)
  assert store.read_json(workdir.gains_curves) == curves
  assert _picks(workdir, 'facility_location')[:4] == old


def test_the_record_tells_how_near_the_best_the_picks_are(workdir):
  stage.run(_config('facility_location', 'random'), workdir)
  record = store.read_json(workdir.selections / 'facility_location.json')
  kernel, picks = _kernel(), _picks(workdir, 'facility_location')
  for bound in record['bounds']:
    reached = kernel[:, picks[: bound['budget']]].max(axis=1).sum()
    np.testing.assert_allclose(bound['objective'], reached, rtol=1e-6)
    assert bound['upper_bound'] >= bound['objective']
  assert [b['budget'] for b in record['bounds']] == [5, BUDGET]
  random = store.read_json(workdir.selections / 'random.json')
  assert random['bounds'] == []


@pytest.mark.parametrize(
  ('first', 'expected'),
  [
    ('zero', lambda: 0),
    (
      'medoid',
      lambda: int(
        ((_features()[:, None] - _features()[None]) ** 2)
        .sum(-1)
        .sum(1)
        .argmin()
      ),
    ),
  ],
)
def test_first_centre(workdir, first, expected):
  config = _config('k_center')
  config.selection.k_center_first = first
  stage.run(config, workdir)
  assert _picks(workdir, 'k_center')[0] == expected()


def test_a_random_first_centre_differs_by_seed(workdir):
  config = _config('k_center', seeds=(0, 1, 2, 3))
  config.selection.k_center_first = 'random'
  stage.run(config, workdir)
  assert len({_picks(workdir, 'k_center', s)[0] for s in range(4)}) > 1


@pytest.mark.parametrize(
  ('option', 'value', 'says'),
  [
    ('selection.strategies', ('min_margn',), "mean 'min_margin'"),
    ('selection.strategies', ('random', 'random'), 'has duplicates'),
    ('selection.strategies', (), 'selection.strategies is empty'),
    ('study.budgets', (5, 41), 'exceeds the pool: 40 prompts'),
    ('selection.kernel.similarity', 'linear', "'linear' is unknown"),
    ('selection.kernel.transform', 'abs', "'abs' is unknown"),
    ('selection.kernel.width', -1.0, 'selection.kernel.width is -1.0'),
    ('selection.kernel.width', float('nan'), 'selection.kernel.width is nan'),
    ('selection.kernel.gamma', 2.0, 'are both set'),
    ('selection.k_center_first', 'last', "'last' is unknown"),
    ('selection.task_confidence', 'margin', "'margin' is unknown"),
    ('selection.memory_limit', -1.0, 'selection.memory_limit is -1.0'),
    ('selection.memory_limit', float('nan'), 'selection.memory_limit is nan'),
    ('study.seeds', (2**32,), 'must be below'),
  ],
)
def test_bad_options_name_themselves(workdir, option, value, says):
  config = _config()
  config.update_from_flattened_dict({option: value})
  with pytest.raises(errors.InputError, match=says):
    stage.check(config, workdir, frozenset())


def test_a_pool_without_tasks_has_them_from_its_features(tmp_path, capfd):
  workdir = store.Workdir(tmp_path)
  _write(workdir, tasks=False)
  names = ('task_diversity', 'weighted_task_diversity')
  stage.run(_config(*names, 'random'), workdir)
  # round(sqrt(40 / 2)) of them.
  labels = selection.cluster_tasks(_features(), 4)
  assert 'no task labels: found 4 tasks by k-means' in capfd.readouterr().out
  for name in names:
    rows = store.read_jsonl(workdir.selection(name, 0))
    for row in rows:
      assert row['task'] == f'cluster {labels[int(row["id"][1:])]}'
    record = store.read_json(workdir.selection_record(name))
    assert record['task_clusters'] == 4
    assert {'features', 'selection.task_clusters'} <= set(record['fingerprint'])
  counts = np.bincount(labels[_picks(workdir, 'task_diversity')])
  # An even share, or all there are.
  assert all((counts >= 3) | (counts == np.bincount(labels)))
  assert store.read_jsonl(workdir.selection('random', 0))[0]['task'] is None
  random = store.read_json(workdir.selection_record('random'))
  assert random['task_clusters'] is None
  assert 'selection.task_clusters' not in random['fingerprint']

  changed = _config(*names)
  changed.selection.task_clusters = 6
  with pytest.raises(errors.InputError, match=r'selection\.task_clusters'):
    stage.run(changed, workdir)
  stage.run(_config('random', budgets=(13,)), workdir)


def test_the_number_of_tasks_to_find_can_be_set(tmp_path):
  workdir = store.Workdir(tmp_path)
  _write(workdir, tasks=False)
  config = _config('task_diversity')
  config.selection.task_clusters = 6
  stage.run(config, workdir)
  rows = store.read_jsonl(workdir.selection('task_diversity', 0))
  assert len({row['task'] for row in rows}) == 6
  for wrong in (-1, N + 1):
    config.selection.task_clusters = wrong
    with pytest.raises(errors.InputError, match=f'task_clusters is {wrong}'):
      stage.check(config, workdir, frozenset())


def test_a_task_strategy_needs_tasks_or_features(tmp_path):
  workdir = store.Workdir(tmp_path)
  _write(workdir, tasks=False)
  workdir.features.unlink()
  config = _config('task_diversity')
  with pytest.raises(errors.InputError, match=r'name the column.*k-means'):
    stage.check(config, workdir, frozenset())
  stage.check(config, workdir, frozenset({'score'}))
  stage.check(_config('random'), workdir, frozenset())


def _change_scores(workdir, drop=(), **columns) -> None:
  table = store.read_parquet(workdir.scores).drop(list(drop))
  for name, values in columns.items():
    if name in table.column_names:
      table = table.drop([name])
    table = table.append_column(name, pa.array(values))
  store.write_parquet(workdir.scores, table)


@pytest.mark.parametrize('absent', [None, float('nan')])
def test_a_tasks_confidence_may_come_from_a_sample(workdir, absent):
  tasks = _tasks()
  # Of task t0 prompt 0 is in the sample, of t1 prompts 1 and 8, and so on;
  # prompt 14 of t0 has a number that was not drawn for it.
  sample = [i in (0, 1, 8, 2, 3) for i in range(N)]
  values = [absent] * N
  for i, value in {0: 0.9, 1: 0.5, 8: 0.12, 2: 0.8, 3: 0.7, 14: 0.001}.items():
    values[i] = value
  _change_scores(workdir, mean_confidence=values, confidence_sample=sample)
  stage.run(_config('weighted_task_diversity', 'k_center'), workdir)
  steps = _task_counts(
    {'t0': 1 / 0.9, 't1': 1 / 0.31, 't2': 1 / 0.8, 't3': 1 / 0.7}
  )
  got = dict.fromkeys(steps[-1], 0)
  for i, expected in zip(
    _picks(workdir, 'weighted_task_diversity'), steps, strict=True
  ):
    got[tasks[i]] += 1
    assert got == expected

  values[2] = absent
  _change_scores(workdir, mean_confidence=values)
  with pytest.raises(
    errors.InputError, match=r"task 't2': score with scoring\.generate"
  ):
    stage.check(_config('weighted_task_diversity'), workdir, frozenset())


def test_a_task_is_as_likely_as_its_continuations(workdir):
  tasks = _tasks()
  nats = {t: -100.0 - 0.3 * i for i, t in enumerate(sorted(set(tasks)))}
  # Of one task below what float64 holds: its weight is the largest there is.
  nats[min(nats)] = -2000.0
  _change_scores(workdir, log_probability=[nats[t] for t in tasks])
  config = _config('weighted_task_diversity')
  config.selection.task_confidence = 'sequence_probability'
  stage.run(config, workdir)
  tiny = np.finfo(np.float64).tiny
  steps = _task_counts({t: 1 / max(np.exp(x), tiny) for t, x in nats.items()})
  picks = [tasks[i] for i in _picks(workdir, 'weighted_task_diversity')]
  for m, expected in enumerate(steps, 1):
    assert {t: picks[:m].count(t) for t in nats} == expected


@pytest.mark.parametrize('absent', [None, float('nan')])
def test_scores_of_some_prompts_are_not_enough(workdir, absent):
  some = [absent if i in (5, 7) else 0.5 for i in range(N)]
  _change_scores(workdir, min_margin=some, mean_confidence=some)
  for name, column in (
    ('min_margin', 'min_margin'),
    ('weighted_task_diversity', 'mean_confidence'),
  ):
    says = rf"no {column} for 2 prompts, first for 'p5': score with"
    with pytest.raises(errors.InputError, match=says):
      stage.check(_config(name), workdir, frozenset())
  stage.run(_config('mean_margin', 'prompt_min_margin'), workdir)


def test_without_generation_the_prompts_scores_remain(workdir):
  continuation = [name for name in BY_SCORE if not name.startswith('prompt_')]
  assert len(continuation) == 6
  _change_scores(
    workdir, drop=[*continuation, 'mean_confidence', 'first_token_confidence']
  )
  for name in (*continuation, 'weighted_task_diversity'):
    says = r'scores\.parquet has no .*: score with scoring\.generate'
    with pytest.raises(errors.InputError, match=says):
      stage.check(_config(name), workdir, frozenset())
  names = [f'prompt_{name}' for name in continuation]
  stage.run(_config(*names), workdir)
  for name in names:
    assert _picks(workdir, name) == _score_order(workdir, name)


def test_missing_inputs_name_their_stage(tmp_path):
  workdir = store.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match='run the pool stage first'):
    stage.check(_config(), workdir, frozenset())
  stage.check(_config(), workdir, frozenset({'pool', 'score'}))
  _write(workdir)
  workdir.scores.unlink()
  with pytest.raises(errors.InputError, match='run the score stage first'):
    stage.check(_config(), workdir, frozenset())
  # What reads no scores needs none.
  stage.check(_config('random', 'task_diversity'), workdir, frozenset())
  stage.run(_config('random', 'task_diversity'), workdir)


def test_scores_of_another_pool_are_refused(workdir):
  table = store.read_parquet(workdir.scores)
  store.write_parquet(workdir.scores, table.take(list(range(N))[::-1]))
  with pytest.raises(errors.InputError, match='list different prompts'):
    stage.run(_config('min_margin'), workdir)


def test_changed_scores_are_refused(workdir):
  stage.run(_config('min_margin'), workdir)
  table = store.read_parquet(workdir.scores)
  store.write_parquet(workdir.scores, table.drop(['max_entropy']))
  with pytest.raises(errors.InputError, match=r'min_margin.*scores'):
    stage.run(_config('min_margin'), workdir)


def test_an_order_is_never_rewritten(workdir):
  """Answers may have been bought for it."""
  stage.run(_config('random', budgets=(5,)), workdir)
  path = workdir.selection('random', 0)
  rows = store.read_jsonl(path)
  store.write_jsonl(path, rows[::-1])
  with pytest.raises(errors.InputError, match='has picks that differ'):
    stage.run(_config('random', budgets=(5, 9)), workdir)
  assert store.read_jsonl(path) == rows[::-1]


@pytest.mark.parametrize(
  ('strategy', 'per_task', 'fits'),
  [
    ('min_margin', 3, False),
    ('prompt_min_margin', 0, True),
    ('weighted_task_diversity', 0, False),
    ('weighted_task_diversity', 3, True),
    ('facility_location', 0, True),
  ],
)
def test_what_will_not_be_generated_is_refused_before_scoring(
  tmp_path, strategy, per_task, fits
):
  config = default.get_config()
  config.selection.strategies = (strategy,)
  config.scoring.generate = False
  config.scoring.confidence_prompts_per_task = per_task
  arguments = (config, store.Workdir(tmp_path), {'pool', 'score'})
  if fits:
    stage.check(*arguments)
  else:
    with pytest.raises(errors.InputError, match=rf'{strategy} .*generate is'):
      stage.check(*arguments)


def test_scores_of_prompts_that_will_not_be_are_refused_before_scoring(
  tmp_path,
):
  config = default.get_config()
  config.selection.strategies = ('random', 'prompt_min_margin')
  config.scoring.prompt_scores = False
  arguments = (config, store.Workdir(tmp_path), {'pool', 'score'})
  with pytest.raises(
    errors.InputError, match=r'prompt_min_margin .*scoring\.prompt_scores'
  ):
    stage.check(*arguments)
  config.selection.strategies = ('random', 'min_margin')
  stage.check(*arguments)


def test_one_bar_counts_the_picks_of_all_orders(workdir, monkeypatch):
  made = []
  bar = console.bar

  def kept(*args, **kwargs):
    made.append(bar(*args, **kwargs))
    return made[-1]

  monkeypatch.setattr(console, 'bar', kept)
  stage.run(_config('random', 'facility_location', 'k_center'), workdir)
  # Two seeds of random choice; the other two depend on no seed.
  (drawn,) = made
  assert drawn.n == drawn.total == 4 * BUDGET


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('seed', [0, 1])
def test_orders_are_nested(tmp_path, name, seed):
  orders = []
  for budget in (BUDGET, 5):
    workdir = store.Workdir(tmp_path / str(budget))
    _write(workdir)
    stage.run(_config(name, budgets=(budget,), seeds=(seed,)), workdir)
    orders.append(_picks(workdir, name, seed))
  assert len(orders[0]) == BUDGET
  assert orders[0][:5] == orders[1]


@pytest.mark.parametrize(
  'indices', [[0] * BUDGET, list(range(BUDGET - 1)), [*range(BUDGET - 1), N]]
)
def test_a_wrong_chooser_is_named(workdir, monkeypatch, indices):
  """That is a bug, not something that the user has to fix."""

  def choose(*_):
    return selection.Selection(
      np.array(indices), np.zeros(len(indices)), objective=0.0
    )

  row = dataclasses.replace(STRATEGIES['random'], choose=choose)
  monkeypatch.setitem(STRATEGIES, 'random', row)
  with pytest.raises(RuntimeError, match='strategy random chose'):
    stage.run(_config('random'), workdir)
  assert not workdir.selection('random', 0).exists()


def test_a_strategy_may_read_what_is_there_without_generation(
  workdir, monkeypatch
):
  def choose(view, budget, seed):
    lengths = scores_lib.complete(
      view.scores, view.pool.ids, 'num_prompt_tokens'
    )
    return selection.top(lengths, budget)

  row = dataclasses.replace(
    STRATEGIES['random'], choose=choose, reads=frozenset({'scores'})
  )
  monkeypatch.setitem(STRATEGIES, 'random', row)
  table = store.read_parquet(workdir.scores)
  lengths = table['num_prompt_tokens'].to_numpy()
  store.write_parquet(workdir.scores, table.select(['id', 'num_prompt_tokens']))
  config = _config('random')
  config.scoring.generate = False
  stage.check(config, workdir, frozenset({'score'}))
  stage.run(config, workdir)
  expected = np.argsort(-lengths, kind='stable')[:BUDGET].tolist()
  assert _picks(workdir, 'random') == expected


@pytest.mark.parametrize(
  ('use', 'words'),
  [
    (
      selection.MemoryUse(2**30, 0, 5, 0.0),
      'memory limit 1.00 GiB (from the free memory; selection.memory_limit '
      'sets it): enough\n',
    ),
    (
      selection.MemoryUse(2**30, 3 * 2**30, 38, 71.25),
      'sets it): the first 38 picks took up to 71.2 s longer than with about '
      '3.00 GiB\n',
    ),
  ],
)
def test_the_cost_of_the_memory_limit_is_said(
  workdir, monkeypatch, capsys, use, words
):
  features = _features()

  def choose(view, budget, seed):
    chosen = selection.facility_location(features, budget)
    return dataclasses.replace(chosen, memory_use=use)

  row = dataclasses.replace(STRATEGIES['facility_location'], choose=choose)
  monkeypatch.setitem(STRATEGIES, 'facility_location', row)
  stage.run(_config('facility_location'), workdir)
  assert words in capsys.readouterr().out
