"""The plan: what a study would cost and could find, before money is spent."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pyarrow as pa
import pytest
import synthetic_study as synthetic

from configs import default
from edsft_jax import errors, pipeline, plan, selection, store, study
from edsft_jax.plan import coverage, orders, power
from edsft_jax.reporting import comparison, results, statistics
from edsft_jax.strategies import stage

SIZE, BUDGETS = 60, (5, 10)
NAMES = ('random', 'min_margin', 'facility_location', 'task_diversity')
NOTHING = frozenset()


def _texts():
  return ['word ' * (1 + i % 7) + f'{i}' for i in range(SIZE)]


def _features():
  return np.random.default_rng(0).normal(size=(SIZE, 3)).astype(np.float32)


def _config(**options):
  config = default.get_config()
  config.selection.strategies = NAMES
  config.selection.kernel.width = 0.3
  config.study.budgets = BUDGETS
  config.study.seeds = (0, 1)
  config.plan.sample_prompts = 0
  config.update_from_flattened_dict(options)
  return config


@pytest.fixture
def workdir(tmp_path):
  """A pool of 60 prompts, with scores and features."""
  made = store.Workdir(tmp_path / 'w')
  ids = [f'p{i}' for i in range(SIZE)]
  tasks = [f't{i % 4}' for i in range(SIZE)]
  store.write_parquet(
    made.pool, pa.table({'id': ids, 'prompt': _texts(), 'task': tasks})
  )
  scores = np.random.default_rng(1).random(SIZE).astype(np.float32)
  store.write_parquet(
    made.scores, pa.table({'id': ids, 'generation': ids, 'min_margin': scores})
  )
  store.write_npy(made.features, _features())
  manifest = store.Manifest(made)
  manifest.begin('pool', {})
  manifest.finish('pool', {})
  manifest.begin('score', {})
  manifest.finish('score', {}, seconds=90.0)
  return made


def _planned(config, workdir, capsys):
  """What the plan prints, by section."""
  study.check(config)
  plan.check(config, workdir, NOTHING)
  capsys.readouterr()
  plan.run(config, workdir)
  blocks = capsys.readouterr().out.strip().split('\n\n')
  shown = '\n'.join(blocks[:-1]).replace(str(workdir.root), 'runs/mine')
  assert max(map(len, shown.split('\n'))) <= 100
  return {b.split('\n')[0]: b.split('\n')[1:] for b in blocks}


def _row(lines, name):
  (line,) = [line for line in lines if line.split('  ')[0].strip() == name]
  return re.split('  +', line.strip())[1:]


def test_words_and_prices_are_those_of_the_picks(workdir, capsys):
  config = _config(
    **{'annotation.price_per_answer': 2.0, 'annotation.price_per_word': 0.1}
  )
  stage.run(config, workdir)
  found = _planned(config, workdir, capsys)
  words = [len(text.split()) for text in _texts()]
  union = set()
  for name in NAMES:
    read = []
    for seed in (0, 1):
      ids = study.selected_ids(workdir, name, seed)
      union |= {*ids}
      read.append([words[int(i[1:])] for i in ids])
    cells = _row(found['WORDS TO READ, AND PER PROMPT'], name)
    prices = _row(found['PRICE OF THE ANSWERS'], name)
    for budget, cell, price in zip(BUDGETS, cells, prices, strict=True):
      mean = np.mean([row[:budget] for row in read])
      assert cell == f'{mean * budget:,.0f} ({mean:.1f})'
      assert price == f'{budget * (2.0 + 0.1 * mean):,.2f}'
  total = 2.0 * len(union) + 0.1 * sum(words[int(i[1:])] for i in union)
  line = found['WORDS TO READ, AND PER PROMPT'][-1]
  assert f'needs {len(union)} answers' in line
  assert line.endswith(f': {total:,.2f}.')


def test_tasks_and_overlap_are_those_of_the_picks(workdir, capsys):
  config = _config()
  stage.run(config, workdir)
  found = _planned(config, workdir, capsys)
  ids = {
    (name, seed): study.selected_ids(workdir, name, seed)
    for name in NAMES
    for seed in (0, 1)
  }
  tasks = found['TASKS OF THE FIRST 10 PICKS']
  for t in range(4):
    shares = [
      np.mean([int(i[1:]) % 4 == t for s in (0, 1) for i in ids[name, s]])
      for name in NAMES
    ]
    assert _row(tasks, f't{t}') == [f'{x:.1%}' for x in (0.25, *shares)]
  together = found['PICKS IN COMMON AMONG THE FIRST 10']
  for number, one in enumerate(NAMES, start=1):
    shared = [
      np.mean([len({*ids[one, s]} & {*ids[o, s]}) / 10 for s in (0, 1)])
      for o in NAMES
    ]
    assert _row(together, f'{number} {one}') == [f'{x:.0%}' for x in shared]
  assert any('at least' in line for line in found['CERTIFIED QUALITY'])
  examples = found['THE FIRST 3 PICKS OF EACH STRATEGY']
  shown = [re.split('  +', line)[-1] for line in examples[1:13]]
  first = [i for name in NAMES for i in ids[name, 0][:3]]
  assert shown == [_texts()[int(i[1:])] for i in first]


@pytest.mark.parametrize('fraction', [1.0, 0.5])
@pytest.mark.parametrize('names', [NAMES, NAMES[1:]])
def test_coverage_is_that_of_all_pairs(workdir, fraction, names):
  config = _config(
    **{'study.pool_fraction': fraction, 'selection.strategies': names}
  )
  stage.run(config, workdir)
  pool = store.read_prompts(workdir.pool)
  found = coverage.measure(config, workdir, pool, orders.read(config, workdir))
  distances = np.linalg.norm(
    _features()[:, None].astype(float) - _features()[None], axis=-1
  )
  assert {*found} == {'random', *names}
  half = int(fraction * SIZE)
  shuffled = np.random.default_rng(0).permutation(SIZE)
  for name, one in found.items():
    for place, budget in enumerate(BUDGETS):
      radius, mean = [], []
      for seed in (0, 1):
        part = np.arange(SIZE)
        if fraction < 1:
          part = np.sort(shuffled[seed * half : (seed + 1) * half])
        if name in names:
          ids = study.selected_ids(workdir, name, seed)
          picks = [int(i[1:]) for i in ids]
        else:
          picks = part[selection.random(len(part), 10, seed).indices]
        nearest = distances[part][:, picks[:budget]].min(1)
        radius.append(nearest.max())
        mean.append(nearest.mean())
      assert one.radius[place] == pytest.approx(np.mean(radius))
      assert one.mean[place] == pytest.approx(np.mean(mean))


def test_without_scores_and_selections_it_says_what_is_missing(workdir, capsys):
  workdir.scores.unlink()
  workdir.features.unlink()
  found = _planned(_config(), workdir, capsys)
  text = ' '.join(found['NOT KNOWN YET'])
  assert 'No 10 picks of random, min_margin, facility_location' in text
  assert f'edsft-jax score select --workdir={workdir.root}' in text
  assert 'No features, so no coverage' in text
  assert 'pool.heldout_path' in text
  assert 'annotation.price_per_answer' in ' '.join(
    found['PRICE OF THE ANSWERS']
  )
  words = np.mean([len(text.split()) for text in _texts()])
  cells = _row(found['WORDS TO READ, AND PER PROMPT'], '(pool mean)')
  assert cells == [f'{words * b:,.0f} ({words:.1f})' for b in BUDGETS]
  could = found['WHAT THIS STUDY COULD FIND, BY ROUGE_L']
  assert 'plan.pilot' in could[0]


def test_selections_that_are_too_short_are_missing(workdir, capsys):
  stage.run(_config(**{'study.budgets': (5,)}), workdir)
  found = _planned(_config(), workdir, capsys)
  assert 'No 10 picks of random' in found['NOT KNOWN YET'][0]
  found = _planned(_config(**{'study.budgets': (5,)}), workdir, capsys)
  assert 'picks' not in ' '.join(found['NOT KNOWN YET'])


def _detectable(variances, design, seeds, items, is_fixed):
  """STATISTICS: (t_{1 - alpha / 2m} + t_{.8}) SE, from scipy's own t."""
  from scipy import stats

  drawn = variances.drawn
  square = drawn / max(seeds, design.random_seeds) + variances.items / items
  square += drawn + variances.fixed / seeds if is_fixed else drawn / seeds
  freedom = design.num_drawn * (seeds - 1)
  level = 1 - design.alpha / (2 * design.num_tests)
  return (stats.t.ppf(level, freedom) + stats.t.ppf(0.8, freedom)) * math.sqrt(
    square
  )


