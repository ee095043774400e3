"""A study as tables: the same numbers as its files and its page."""

import csv
import importlib.util

import pytest
import synthetic_study as synthetic

from edsft_jax import errors, reporting, store


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, quick_module) -> store.Workdir:
  options = synthetic.config()
  made = synthetic.write(tmp_path_factory.mktemp('study'), options)
  store.write_json(made.config, options.to_dict())
  reporting.run(options, made)
  return made


@pytest.fixture
def tables(workdir, monkeypatch) -> reporting.Tables:
  # Also where pandas is installed.
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  return reporting.load(workdir.root)


def test_cells_are_those_of_their_files(workdir, tables):
  rows = tables.cells.to_pylist()
  files = sorted(workdir.runs.glob('*/evaluations/heldout/eval.json'))
  assert len(rows) == 3 * len(files)
  for path in files:
    contents = store.read_json(path)
    cell = {name: contents[name] for name in ('strategy', 'budget', 'seed')}
    for name, metric in contents['metrics'].items():
      assert {
        **cell,
        'task': 'heldout',
        'metric': name,
        'value': metric['value'],
        'larger_is_better': metric['larger_is_better'],
        'num_items': 60,
      } in rows


def test_means_of_items_are_the_cells(tables):
  keys = ['strategy', 'budget', 'seed', 'task', 'metric']
  means = tables.items.group_by(keys).aggregate([('value', 'mean')])
  cells = {
    tuple(row[key] for key in keys): row['value']
    for row in tables.cells.to_pylist()
  }
  assert means.num_rows == len(cells)
  for row in means.to_pylist():
    expected = cells[tuple(row[key] for key in keys)]
    assert row['value_mean'] == pytest.approx(expected, abs=1e-12)


def test_picks_leave_out_what_was_rejected(workdir, tables):
  path = workdir.selection('facility_location', 1)
  expected = [row['id'] for row in store.read_jsonl(path)]

  def ids(made) -> list[str]:
    rows = [
      row
      for row in made.picks.to_pylist()
      if (row['strategy'], row['seed']) == ('facility_location', 1)
    ]
    assert [row['rank'] for row in rows] == list(range(len(rows)))
    assert {row['words'] for row in rows} == {2}
    return [row['id'] for row in rows]

  assert ids(tables) == expected
  store.write_jsonl(workdir.rejected, [{'id': expected[2], 'reason': ''}])
  try:
    expected.pop(2)
    assert ids(reporting.load(workdir.root)) == expected
  finally:
    workdir.rejected.unlink()


@pytest.mark.parametrize('name', ['comparisons', 'savings'])
def test_the_rest_is_in_the_reports_files(workdir, tables, name):
  path = workdir.report.with_name(f'{name}.csv')
  with path.open(encoding='utf-8', newline='') as file:
    written = list(csv.DictReader(file))
  rows = getattr(tables, name).to_pylist()
  assert [
    {key: '' if x is None else str(x) for key, x in row.items()} for row in rows
  ] == written


def test_options_of_newer_versions_have_their_defaults(workdir, tables):
  contents = store.read_json(workdir.config)
  older = {**contents, 'study': {**contents['study']}}
  del older['study']['random_seeds']
  store.write_json(workdir.config, older)
  try:
    assert reporting.load(workdir.root) == tables
  finally:
    store.write_json(workdir.config, contents)


def test_a_folder_without_a_study_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match=r'pool\.parquet'):
    reporting.load(tmp_path)


def test_a_damaged_config_is_named(workdir, tmp_path):
  (tmp_path / 'pool').symlink_to(workdir.pool.parent)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(errors.InputError, match=r'config\.json cannot be read'):
    reporting.load(tmp_path)
