"""What the page shows of the picks, against the selections themselves."""

import csv
import json
import re

import numpy as np
import pytest
import synthetic_study as synthetic

from edsft_jax import reporting, selection, store, study
from edsft_jax.reporting import interactive, picks, projection, results
from edsft_jax.reporting.plots import palette


@pytest.fixture
def made(tmp_path, quick):
  """A study with features, of which the page was made."""
  options = synthetic.config(study__seeds=(0, 1))
  workdir = synthetic.write(tmp_path, options)
  synthetic.write_features(workdir)
  reporting.run(options, workdir)
  return options, workdir


def _csv(workdir, name):
  with workdir.report.with_name(name).open(newline='') as file:
    return list(csv.DictReader(file))


def _data(workdir, name):
  html = workdir.report.read_text('utf-8')
  return json.loads(re.search(f'(?s)id="{name}-data">(.*?)</script>', html)[1])


def _order(workdir, strategy, seed):
  return study.selected_ids(workdir, strategy, seed)


def test_overlap_is_that_of_the_lists(made):
  _, workdir = made
  for row in _csv(workdir, 'overlap.csv'):
    shares = [
      len(
        {*_order(workdir, row['strategy'], seed)}
        & {*_order(workdir, row['other'], seed)}
      )
      / 80
      for seed in (0, 1)
    ]
    assert float(row['share']) == np.mean(shares)
  for row in _csv(workdir, 'coverage.csv'):
    if row['strategy'] == 'random':
      continue
    budget = int(row['budget'])
    shares = [
      len(
        {*_order(workdir, row['strategy'], seed)[:budget]}
        & {*_order(workdir, 'random', seed)[:budget]}
      )
      / budget
      for seed in (0, 1)
    ]
    assert float(row['shared_with_random']) == np.mean(shares)


def test_coverage_is_on_the_page(made):
  _, workdir = made
  rows = np.load(workdir.features).astype(float)
  (row,) = (
    row
    for row in _csv(workdir, 'coverage.csv')
    if (row['strategy'], row['budget']) == ('min_margin', '40')
  )
  radii = []
  for seed in (0, 1):
    chosen = [int(i[1:]) for i in _order(workdir, 'min_margin', seed)[:40]]
    distance = np.linalg.norm(rows[:, None] - rows[chosen], axis=-1)
    radii.append(distance.min(1).max())
  assert float(row['radius']) == pytest.approx(np.mean(radii))


def test_the_table_has_every_pick(made):
  _, workdir = made
  rows = _csv(workdir, 'picks.csv')
  assert len(rows) == 4 * 2 * 80
  data = _data(workdir, 'pool')
  for one in data['lists']:
    (seed,) = one['seeds']
    order = _order(workdir, one['strategy'], seed)
    assert [data['ids'][i] for i in one['picks']] == order
    in_csv = [
      row
      for row in rows
      if (row['strategy'], row['seed']) == (one['strategy'], str(seed))
    ]
    assert [row['id'] for row in in_csv] == order
    assert [int(row['rank']) for row in in_csv] == list(range(1, 81))
    gains = [row['gain'] or None for row in in_csv]
    assert [x and f'{float(x):.4g}' for x in gains] == [
      x and f'{x:.4g}' for x in one['scores']
    ]
  tasks = [task for task, n in synthetic.TASKS.items() for _ in range(n)]
  shown = zip(data['ids'], data['task'], data['words'], strict=True)
  for prompt_id, task, words in shown:
    assert data['tasks'][task] == tasks[int(prompt_id[1:])]
    assert words == 2


def test_lists_that_seeds_share_are_one(made):
  options, workdir = made
  for strategy in options.selection.strategies:
    path = workdir.selection(strategy, 1)
    path.write_bytes(workdir.selection(strategy, 0).read_bytes())
  found = interactive.prompts(
    store.read_prompts(workdir.pool),
    results.read_selections(options, workdir),
    None,
    (20, 40, 80),
  )
  assert [one['seeds'] for one in found['lists']] == [[0, 1]] * 4
  # Without features there are only picks.
  chosen = {i for one in found['lists'] for i in one['picks']}
  assert chosen == set(range(len(found['ids'])))
  assert found['points'] == {}


def test_task_strategies_have_the_order_of_random_within_a_task(made):
  task_N = np.arange(60) % 4
  order = selection.random(60, 60, seed=3).indices
  by_task = selection.task_diversity(task_N.tolist(), 60, seed=3).indices
  for task in range(4):
    assert [i for i in by_task if task_N[i] == task] == [
      i for i in order if task_N[i] == task
    ]
  text = ' '.join(made[1].report.read_text('utf-8').split())
  assert (
    'Within a task, weighted_task_diversity takes prompts in the order of '
    'random with the same seed.'
  ) in text