@pytest.mark.parametrize('is_fixed', [False, True])
def test_power_is_that_of_the_formula_and_can_be_inverted(is_fixed):
  variances = power.Variances('stated', 0.0004, 0.0001, 0.04, 300)
  design = power.Design(3, 2, 4, 5, 0.05)
  for seeds, items in itertools.product((2, 3, 10), (50, 300)):
    assert design.detectable(
      variances, seeds, items, is_fixed
    ) == pytest.approx(_detectable(variances, design, seeds, items, is_fixed))
  assert math.isnan(design.detectable(variances, 1, 50, is_fixed))
  gain = 0.1
  seeds = design.seeds_for(gain, variances, is_fixed)
  assert _detectable(variances, design, seeds, 300, is_fixed) <= gain
  assert _detectable(variances, design, seeds - 1, 300, is_fixed) > gain
  items = design.items_for(gain, variances, 10, is_fixed)
  assert _detectable(variances, design, 10, items, is_fixed) <= gain
  assert _detectable(variances, design, 10, items - 1, is_fixed) > gain
  assert design.seeds_for(0.001, variances, is_fixed) is None
  assert design.items_for(0.001, variances, 10, is_fixed) is None


@pytest.mark.parametrize('own', [True, False])
def test_variances_of_evaluations_are_those_of_the_report(
  tmp_path, capsys, own
):
  """As configured, the study could find what the report says it could."""
  options = synthetic.config()
  pilot = synthetic.write(tmp_path / 'pilot', options)
  options.plan.sample_prompts = 0
  workdir = pilot
  if not own:
    workdir = synthetic.write(tmp_path / 'w', options)
    for path in (*workdir.runs.rglob('*.json'), *workdir.runs.rglob('*.jsonl')):
      path.unlink()
    options.plan.pilot = str(pilot.root)
  found = _planned(options, workdir, capsys)
  lines = found['WHAT THIS STUDY COULD FIND, BY ROUGE_L']
  source = 'of the cells evaluated here' if own else f'pilot {pilot.root}'
  assert source in ' '.join(lines)
  compared = comparison.compare(
    results.read_results(options, pilot), 'rouge_l', 0.95
  )
  for name, column in (('weighted_task_diversity', 0), ('min_margin', 1)):
    sizes = compared.curves[name].detectable
    for seeds, label in ((3, '3, as configured'), (5, '5'), (10, '10')):
      shown = float(_row(lines, label)[column])
      assert shown == pytest.approx(sizes[seeds], abs=6e-4)


