"""The report of made-up studies: the page, the files next to it, the table."""

import csv
import itertools
import re
import shutil

from matplotlib import figure as figure_lib
import numpy as np
from places import python_output
import pyarrow as pa
import pytest
import synthetic_study as synthetic

from edsft_jax import errors, reporting, store, study
from edsft_jax.reporting import (
  account,
  comparison,
  conclusions,
  exhibits,
  money,
  page,
  plots,
  results,
  savings,
  statistics,
  timing,
  wording,
)
from edsft_jax.reporting.plots import efficiency, style
from edsft_jax.strategies.registry import STRATEGIES

SAME = 'not distinguishable from random'
NOTHING = frozenset()
MATCHED = 'random_length_matched'


def read_csv(path):
  with path.open(encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def reported(tmp_path_factory):
  """The whole synthetic study with its report; tests only read it."""
  options = synthetic.config()
  workdir = synthetic.write(tmp_path_factory.mktemp('study'), options)
  reporting.check(options, workdir, NOTHING)
  reporting.run(options, workdir)
  return options, workdir


def html(workdir):
  """The page without its scripts."""
  text = workdir.report.read_text(encoding='utf-8')
  return re.sub('(?s)<script>.*?</script>', '', text)


# The page.


def test_the_page_loads_nothing(reported):
  """test_browser.py looks at what the scripts ask for."""
  text = reported[1].report.read_text('utf-8')
  assert set(re.findall('<script[^>]*>', text)) == {
    '<script>',
    '<script type="application/json" id="curves-data">',
    '<script type="application/json" id="pool-data">',
    '<script type="application/json" id="efficiency-chart-model">',
  }
  text = re.sub('(?s)<script.*?</script>', '', text)
  links = re.findall(r'(?:src|href|srcset|action)\s*=\s*"([^"]*)"', text)
  assert links
  assert {link[0] for link in links} <= {'#'}
  anchors = {link[1:] for link in links}
  assert anchors <= set(re.findall(r'id="([^"]*)"', text))
  for loader in ('https:', '//fonts', '@import'):
    assert loader not in text
  # Clip paths of the plots.
  assert set(re.findall(r'url\((.)', text)) <= {'#'}


def test_nothing_of_the_report_differs_from_what_its_inputs_give(reported):
  """test_differences.py has reports that do differ."""
  assert reporting.differences(*reported) == []


def test_every_plot_is_next_to_the_page_with_its_data(reported):
  folder = reported[1].report.parent
  text = html(reported[1])
  names = re.findall('<figure id="([^"]*)">', text)
  assert {path.stem for path in folder.glob('*.pdf')} == {*names}
  assert {*names} == {
    'forest',
    'label_efficiency_loss',
    'label_efficiency_exact_match',
    'label_efficiency_rouge_l',
    'lengths_of_picks',
    'overlap',
    'gains_by_width',
    'selection_gains',
    'task_allocation',
    'task_quality',
    'stage_seconds',
  }
  starts = {'.png': b'\x89PNG', '.pdf': b'%PDF', '.svg': b'<?xml', '.csv': b''}
  captions = (folder / 'figures.tex').read_text('utf-8')
  for name in names:
    for suffix, start in starts.items():
      content = (folder / f'{name}{suffix}').read_bytes()
      assert content.startswith(start), name
    assert f'{{{name}.pdf}}' in captions
    # Type 3 fonts are refused by publishers.
    assert b'/Type3' not in (folder / f'{name}.pdf').read_bytes()
  # Text of the plots is text, in the colours of the page.
  plot = re.search('(?s)<figure id="forest">.*?</figure>', text)[0]
  assert '>facility_location</text>' in plot
  assert 'var(--c-0072b2)' in plot
  assert '#0072b2' not in plot
  assert '#0072b2' in (folder / 'forest.svg').read_text('utf-8')


@pytest.mark.parametrize('metric', synthetic.METRICS)
def test_efficiency_csv_is_the_evaluations(reported, metric):
  _, workdir = reported
  rows = read_csv(workdir.report.with_name(f'label_efficiency_{metric}.csv'))
  files = list(workdir.runs.glob('*/evaluations/heldout/eval.json'))
  expected = {
    (e['strategy'], e['budget'], e['seed']): e['metrics'][metric]['value']
    for e in map(store.read_json, files)
  }
  assert len(rows) == len(files) == 4 * 3 * 3 + 3 + 1
  assert expected == {
    (row['strategy'], int(row['budget']), int(row['seed'])): float(row[metric])
    for row in rows
  }


def test_the_other_csvs(reported):
  _, workdir = reported
  folder = workdir.report.parent
  first = read_csv(folder / 'task_quality.csv')[0]
  cell = study.Cell(first['strategy'], int(first['budget']), int(first['seed']))
  path = workdir.run(cell.name).evaluation('heldout')
  task = store.read_json(path)['by_task'][first['task']]
  assert cell.budget == 80
  for name, mean in task.items():
    assert float(first[name]) == mean['value']
    assert int(first['num_prompts']) == mean['n']

  rows = store.read_jsonl(workdir.selection('min_margin', 1))
  allocated = {
    row['task']: int(row['picked'])
    for row in read_csv(folder / 'task_allocation.csv')
    if (row['strategy'], row['seed']) == ('min_margin', '1')
  }
  assert allocated == {
    task: sum(row['task'] == task for row in rows) for task in synthetic.TASKS
  }

  gains = read_csv(folder / 'selection_gains.csv')
  assert {row['strategy'] for row in gains} == {'facility_location'}
  assert [float(row['gain']) for row in gains[:2]] == [30.0, 15.0]

  curves = store.read_json(workdir.gains_curves)
  widths = read_csv(folder / 'gains_by_width.csv')
  assert [float(row['gain']) for row in widths] == [
    gain for curve in curves['curves'] for gain in curve
  ]

  seconds = read_csv(folder / 'stage_seconds.csv')
  assert seconds[1] == {'stage': 'score', 'seconds': '12.5'}


def test_comparisons_csv_has_curves_and_budgets(reported):
  """test_procedure.py says what the numbers must be."""
  options, workdir = reported
  found = results.read_results(options, workdir)
  rows = read_csv(workdir.report.with_name('comparisons.csv'))
  assert len(rows) == 3 * (3 + 3 * 3)
  for metric in synthetic.METRICS:
    compared = comparison.compare(found, metric, 0.95)
    expected = {**{(s, 0): c for s, c in compared.curves.items()}}
    expected |= compared.budgets
    of_metric = [row for row in rows if row['metric'] == metric]
    assert len(of_metric) == len(expected)
    for row in of_metric:
      one = expected[row['strategy'], int(row['budget'] or 0)]
      assert row['verdict'] == one.verdict.value
      assert float(row['difference']) == one.difference.mean
      assert float(row['low']) == one.difference.low
      assert float(row['corrected_p']) == one.p_value
      assert float(row['detectable_10']) == one.detectable[10]
  verdicts = {row['verdict'] for row in rows}
  assert verdicts == {SAME, 'better than random', 'worse than random'}


def test_savings_csv_says_what_the_page_says(reported):
  _, workdir = reported
  rows = read_csv(workdir.report.with_name('savings.csv'))
  assert len(rows) == 3 * 3
  for row in rows:
    if row['metric'] != 'rouge_l':
      continue
    assert row['random_answers'] == '40'
    answers = float(row['answers'])
    assert float(row['low']) <= answers <= float(row['high'])
    if 0 < answers < float('inf'):
      assert float(row['saving']) == pytest.approx(1 - answers / 40)
  (row,) = (
    row
    for row in rows
    if (row['metric'], row['strategy']) == ('rouge_l', 'min_margin')
  )
  assert f'{float(row["answers"]):.0f} (' in html(workdir)


def test_the_threshold_is_one_minus_the_confidence(reported):
  options, workdir = reported
  found = results.read_results(options, workdir)
  p_value = (
    comparison.compare(found, 'rouge_l', 0.95).curves['min_margin'].p_value
  )
  assert 0.05 < p_value < 1
  for alpha, verdict in (
    (0.999 * p_value, comparison.Verdict.SAME),
    (1.001 * p_value, comparison.Verdict.BETTER),
  ):
    compared = comparison.compare(found, 'rouge_l', 1 - alpha)
    assert compared.curves['min_margin'].verdict is verdict


def test_the_wording_appears_where_it_should_and_only_there(reported):
  """min_margin alone: as a verdict, in each metric's table, in asides."""
  _, workdir = reported
  rows = read_csv(workdir.report.with_name('comparisons.csv'))
  same = [row for row in rows if row['verdict'] == SAME]
  assert {row['strategy'] for row in same} == {'min_margin'}
  curves = [row['metric'] for row in same if not row['budget']]
  # The note under the verdicts has the words, too.
  shown = curves.count('rouge_l') + len(same) + 1
  assert html(workdir).count(SAME) == shown


def test_the_wording_is_absent_where_all_differ(tmp_path, quick):
  options = synthetic.config(
    selection__strategies=('random', 'facility_location')
  )
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  text = html(workdir).partition('If a strategy is not')
  assert SAME not in text[0]
  assert 'facility_location is better than random over the whole' in text[0]


def test_nothing_distinguishable_is_said_so(tmp_path, quick):
  options = synthetic.config(selection__strategies=('min_margin', 'random'))
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  words = 'No strategy is distinguishable from random over the whole curve'
  assert words in html(workdir)
  assert words in reporting.summary(options, workdir)


def test_a_width_whose_first_pick_covers_most_of_the_pool_is_marked(reported):
  curves = store.read_json(reported[1].gains_curves)
  words = 'A single prompt covers most of the pool'
  usual = exhibits.gains_by_width(curves)
  assert words not in usual.note
  assert '0.3 (decays)' in usual.alt
  where = curves['widths'].index(0.3)
  curves['curves'][where][0] = 0.84 * curves['num_prompts']
  marked = exhibits.gains_by_width(curves)
  assert '0.3 (first pick 84%)' in marked.alt
  assert words not in marked.note
  marked = exhibits.gains_by_width({**curves, 'width': 0.3, 'suggested': 0.3})
  last = curves['curves'][where][-1]
  assert (
    'At this width, the first pick covers 84% of the prompts and the last '
    f'gains {last:.2f}. {words}' in marked.note
  )


def test_what_was_run_is_on_the_page(reported):
  text = html(reported[1])
  assert 'Width 0.1 was used, as suggested by the curves.' in text
  assert '<td>duplicates</td><td>1,234</td>' in text
  assert re.search('<td>notes</td><td[^>]*>raw; no pad</td>', text)
  assert '<td>empty</td>' not in text
  assert '&#34;weight_decay&#34;: 0.0' in text
  assert (
    f'numpy {store.versions()["numpy"]}, devices {synthetic.DEVICES}</p>'
    in text
  )
  assert (
    'For random and weighted_task_diversity, intervals cover the random choice'
    in text
  )
  assert (
    'For min_margin and facility_location, this is the result of a single list '
    'of prompts' in text
  )
  assert (
    'All seeds of min_margin and facility_location have the same list' in text
  )


def test_text_from_outside_is_escaped(tmp_path, quick):
  options = synthetic.config(report__title='<script>alert(1)</script>')
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  assert '<script>alert' not in html(workdir)
  assert '&lt;script&gt;' in html(workdir)


def test_parts_of_the_pool_are_on_the_page(tmp_path, quick):
  options = synthetic.config(
    study__pool_fraction=0.25, study__random_seeds=(0, 1, 2, 3)
  )
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  text = html(workdir)
  assert 'a single list of prompts' not in text
  assert 'have the same list of prompts' not in text
  assert 'Each seed has its own part of the pool (25%)' in text
  assert '25% of the pool for each seed, without overlap' in text
  assert '0, 1, 2, 3 (random); 0, 1, 2 (min_margin, ' in text
  found = results.read_results(options, workdir)
  test = comparison.compare(found, 'rouge_l', 0.95).levels[20].tests
  assert test['min_margin'].random_seeds == 4
  # Two budgets' seeds of four strategies: 3 + 2 + 2 + 2.
  assert test['min_margin'].difference.error.freedom == 9


def test_lists_differ_with_a_random_start_or_with_parts():
  row = STRATEGIES['k_center']
  assert not study.lists_differ(synthetic.config(), row)
  drawn = synthetic.config(selection__k_center_first='random')
  assert study.lists_differ(drawn, row)
  assert study.lists_differ(synthetic.config(study__pool_fraction=0.3), row)


def test_prices_turn_savings_into_money(tmp_path, quick):
  options = synthetic.config(annotation__price_per_answer=2.0)
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  found = results.read_results(options, workdir)
  saving = comparison.compare(found, 'rouge_l', 0.95).savings['min_margin']
  wanted = 2.0 * (40 - saving.answers), 2.0 * (40 - saving.high)
  text = html(workdir)
  assert 'Money saved' in text
  assert f'{wanted[0]:,.2f} ({wanted[1]:,.2f} to '.replace('-', '−') in text
  # Its picks have two words each.
  selections = results.read_selections(options, workdir)
  options.annotation.price_per_word = 0.5
  pool = store.read_prompts(workdir.pool)
  price = money.prices(
    options, account.lengths(pool, {}, selections, found.budgets)
  )
  assert price['random'] == 2.0 + 0.5 * 2


def test_what_choosing_cost_is_on_the_page(tmp_path, quick):
  options = synthetic.config(report__price_per_hour=7200.0)
  workdir = synthetic.write(tmp_path, options)
  path = workdir.selection_record('facility_location')
  store.write_json(path, {**store.read_json(path), 'seconds': 4.5})
  reporting.run(options, workdir)
  text = html(workdir)
  rows = re.findall('(?s)<tr>.*?</tr>', text[text.index('Cost of choosing') :])
  cells = [re.findall(r'[\w.,]+(?=<)', row) for row in rows]
  assert ['pool', '12.5', '25.00'] in cells
  assert ['facility_location', '4.5', 'scoring', '9.00'] in cells
  # 14 s of scoring and choosing.
  assert 'At 7,200.00 per hour, that is 28.00.' in text
  assert 'that is 28.00.' in reporting.summary(options, workdir)
  options.report.price_per_hour = 0.5
  assert 'that is less than 0.01.' in reporting.summary(options, workdir)
  for price in (-1.0, float('inf')):
    options.report.price_per_hour = price
    with pytest.raises(errors.InputError, match=r'report\.price_per_hour'):
      reporting.check(options, workdir, NOTHING)


def test_the_lengths_of_picks_are_next_to_their_quality(tmp_path, quick):
  options = synthetic.config(
    selection__strategies=('random', 'min_margin'), study__seeds=(0, 1)
  )
  workdir = synthetic.write(tmp_path, options)
  count = range(synthetic.POOL_SIZE)
  store.write_parquet(
    workdir.pool,
    pa.table(
      {
        'id': [f'p{i}' for i in count],
        'prompt': ['word ' * (1 + i) for i in count],
        'task': ['t'] * len(count),
      }
    ),
  )
  store.write_parquet(
    workdir.responses,
    pa.table(
      {
        'id': [f'p{i}' for i in count if i % 2],
        'response': ['two words' for i in count if i % 2],
      }
    ),
  )
  reporting.run(options, workdir)
  rows = read_csv(workdir.report.with_name('lengths.csv'))
  assert len(rows) == 2 * 3
  for row in rows:
    picks = [
      int(pick['id'][1:])
      for seed in (0, 1)
      for pick in store.read_jsonl(workdir.selection(row['strategy'], seed))[
        : int(row['budget'])
      ]
    ]
    words = sum(1 + i for i in picks) / len(picks)
    assert float(row['prompt_words']) == pytest.approx(words)
    assert float(row['answer_words']) == 2
    assert f'{words:,.0f} words per prompt, 2 per answer' in html(workdir)
  store.write_parquet(
    workdir.responses,
    pa.table({'id': ['p1'], 'response': ['two words']}),
  )
  # The answers are among the inputs of the page.
  reporting.run(options, workdir)
  assert read_csv(workdir.report.with_name('lengths.csv')) != rows


def _with_control(tmp_path, others=('random',), effect=0.0):
  """A study of facility_location and its control."""
  options = synthetic.config(
    selection__strategies=(*others, 'facility_location', MATCHED),
    study__seeds=(0, 1, 2, 3),
  )
  workdir = synthetic.write(tmp_path, options)
  for cell in study.cells(options):
    if cell.strategy == MATCHED:
      path = workdir.run(cell.name).evaluation('heldout')
      value = store.read_json(path)['metrics']['rouge_l']['value'] + effect
      synthetic.write_evaluation(
        workdir,
        synthetic.evaluation(cell.strategy, cell.budget, cell.seed, value),
      )
  reporting.run(options, workdir)
  found = results.read_results(options, workdir)
  return workdir, found, comparison.compare(found, 'rouge_l', 0.95)


def test_a_control_is_a_test_of_its_own(tmp_path, quick):
  workdir, found, compared = _with_control(tmp_path)
  one = compared.control
  means = {
    name: np.mean([found.values(name, b, 'rouge_l') for b in found.budgets])
    for name in found.strategies
  }
  wanted = means['facility_location'] - means[MATCHED]
  assert one.difference.mean == pytest.approx(wanted)
  # A single test, with the variance of both strategies that are drawn.
  assert one.p_value == one.difference.p_value
  assert one.difference.error.freedom == 2 * 3
  primary = compared.curves['facility_location']
  assert {*compared.curves} == {'facility_location', MATCHED}
  assert primary.p_value >= primary.difference.p_value
  text = html(workdir)
  assert f'Control: facility_location is better than {MATCHED}' in text
  assert f'minus {MATCHED}: {wording.signed(wanted)}' in text
  prose = ' '.join(text.split())
  assert 'its savings. The comparison with' in prose
  assert 'not part of the correction for several strategies' in prose
  (row,) = [
    row
    for row in read_csv(workdir.report.with_name('comparisons.csv'))
    if row['minus'] == MATCHED and row['metric'] == 'rouge_l'
  ]
  assert row['verdict'] == f'better than {MATCHED}'
  assert float(row['difference']) == one.difference.mean


def test_a_control_may_explain_the_strategy_and_needs_no_random(
  tmp_path, quick
):
  workdir, _, compared = _with_control(tmp_path, others=(), effect=0.12)
  assert not compared.control.verdict.conclusive
  assert compared.control.detectable
  assert 'Control: facility_location is not distinguish' in html(workdir)


def test_without_a_control_none_is_mentioned(reported):
  assert 'Control:' not in html(reported[1])
  assert 'is a control' not in html(reported[1])
  compared = comparison.compare(
    results.read_results(*reported), 'rouge_l', 0.95
  )
  assert compared.control is None


@pytest.mark.parametrize(
  ('needed', 'share', 'amount'),
  [
    # Prompts that this strategy picks cost twice as much as random's.
    (
      (30.0, 0.0, 35.0),
      '25% (12% to more than 50%)',
      '−20.00 (−30.00 to more than 0.00)',
    ),
    (
      (float('inf'), 35.0, float('inf')),
      'less than −100% (less than −100% to 12%)',
      'less than −120.00 (less than −120.00 to −30.00)',
    ),
    ((0.0, 0.0, 0.0), 'more than 50%', 'more than 0.00'),
    ((30.0, 0.0, float('inf')), 'undetermined', 'undetermined'),
  ],
)
def test_savings_and_losses_are_open_where_answers_are(needed, share, amount):
  budgets = [20, 40, 80]
  saving = savings.Saving(savings.PARALLEL, 40, *needed)
  assert wording.saving_interval(saving, budgets) == share
  saved = money.saved(saving, 'a', {'random': 1.0, 'a': 2.0})
  assert wording.money_interval(saving, budgets, saved) == amount
  assert money.saved(saving, 'a', {}) is None


def test_answers_are_open_beyond_the_budgets():
  saving = savings.Saving(savings.PARALLEL, 40, 30.0, 0.0, 35.0)
  budgets = [20, 40, 80]
  assert wording.answers_interval(saving, budgets) == '30 (fewer than 20 to 35)'


# Partial studies.


def test_absent_cells_are_named_and_the_rest_is_shown(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  for name in ('random-k40-seed1', 'random-k40-seed2', 'min_margin-k80-seed0'):
    shutil.rmtree(workdir.runs / name)
  shutil.rmtree(workdir.runs / f'full_pool-k{synthetic.POOL_SIZE}-seed0')
  reporting.run(options, workdir)
  lines = [
    'random at 40 answers: seeds 1, 2',
    'min_margin at 80 answers: seed 0',
    'full_pool at 340 answers: seed 0',
  ]
  summary = reporting.summary(options, workdir)
  for line in lines:
    assert f'Not evaluated yet: {line}' in summary
  assert summary.count('Not evaluated yet') == len(lines)
  table = html(workdir).partition('id="absent"')[2].partition('</table>')[0]
  rows = re.findall('(?s)<tr>.*?</tr>', table.partition('<tbody>')[2])
  assert [re.findall('>([^<>\n]+)<', row) for row in rows] == [
    ['random', '40', '1, 2', 'not finetuned'],
    ['min_margin', '80', '0', 'not finetuned'],
    ['full_pool', '340', '0', 'not finetuned'],
  ]
  assert '2 of 3 seeds' in html(workdir)
  rows = read_csv(workdir.report.with_name('comparisons.csv'))
  # The other strategies' seeds show the variance, so budgets are tested.
  tested = {row['budget'] for row in rows if row['corrected_p']}
  assert tested == {'', '20', '40', '80'}
  counts = store.Manifest(workdir).counts('report')
  assert counts['absent'] == 4


def test_the_full_pool_may_have_other_seeds(tmp_path, quick):
  options = synthetic.config(
    study__full_pool_seeds=(1,),
    report__note='Prompts by <us>, Apache-2.0',
  )
  workdir = synthetic.write(tmp_path, options)
  assert [path.name for path in workdir.runs.glob('full_pool-*')] == [
    f'full_pool-k{synthetic.POOL_SIZE}-seed1'
  ]
  reporting.run(options, workdir)
  assert 'full_pool at' not in html(workdir)
  assert '<p class="subtitle">Prompts by &lt;us&gt;, Apache-2.0</p>' in html(
    workdir
  )


def test_a_pool_that_is_not_all_answered_misses_no_full_pool(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  for path in workdir.runs.glob('full_pool-*'):
    shutil.rmtree(path)
  assert 'full_pool' in reporting.summary(options, workdir)
  answered = store.read_parquet(workdir.responses)
  store.write_parquet(workdir.responses, answered.slice(1))
  assert 'full_pool' not in reporting.summary(options, workdir)
  reporting.run(options, workdir)
  assert 'full_pool at' not in html(workdir)


def test_cells_of_another_study_are_not_shown(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  fewer = synthetic.config(study__budgets=(20, 40), study__full_pool=False)
  reporting.run(fewer, workdir)
  assert '80 answers' not in html(workdir)
  rows = read_csv(workdir.report.with_name('label_efficiency_loss.csv'))
  assert {row['budget'] for row in rows} == {'20', '40', '0'}


def test_a_random_budget_that_is_absent(tmp_path, quick):
  """Neither its cells nor whole curves are compared; other budgets are."""
  options = synthetic.config(
    selection__strategies=('random', 'facility_location')
  )
  workdir = synthetic.write(tmp_path, options)
  for seed in (0, 1, 2):
    shutil.rmtree(workdir.runs / f'random-k80-seed{seed}')
  found = results.read_results(options, workdir)
  compared = comparison.compare(found, 'rouge_l', 0.95)
  verdicts = {key[1]: one.verdict for key, one in compared.budgets.items()}
  assert verdicts[80] is comparison.Verdict.NO_RANDOM
  assert comparison.Verdict.NO_RANDOM not in (verdicts[20], verdicts[40])
  curve = compared.curves['facility_location']
  assert curve.verdict is comparison.Verdict.NO_RANDOM
  assert not compared.savings
  reporting.run(options, workdir)
  assert comparison.Verdict.NO_RANDOM.value in html(workdir)


def test_a_curve_without_a_complete_seed_is_not_tested(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  for budget, seed in ((20, 0), (40, 1), (80, 2)):
    shutil.rmtree(workdir.runs / f'min_margin-k{budget}-seed{seed}')
  found = results.read_results(options, workdir)
  compared = comparison.compare(found, 'rouge_l', 0.95)
  verdict = compared.curves['min_margin'].verdict
  assert verdict is comparison.Verdict.INCOMPLETE
  assert compared.budgets['min_margin', 20].p_value is not None
  reporting.run(options, workdir)
  assert comparison.Verdict.INCOMPLETE.value in html(workdir)


def test_the_bound_of_facility_location_is_told_for_each_budget(reported):
  text = ' '.join(html(reported[1]).split())
  for budget in (20, 40, 80):
    assert (
      f'facility_location at {budget} answers reaches {9 * budget}.0, and no '
      f'choice of that many prompts can exceed {10 * budget}.0: it is at least '
      '90.0% of the optimum.'
    ) in text
  assert '999 answers' not in text
  assert text.count('of the optimum.') == 3


def test_no_random_no_tasks_no_curves_one_budget(tmp_path):
  options = synthetic.config(
    selection__strategies=('facility_location',), study__budgets=(40,)
  )
  workdir = synthetic.write(tmp_path, options, tasks=False)
  workdir.gains_curves.unlink()
  reporting.run(options, workdir)
  text = html(workdir)
  assert 'Random is not among the strategies' in text
  assert 'The pool has no task labels' in text
  assert 'The held-out prompts have no tasks on record' in text
  assert 'This study has no gains curves' in text
  assert SAME not in text
  assert 'class="wide cards"' not in text


def test_tasks_found_by_k_means_are_not_taken_for_labels(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options, tasks=False)
  reporting.run(options, workdir)
  text = html(workdir)
  rows = re.findall(r'<tr><th scope="row">(.*?)</th>', text)
  marked = [row for row in rows if 'tasks found by k-means' in row]
  assert marked == [row for row in rows if 'weighted_task_diversity' in row]
  # Of the verdicts, of the headline metric, of each metric's comparisons, and
  # of the savings by the other metrics.
  count = len(synthetic.METRICS)
  assert len(marked) == 2 + (1 + 3) * count + (count - 1)
  tasks = text.partition('<h2 id="tasks">')[2].partition('<h2')[0]
  assert 'The tasks of weighted_task_diversity are 1,234 clusters' in tasks
  run = text.partition('<h2 id="run">')[2]
  assert 'found by k-means: 1,234 clusters of the features' in run


def test_labels_are_not_called_clusters(reported):
  assert 'k-means' not in html(reported[1])


def test_one_seed_says_that_it_has_no_interval(tmp_path, quick):
  options = synthetic.config(study__seeds=(7,))
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  text = html(workdir)
  assert 'Only one seed was run, so intervals cannot be computed' in text
  assert '±' not in text
  assert comparison.Verdict.ONE_SEED.value in text
  assert 'No strategy can be compared with random yet' in text


@pytest.mark.filterwarnings('error')
def test_seeds_that_agree_in_everything(tmp_path):
  """No spread: equal is the same as random, different is not tested."""
  options = synthetic.config(
    selection__strategies=('random', 'min_margin', 'facility_location')
  )
  workdir = synthetic.write(tmp_path, options)
  for cell in study.cells(options):
    value = 0.5 if cell.strategy == 'facility_location' else 0.25
    synthetic.write_evaluation(
      workdir,
      synthetic.evaluation(cell.strategy, cell.budget, cell.seed, value),
    )
  found = results.read_results(options, workdir)
  compared = comparison.compare(found, 'rouge_l', 0.95)
  assert compared.budgets['min_margin', 20].verdict is comparison.Verdict.SAME
  for untested in (
    compared.budgets['facility_location', 20],
    compared.curves['facility_location'],
  ):
    assert untested.verdict is comparison.Verdict.NO_SPREAD
    assert untested.p_value is None
  reporting.run(options, workdir)


# Made again only when something changed.


def test_unchanged_inputs_are_not_read_twice(tmp_path, quick, monkeypatch):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  before = workdir.manifest.read_bytes()
  monkeypatch.setattr(page, 'make', None)
  reporting.run(options, workdir)
  assert workdir.manifest.read_bytes() == before


@pytest.mark.parametrize(
  'change',
  ['evaluation', 'absent', 'selection', 'counts', 'option', 'lost file'],
)
def test_a_change_makes_the_page_again(tmp_path, quick, change):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  stamp = workdir.report.stat().st_mtime_ns
  if change == 'evaluation':
    contents = synthetic.evaluation('random', 20, 0, 0.9)
    synthetic.write_evaluation(workdir, contents)
  elif change == 'absent':
    shutil.rmtree(workdir.runs / 'random-k20-seed0')
  elif change == 'selection':
    rows = store.read_jsonl(workdir.selection('random', 0))
    store.write_jsonl(workdir.selection('random', 0), rows[::-1])
  elif change == 'counts':
    store.Manifest(workdir).finish('pool', {'quarantined': 77})
  elif change == 'option':
    options.report.metric = 'loss'
  else:
    workdir.report.with_name('stage_seconds.csv').unlink()
  reporting.run(options, workdir)
  assert workdir.report.stat().st_mtime_ns > stamp
  if change == 'evaluation':
    rows = read_csv(workdir.report.with_name('label_efficiency_rouge_l.csv'))
    assert float(rows[0]['rouge_l']) == 0.9
  if change == 'option':
    assert '<h2 id="headline">Loss by strategy' in html(workdir)


def test_plots_of_an_earlier_study_go(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  assert workdir.report.with_name('gains_by_width.png').exists()
  workdir.gains_curves.unlink()
  reporting.run(options, workdir)
  assert not workdir.report.with_name('gains_by_width.png').exists()
  assert not workdir.report.with_name('gains_by_width.csv').exists()


def test_importing_the_stage_loads_no_plotting():
  code = (
    'import sys, edsft_jax.reporting; '
    "print([m for m in ('matplotlib', 'jinja2', 'scipy') if m in sys.modules])"
  )
  assert python_output('-c', code).strip() == '[]'


# Bad input.


@pytest.mark.parametrize(
  ('option', 'value', 'message'),
  [
    ('report__metric', 'rouge', r"report.metric 'rouge'.*'rouge_l'"),
    ('report__metric', 'xyz', r"report.metric 'xyz'.*loss, exact_match"),
    ('report__confidence', 1.0, 'report.confidence is 1.0'),
    ('report__confidence', 0.0, 'report.confidence is 0.0'),
    ('report__confidence', float('nan'), 'report.confidence is nan'),
  ],
)
def test_bad_options_are_named(reported, option, value, message):
  options = synthetic.config(**{option: value})
  with pytest.raises(errors.InputError, match=message):
    reporting.check(options, reported[1], NOTHING)


def test_nothing_to_report_on_names_the_stage_to_run(tmp_path):
  options = synthetic.config()
  workdir = store.Workdir(tmp_path)
  with pytest.raises(errors.InputError, match='run the pool stage first'):
    reporting.run(options, workdir)
  synthetic.write(tmp_path, options)
  shutil.rmtree(workdir.runs)
  with pytest.raises(errors.InputError, match='run the evaluate stage first'):
    reporting.run(options, workdir)
  assert not workdir.report.parent.exists()
  reporting.check(options, workdir, frozenset({'evaluate'}))
  reporting.check(
    options,
    store.Workdir(tmp_path / 'new'),
    frozenset({'pool', 'evaluate'}),
  )


@pytest.mark.parametrize(
  'text',
  [
    '{"strategy": "random", "bud',
    '{"strategy": "random", "budget": 20, "seed": 0}',
    '[]',
  ],
)
def test_a_broken_evaluation_is_named(tmp_path, text):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  path = workdir.run('random-k20-seed0').evaluation('heldout')
  path.write_text(text, encoding='utf-8')
  with pytest.raises(errors.InputError, match=r'random-k20-seed0.*delete it'):
    reporting.run(options, workdir)
  assert not workdir.report.exists()


def test_an_evaluation_in_the_wrong_folder_is_named(tmp_path):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  source = workdir.run('random-k20-seed1').evaluation('heldout')
  shutil.copy(source, workdir.run('random-k20-seed0').evaluation('heldout'))
  with pytest.raises(errors.InputError, match='belongs to cell random-k20-se'):
    reporting.run(options, workdir)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda rows: None, 'items.jsonl is missing'),
    (lambda rows: [{'id': 'h0'}], 'no complete items'),
    (lambda rows: rows[1:], 'has a loss of'),
    (
      lambda rows: [{**row, 'id': f'x{row["id"]}'} for row in rows],
      'has other items than',
    ),
  ],
)
def test_items_that_do_not_belong_are_named(tmp_path, change, message):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  path = workdir.run('random-k40-seed1').items('heldout')
  rows = change(store.read_jsonl(path))
  path.unlink()
  if rows is not None:
    store.write_jsonl(path, rows)
  with pytest.raises(errors.InputError, match=message):
    reporting.run(options, workdir)


def test_a_metric_that_is_not_a_number_is_named(tmp_path):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  contents = synthetic.evaluation('random', 20, 0, 0.4, loss=float('nan'))
  path = workdir.run('random-k20-seed0').evaluation('heldout')
  store.write_json(path, contents)
  with pytest.raises(errors.InputError, match='a metric that is not a number'):
    reporting.run(options, workdir)


def test_a_workdir_of_the_old_form_says_what_to_run(tmp_path):
  """Before there were tasks, a cell had one eval.json in its own folder."""
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  run = workdir.run('random-k20-seed0')
  shutil.rmtree(run.evaluations)
  store.write_json(run.old_evaluation[0], {'metrics': {'loss': 1.0}})
  for call in (
    lambda: reporting.check(options, workdir, frozenset()),
    lambda: reporting.run(options, workdir),
  ):
    with pytest.raises(
      errors.InputError, match='run the evaluate stage, which'
    ):
      call()
  # Of a command that evaluates first there is nothing to say.
  reporting.check(options, workdir, frozenset({'evaluate'}))


def test_versions_of_a_task_are_not_mixed(tmp_path):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  contents = synthetic.evaluation('random', 20, 0, 0.4)
  synthetic.write_evaluation(workdir, {**contents, 'version': 2})
  with pytest.raises(errors.InputError, match='different versions of the task'):
    reporting.run(options, workdir)


def test_a_new_task_is_shown_with_what_its_file_says(tmp_path, quick):
  """The report knows no task; an older one's evaluations stay as they are."""
  options = synthetic.config(report__metric='quiz.accuracy')
  workdir = synthetic.write(tmp_path, options)
  for path in workdir.runs.glob('*/evaluations/heldout/eval.json'):
    synthetic.write_evaluation(workdir, _quiz(store.read_json(path)))
  reporting.run(options, workdir)
  html = workdir.report.read_text('utf-8')
  assert 'Quiz right by strategy and answers bought' in html
  assert 'ROUGE-L' in html
  assert workdir.report.with_name('label_efficiency_quiz.accuracy.csv').exists()
  options.report.metric = 'quiz.acuracy'
  with pytest.raises(errors.InputError, match=r"did you mean 'quiz\.accuracy'"):
    reporting.check(options, workdir, frozenset())


def _quiz(cell):
  """An evaluation of the same cell on another task."""
  accuracy = {'value': 0.4, 'standard_error': 0.1, 'n': 9}
  about = {'label': 'Quiz right', 'larger_is_better': True, 'meaning': 'share'}
  return {
    **{name: cell[name] for name in ('strategy', 'budget', 'seed')},
    'task': 'quiz',
    'version': 7,
    'fingerprint': {},
    'metrics': {'accuracy': {**accuracy, **about}},
    'by_task': {},
  }


@pytest.mark.parametrize('metric', ['rouge_l', 'quiz.accuracy'])
def test_a_task_that_only_some_cells_were_evaluated_on(tmp_path, quick, metric):
  """The references and one strategy lack it."""
  options = synthetic.config(report__metric=metric)
  workdir = synthetic.write(tmp_path, options)
  for path in workdir.runs.glob('random-*/evaluations/heldout/eval.json'):
    synthetic.write_evaluation(workdir, _quiz(store.read_json(path)))
  reporting.run(options, workdir)
  html = workdir.report.read_text('utf-8')
  items = {'rouge_l': '60 held-out prompts', 'quiz.accuracy': '9 items of quiz'}
  assert f'answered {items[metric]}' in html
  rows = read_csv(
    workdir.report.with_name('label_efficiency_quiz.accuracy.csv')
  )
  assert {row['strategy'] for row in rows} == {'random'}


def test_a_metric_that_a_reference_lacks(tmp_path, quick):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  contents = synthetic.evaluation('no_finetuning', 0, 0, 0.1)
  del contents['metrics']['loss']
  synthetic.write_evaluation(workdir, contents)
  reporting.run(options, workdir)
  rows = read_csv(workdir.report.with_name('label_efficiency_loss.csv'))
  assert 'no_finetuning' not in {row['strategy'] for row in rows}


def test_evaluations_with_other_options_are_not_mixed(tmp_path):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  contents = synthetic.evaluation('random', 20, 0, 0.4)
  contents['fingerprint']['evaluation.limit'] = 9
  synthetic.write_evaluation(workdir, contents)
  with pytest.raises(errors.InputError, match=r'evaluation\.limit \(was'):
    reporting.run(options, workdir)


@pytest.mark.parametrize(
  'change',
  [
    lambda c: c.clear(),
    lambda c: c.pop('fingerprint'),
    lambda c: c['metrics']['loss'].pop('n'),
    lambda c: c['metrics']['loss'].pop('label'),
    lambda c: next(iter(c['by_task'].values())).pop('loss'),
    lambda c: c['metrics'].clear(),
  ],
)
def test_an_incomplete_evaluation_is_named(tmp_path, change):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  contents = synthetic.evaluation('random', 20, 0, 0.4)
  path = workdir.run('random-k20-seed0').evaluation('heldout')
  change(contents)
  store.write_json(path, contents)
  with pytest.raises(errors.InputError, match=r'eval\.json .*: delete it'):
    reporting.run(options, workdir)


# The terminal.


def test_summary_word_for_word(tmp_path):
  options = synthetic.config(
    selection__strategies=('facility_location', 'random'),
    study__budgets=(20, 40),
    study__seeds=(0, 1),
  )
  workdir = synthetic.write(tmp_path, options)
  values = {
    ('random', 20): (0.30, 0.32),
    ('random', 40): (0.40, 0.41),
    ('facility_location', 20): (0.370, 0.371),
    ('facility_location', 40): (0.45, 0.47),
    ('full_pool', synthetic.POOL_SIZE): (0.60, 0.60),
  }
  for (strategy, budget), pair in values.items():
    for seed, value in enumerate(pair):
      contents = synthetic.evaluation(strategy, budget, seed, value)
      synthetic.write_evaluation(workdir, contents)
  shutil.rmtree(workdir.runs / 'facility_location-k40-seed1')
  assert reporting.summary(options, workdir) == (
    'ROUGE-L: mean and 95% interval over 2 seeds; higher is better\n'
    '\n'
    'strategy                    20 answers     40 answers\n'
    'random                   0.310 ± 0.127  0.405 ± 0.064\n'
    'facility_location        0.370 ± 0.180  0.450 ± 0.090\n'
    'full pool (340 answers)  0.600\n'
    'no finetuning            0.050\n'
    '\n'
    'No strategy is distinguishable from random over the whole curve: these '
    'runs do not show that choosing prompts saves answers.\n'
    'Four of five such studies would find a difference of 0.183 with 1 seed, '
    '0.043 with 5 and 0.035 with 10.\n'
    'Not evaluated yet: facility_location at 40 answers: seed 1\n'
    'Selection took 14.0 s of 3 min 20 s, 7.0% of the total time: 12.5 s to '
    'score the pool and 1.5 s to choose.\n'
    f'Report: {workdir.report}'
  )


def test_findings_by_other_metrics_come_with_a_warning(reported):
  options, workdir = reported
  found = results.read_results(options, workdir)
  compared = comparison.compare_all(found, 'rouge_l', 0.95)
  warning = (
    'ROUGE-L alone decides (report.metric): of several metrics, some may '
    'differ by chance.'
  )
  sentences = conclusions.other_metrics(found, compared, 'rouge_l')
  assert sentences[0].startswith('By Loss, facility_location is better')
  assert sentences[2:] == [warning]
  # At such a small level, nothing is found.
  compared = comparison.compare_all(found, 'rouge_l', 1 - 1e-12)
  assert conclusions.other_metrics(found, compared, 'rouge_l') == [
    f'By {label}, no strategy is distinguishable from random.'
    for label in ('Loss', 'Exact match')
  ]


def test_summary_says_who_is_better_and_who_is_worse(reported):
  text = reporting.summary(*reported)
  assert 'facility_location is better than random over the whole curve' in text
  assert 'weighted_task_diversity is worse than random over the whole' in text
  assert 'min_margin is' not in text


def test_the_time_of_the_report_is_not_counted():
  stages = {'score': 6.0, 'select': 1.0, 'finetune': 13.0, 'report': 100.0}
  timings = timing.read_timing(
    {name: store.StageRecord(seconds=s) for name, s in stages.items()}
  )
  assert timings.sentence().startswith('Selection took 7.0 s of 20.0 s, 35.0%')
  assert timing.read_timing({'stages': {}}).sentence() == (
    'No stage has recorded its time.'
  )


def test_durations():
  assert wording.duration(0.04) == '0.0 s'
  assert wording.duration(59.94) == '59.9 s'
  assert wording.duration(125.4) == '2 min 05 s'
  assert wording.duration(7500) == '2 h 05 min'


# The plots.


def test_every_strategy_has_its_own_colour():
  colours = {row.colour for row in STRATEGIES.values()}
  assert len(colours) == len(STRATEGIES)


@pytest.mark.parametrize('means', [(0.5, 0.501), (3.0, 4.0), (-3.0, -4.0)])
def test_labels_of_near_references_do_not_overlap(means):
  figure = figure_lib.Figure(figsize=(4, 3))
  axes = figure.subplots()
  references = {
    name: statistics.Interval(mean, None, None, 1)
    for name, mean in zip(style.REFERENCES, means, strict=False)
  }
  efficiency.reference_lines(axes, references, (0.0, 1.0))
  axes.set_ylim(0.0, 1.0)
  figure.canvas.draw()
  boxes = [text.get_window_extent() for text in axes.texts]
  panel = axes.get_window_extent()
  assert len(boxes) == 2
  assert not boxes[0].overlaps(boxes[1])
  assert all(panel.y0 <= box.y0 and box.y1 <= panel.y1 for box in boxes)


def test_labels_are_moved_apart_and_keep_their_order():
  places = [0.5, 0.1, 0.52, 0.51, 0.9]
  moved = plots.spread(places, 0.1)
  order = sorted(range(5), key=lambda i: places[i])
  assert sorted(range(5), key=lambda i: moved[i]) == order
  gaps = [moved[b] - moved[a] for a, b in itertools.pairwise(order)]
  assert min(gaps) > 0.1 - 1e-9
  assert moved[1] == 0.1
  assert moved[3] == pytest.approx(0.51)


def test_a_far_line_does_not_squash_the_dots():
  def interval(mean):
    return statistics.Interval(mean, mean - 9, mean + 9, 2)

  dots = {('random', 10): [1.0, 2.0]}
  limits = efficiency.limits(
    dots, {('random', 10): interval(1.5)}, {study.NO_FINETUNING: interval(40)}
  )
  assert limits[0] < 1.0 < 2.0 < limits[1] < 40
  assert (2.0 - 1.0) / (limits[1] - limits[0]) > 0.25