def test_large_pools_are_sampled(made, monkeypatch):
  options, workdir = made
  pool = store.read_prompts(workdir.pool)
  selections = results.read_selections(options, workdir)
  projected = projection.project(np.load(workdir.features))
  whole = interactive.prompts(pool, selections, projected, (80,))
  assert sorted(whole['ids']) == sorted(pool.ids)
  monkeypatch.setattr(interactive, 'MAX_TEXT_BYTES', 0)
  few = interactive.prompts(pool, selections, projected, (80,))
  assert {*few['ids']} == {row['id'] for s in selections.values() for row in s}
  assert len(few['points']['PCA']['x']) == len(few['ids'])


def test_long_prompts_are_cut_and_harmless(tmp_path, quick):
  assert picks.shown('a\n b ' + 'x' * 200) == 'a b ' + 'x' * 113 + '...'
  assert len(picks.shown('é' * 500)) == picks.MAX_CHARACTERS
  text = interactive.dumps({'a': '</script><!--'})
  assert '<' not in text
  assert json.loads(text) == {'a': '</script><!--'}


def test_principal_components_are_those_of_numpy():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(50, 20)) * np.linspace(1, 5, 20)
  (name, points), *_ = projection.project(rows).points.items()
  assert name == 'PCA'
  assert points.min() == 0
  assert points.max() == 1
  centred = rows - rows.mean(0)
  _, vectors = np.linalg.eigh(centred.T @ centred)
  for column, vector in enumerate(vectors.T[[-1, -2]]):
    correlation = np.corrcoef(points[:, column], centred @ vector)[0, 1]
    assert abs(correlation) == pytest.approx(1, abs=1e-4)
  # As many rows as a vector of ones is orthogonal to, in exact sums.
  assert projection.project(rng.normal(size=(16, 192)) + 1) is not None
  assert projection.project(rows[:1]) is None
  same = projection.project(np.ones((30, 20)))
  assert not same.points['PCA'].any()


def test_rejected_picks_have_a_replacement(tmp_path, quick):
  options = synthetic.config(
    selection__strategies=('random', 'min_margin'),
    study__budgets=(20, 40),
    study__seeds=(0,),
  )
  workdir = synthetic.write(tmp_path, options)
  path = workdir.selection('min_margin', 0)
  rows = store.read_jsonl(path)
  others = [i for i in store.read_prompts(workdir.pool).ids]
  spare = [i for i in others if i not in {row['id'] for row in rows}][:3]
  rows += [{**rows[0], 'rank': 40 + k, 'id': i} for k, i in enumerate(spare)]
  store.write_jsonl(path, rows)
  # Two picks, and the first replacement.
  rejected = [rows[3]['id'], rows[17]['id'], spare[0]]
  store.write_jsonl(
    workdir.rejected,
    [
      {'id': i, 'reason': 'not\r\nclear', 'source': 'a', 'annotator': 'b'}
      for i in rejected
    ],
  )
  pool = store.read_prompts(workdir.pool)
  found = [
    one
    for one in picks.replaced(options, workdir, pool)
    if one.strategy == 'min_margin'
  ]
  assert [(one.rank, one.id, one.replacement) for one in found] == [
    (4, rejected[0], spare[1]),
    (18, rejected[1], spare[2]),
    (41, spare[0], ''),
  ]
  assert {one.reason for one in found} == {'not clear'}
  reporting.run(options, workdir)
  text = workdir.report.read_text('utf-8')
  assert 'Replaced prompts' in text
  assert f'<span class="count">{rejected[0]}</span>' in text
  assert {row['replacement'] for row in _csv(workdir, 'replaced.csv')} >= {
    *spare[1:]
  }
  assert reporting.differences(options, workdir) == []


@pytest.mark.parametrize(
  'strategies', [('random',), ('min_margin',), ('random', 'min_margin')]
)
def test_the_page_leaves_out_what_the_study_lacks(tmp_path, quick, strategies):
  """No features, no tasks, no prices, one strategy."""
  options = synthetic.config(selection__strategies=strategies)
  workdir = synthetic.write(tmp_path, options, tasks=False)
  workdir.gains_curves.unlink()
  reporting.run(options, workdir)
  text = workdir.report.read_text('utf-8')
  assert 'there is neither coverage nor a map' in text
  assert ('<h3>Overlap</h3>' in text) == (len(strategies) > 1)
  assert 'id="map-chart"' not in text
  shown = re.sub('(?s)<script.*?</script>|<pre>.*?</pre>', '', text)
  for pattern in (r'\b(None|True|False|nan)\b', r'\(\d+,\)', r'\{\}', r"\['"):
    assert not re.search(pattern, shown), pattern
  for path in workdir.selections.glob('*-seed*.jsonl'):
    path.unlink()
  reporting.run(options, workdir)
  assert 'id="picks-section"' not in workdir.report.read_text('utf-8')


def test_colours_are_legible_on_dark_screens():
  for light, dark in palette.COLOURS.items():
    assert re.fullmatch('#[0-9a-f]{6}', dark), light
  assert palette.on_dark('#332288') == '#857ab8'
  assert palette.themed('fill: #332288; stroke: #123456') == (
    'fill: var(--c-332288); stroke: #123456'
  )
  assert '--c-332288: #857ab8;' in palette.definitions(dark=True)