def test_a_rate_against_random_has_randoms_variance_in_it():
  """So random is not added again, and its strategies are not independent."""
  variances = power.Variances('', 0.0004, 0.0004, 0.04, 300)
  relative = dataclasses.replace(variances, against_random=True)
  design = power.Design(4, 0, 3, 0, 0.05)
  error = statistics.Error(math.sqrt(0.0004 / 5 + 0.04 / 300), 2 * (5 - 1))
  assert design.detectable(relative, 5, 300, False) == pytest.approx(
    statistics.detectable(error, 0.05, 3)
  )
  assert design.detectable(variances, 5, 300, False) > 0


def test_a_wished_gain_names_seeds_and_items(workdir, capsys):
  store.write_parquet(
    workdir.heldout,
    pa.table(
      {
        'id': [f'h{i}' for i in range(40)],
        'prompt': ['a'] * 40,
        'response': ['b'] * 40,
      }
    ),
  )
  config = _config(
    **{
      'plan.seed_sd': 0.02,
      'plan.item_sd': 0.2,
      'plan.gain': 0.15,
      'study.pool_fraction': 0.5,
    }
  )
  found = _planned(config, workdir, capsys)
  lines = ' '.join(found['WHAT THIS STUDY COULD FIND, BY ROUGE_L'])
  variances = power.Variances('', 0.02**2, 0.02**2, 0.2**2, 40)
  design = power.Design.of(config)
  assert (design.num_drawn, design.num_fixed, design.num_tests) == (4, 0, 3)
  seeds = design.seeds_for(0.15, variances, False)
  items = design.items_for(0.15, variances, 2, False)
  assert f'To find 0.15: {seeds} seeds with 40 items, or {items} items' in lines
  assert 'stated, a standard deviation of 0.02 over seeds' in lines
  config.report.metric = 'mmlu.accuracy'
  found = _planned(config, workdir, capsys)
  lines = ' '.join(found['WHAT THIS STUDY COULD FIND, BY MMLU.ACCURACY'])
  assert 'plan.item_sd is left out' in lines
  assert f'{items}' not in lines


def test_recorded_seconds_are_not_measured_again(workdir, capsys):
  config = _config(**{'report.price_per_hour': 40.0})
  stage.run(config, workdir)
  found = _planned(config, workdir, capsys)
  times = found['TIME OF SCORING AND CHOOSING, ALL SEEDS']
  assert _row(times, 'scoring') == ['recorded', '1 min 30 s', '1.00']
  assert _row(times, 'facility_location')[0] == 'recorded'


