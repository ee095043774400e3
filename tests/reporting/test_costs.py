"""What cells cost, what became of the others, and where the time went."""

import csv

import pytest
import synthetic_study as synthetic

from edsft_jax import reporting, store, study
from edsft_jax.reporting import (
  costs,
  results,
  timing,
  unfinished,
)


def _finetuned(workdir, cell, seconds, tokens):
  run = workdir.run(cell.name)
  store.write_json(
    run.cell, {'training': {'steps': 3, 'first_loss': 2.0, 'last_loss': 1.0}}
  )
  run.model.mkdir(parents=True)
  store.write_jsonl(run.timing, [{'step': 3, 'seconds': seconds}])
  store.write_jsonl(
    run.metrics, [{'step': 3, 'loss': 1.25, 'tokens': 3 * tokens}]
  )
  path = run.evaluation_timing('heldout')
  store.write_json(path, {'seconds': 2 * seconds})


@pytest.fixture
def made(tmp_path):
  options = synthetic.config(
    selection__strategies=('random', 'min_margin'),
    study__budgets=(20, 40),
    study__seeds=(0, 1, 2),
    annotation__price_per_answer=2.0,
    annotation__price_per_word=0.5,
  )
  workdir = synthetic.write(tmp_path, options)
  for cell in study.cells(options):
    # The first cell waits for compilation.
    seconds = 100.0 if cell == study.cells(options)[0] else cell.budget / 10
    _finetuned(workdir, cell, seconds, 7 * cell.budget)
  for strategy in options.selection.strategies:
    path = workdir.selection_record(strategy)
    store.write_json(path, {**store.read_json(path), 'seconds': 6.0})
  return options, workdir


def _costs(options, workdir):
  found = results.read_results(options, workdir)
  pool = store.read_prompts(workdir.pool)
  return costs.read(
    options,
    workdir,
    found,
    dict(zip(pool.ids, pool.num_words(), strict=True)),
    results.read_selections(options, workdir),
    timing.read_timing(store.Manifest(workdir).stages),
  )


def test_costs_are_those_of_the_files(made):
  spent = _costs(*made)
  assert len(spent.cells) == 2 * 2 * 3
  assert spent.axes() == ['answers', 'tokens', 'money', 'seconds']
  assert spent.typical('random', 40, 'tokens') == 280
  # Its prompts have two words each.
  assert spent.typical('min_margin', 40, 'money') == 40 * (2.0 + 0.5 * 2)
  # random chooses for each seed; min_margin once, after scoring (12.5 s).
  # Of three cells, one waited for compilation.
  assert spent.typical('random', 20, 'seconds') == 6.0 / 3 + 2.0
  assert spent.typical('min_margin', 20, 'seconds') == 12.5 + 6.0 + 2.0


def test_the_machine_may_have_a_price(made):
  options, workdir = made
  options.report.price_per_hour = 3600.0
  spent = _costs(options, workdir)
  assert spent.typical('random', 20, 'money') == 20 * 3.0 + 6.0 / 3 + 2.0


def test_what_is_not_known_has_no_axis(made):
  options, workdir = made
  options.annotation.price_per_answer = 0.0
  options.annotation.price_per_word = 0.0
  workdir.run('random-k40-seed1').metrics.unlink()
  assert _costs(options, workdir).axes() == ['answers', 'seconds']
  workdir.run('random-k40-seed1').timing.unlink()
  assert _costs(options, workdir).axes() == ['answers']


def test_time_after_a_kill_is_that_of_the_cells(made, quick):
  """The manifest has only what the last command took."""
  options, workdir = made
  contents = store.read_json(workdir.manifest)
  contents['stages']['finetune']['seconds'] = 0.0
  contents['stages']['evaluate']['seconds'] = 1000.0
  store.write_json(workdir.manifest, contents)
  reporting.run(options, workdir)
  path = workdir.report.with_name('stage_seconds.csv')
  with path.open() as file:
    seconds = {row['stage']: row['seconds'] for row in csv.DictReader(file)}
  # 100 s, five cells of 2 s and six of 4 s.
  assert float(seconds['finetune']) == 134.0
  # Judges and loading are not in the cells' own seconds.
  assert float(seconds['evaluate']) == 1000.0


def test_absent_cells_say_what_became_of_them(made):
  options, workdir = made
  cells = {cell.name: cell for cell in study.cells(options)}
  failed = workdir.run('random-k20-seed0')
  failed.model.rmdir()
  (workdir.run('random-k20-seed1').root / 'cell.json').unlink()
  workdir.run('random-k20-seed1').model.rmdir()
  picked = study.selected_ids(workdir, 'random', 1)
  table = store.read_parquet(workdir.responses)
  keep = [i not in picked[:2] for i in table['id'].to_pylist()]
  store.write_parquet(workdir.responses, table.filter(keep))
  found = unfinished.groups(
    options,
    workdir,
    [
      cells['random-k20-seed0'],
      cells['random-k20-seed1'],
      cells['random-k40-seed0'],
      cells['random-k40-seed2'],
    ],
  )
  assert [(one.budget, one.seeds, one.state) for one in found] == [
    (20, [0], 'failed or interrupted: loss 1.250 at step 3, no model'),
    (20, [1], 'waits for 2 answers'),
    (40, [0, 2], 'not evaluated'),
  ]


def test_references_of_win_rates_against_random_are_not_missing(tmp_path):
  """alpaca_eval compares with random at the same budget and seed."""
  options = synthetic.config(
    selection__strategies=('random', 'min_margin'),
    report__metric='alpaca_eval.win_rate',
  )
  workdir = synthetic.write(tmp_path, options)
  for path in workdir.runs.glob('*/evaluations/heldout/eval.json'):
    contents = store.read_json(path)
    path.unlink()
    if contents['strategy'] not in ('full_pool', 'no_finetuning'):
      metric = {**contents['metrics']['rouge_l'], 'against_random': True}
      contents |= {'task': 'alpaca_eval', 'metrics': {'win_rate': metric}}
      synthetic.write_evaluation(workdir, {**contents, 'by_task': {}})
  assert results.read_results(options, workdir).absent == []
  (workdir.runs / 'random-k20-seed0' / 'evaluations').rename(tmp_path / 'gone')
  absent = results.read_results(options, workdir).absent
  assert [cell.name for cell in absent] == ['random-k20-seed0']