def test_scoring_and_selection_are_measured_on_a_sample(tmp_path, capsys):
  """By the command, on the built-in pool and model."""
  config = _config(
    **{
      'pool.limit': 30,
      'scoring.max_new_tokens': 2,
      'plan.sample_prompts': 4,
      'selection.strategies': ('random', 'k_center'),
    }
  )
  workdir = store.Workdir(tmp_path / 'w')
  pipeline.run(config, workdir, pipeline.stages_asked_for(['plan']))
  text = capsys.readouterr().out
  assert re.search(r'\nscoring  +estimated  +\d', text)
  assert re.search(r'\nk_center  +estimated  +\d', text)
  assert 'Scoring: 4 prompts of all lengths took' in text
  assert not workdir.scores.exists()
  assert not workdir.selections.exists()
  page = workdir.plan.read_text('utf-8')
  for title in re.findall(r'\n\n([A-Z][A-Z, ]+)\n', text):
    assert title in page.upper()
  assert 'http' not in page


def test_the_plan_comes_last_and_with_the_pool():
  assert pipeline.stages_asked_for(['plan']) == ['pool', 'plan']
  assert pipeline.stages_asked_for(['plan', 'select']) == [
    'pool',
    'select',
    'plan',
  ]
  assert 'plan' not in pipeline.stages_asked_for([])


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'plan.gain': -1.0}, r'plan\.gain is -1\.0'),
    ({'plan.item_sd': 0.1}, r'plan\.item_sd is set without plan\.seed_sd'),
    ({'plan.pilot': 'nowhere'}, r'plan\.pilot=nowhere has no config\.json'),
    ({'plan.pilot': 'x', 'plan.seed_sd': 0.1}, 'both set'),
    ({'plan.sample_prompts': -1}, r'plan\.sample_prompts is -1'),
  ],
)
def test_bad_options_name_themselves(workdir, options, says):
  with pytest.raises(errors.InputError, match=says):
    plan.check(_config(**options), workdir, NOTHING)


def test_a_pilot_without_evaluations_is_named(workdir, tmp_path):
  config = _config(**{'plan.pilot': str(tmp_path / 'pilot')})
  pilot = store.Workdir(tmp_path / 'pilot')
  store.write_parquet(pilot.pool, store.read_parquet(workdir.pool))
  store.write_json(pilot.config, config.to_dict())
  with pytest.raises(errors.InputError, match='has no evaluations'):
    plan.run(config, workdir)


def test_it_counts_what_is_to_be_finetuned(workdir, capsys):
  config = _config(
    **{
      'study.full_pool_seeds': (0,),
      'finetuning.epochs': 2,
      'finetuning.batch_size': 4,
    }
  )
  name = 'TIME OF FINETUNING AND EVALUATING, ALL CELLS'
  lines = ' '.join(_planned(config, workdir, capsys)[name])
  # 4 strategies x 2 seeds x (5 and 10 answers), and 60 prompts once.
  assert '17 cells with 360 examples in 2 epochs, 94 steps' in lines
  assert 'No step has been recorded' in lines
  assert 'No cell has been evaluated' in lines


def test_it_tells_how_long_the_other_cells_take(workdir, capsys):
  config = _config(
    **{
      'study.full_pool': False,
      'finetuning.epochs': 1,
      'finetuning.batch_size': 5,
      # So that the evaluation below is not read for variances.
      'plan.seed_sd': 0.1,
    }
  )
  for name, step, seconds in (
    ('random-k5-seed0', 1, 10.0),
    ('random-k10-seed0', 2, 30.0),
  ):
    run = workdir.run(name)
    store.write_jsonl(
      run.timing,
      [
        {'step': 0, 'seconds': 1.0, 'tokens_per_second': 1.0},
        {'step': step, 'seconds': seconds, 'tokens_per_second': 100.0 * step},
      ],
    )
  run = workdir.run('random-k5-seed0')
  store.write_json(run.evaluation('heldout'), {})
  store.write_json(run.evaluation_timing('heldout'), {'seconds': 7.0})
  # The command that evaluated it was killed, another one found its work done.
  manifest = store.Manifest(workdir)
  manifest.begin('evaluate', {})
  manifest.finish('evaluate', {}, seconds=2.0)
  name = 'TIME OF FINETUNING AND EVALUATING, ALL CELLS'
  lines = ' '.join(_planned(config, workdir, capsys)[name])
  assert '16 cells with 120 examples in 1 epoch, 24 steps.' in lines
  # 21 steps at 40 / 3 s.
  assert '3 steps took 40.0 s (150 tokens/s), so' in lines
  assert 'the others take 4 min 40 s' in lines
  # 16 cells, the model itself among them.
  assert '1 cell took 7.0 s, so the others take 1 min 52 s' in lines
