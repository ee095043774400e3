"""Studies that are kept in a few files, and those kept in docs/."""

import csv
import gzip

from places import REPOSITORY
import pytest
import synthetic_study as synthetic

from edsft_jax import errors, reporting, store, study
from edsft_jax.reporting import kept

# Every folder with the items of a study.
KEPT = sorted(path.parent for path in REPOSITORY.glob(f'docs/*/{kept.ITEMS}'))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  options = synthetic.config(report__metric='loss')
  made = synthetic.write(tmp_path_factory.mktemp('study'), options)
  store.write_json(made.config, options.to_dict())
  store.write_text(made.report, '<html></html>')
  return made


@pytest.fixture
def folder(workdir, tmp_path):
  kept.write(workdir, tmp_path / 'kept')
  return tmp_path / 'kept'


def _rows(path):
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_the_tables_are_those_of_the_study(workdir, folder):
  assert kept.differences(folder) == []
  tables = reporting.load(workdir.root)
  assert len(_rows(folder / 'cells.csv')) == len(tables.cells)
  losses = [
    row
    for row in _rows(folder / 'comparisons.csv')
    if row['metric'] == 'loss' and not row['budget']
  ]
  assert {row['strategy']: row['verdict'] for row in losses} == {
    'min_margin': 'not distinguishable from random',
    'facility_location': 'better than random',
    'weighted_task_diversity': 'worse than random',
  }
  ids = _rows(folder / 'ids.csv')
  assert [row['id'] for row in ids] == [f'p{i}' for i in range(len(ids))]
  assert {row['split'] for row in ids} == {'pool'}


def test_another_value_of_one_item_is_found(folder):
  path = folder / kept.ITEMS
  lines = gzip.decompress(path.read_bytes()).decode().splitlines()
  place = next(i for i, line in enumerate(lines) if line.startswith('min_m'))
  *before, value = lines[place].split(',')
  lines[place] = ','.join([*before, str(float(value) + 0.01)])
  path.write_bytes(gzip.compress('\n'.join(lines).encode()))
  assert kept.differences(folder) == [
    f'{folder / name} is not what {kept.ITEMS} gives'
    for name in ('cells.csv', 'comparisons.csv', 'savings.csv')
  ]


@pytest.mark.parametrize('name', ['cells.csv', 'comparisons.csv'])
def test_another_table_is_found(folder, name):
  text = (folder / name).read_text()
  first = text.splitlines()[1]
  (folder / name).write_text(text.replace(first, first.replace('loss', 'los')))
  (difference,) = kept.differences(folder)
  assert name in difference
  (folder / name).write_text(text.replace(first + '\n', ''))
  (difference,) = kept.differences(folder)
  assert name in difference


def test_items_in_another_order_are_damage(folder):
  path = folder / kept.ITEMS
  lines = gzip.decompress(path.read_bytes()).decode().splitlines()
  lines[1], lines[2] = lines[2], lines[1]
  path.write_bytes(gzip.compress('\n'.join(lines).encode()))
  with pytest.raises(errors.InputError, match='is not in its place'):
    kept.differences(folder)


def test_a_study_that_is_not_finished_is_refused(tmp_path):
  options = synthetic.config()
  made = synthetic.write(tmp_path / 'study', options)
  store.write_json(made.config, options.to_dict())
  with pytest.raises(errors.InputError, match='run the report stage first'):
    kept.write(made, tmp_path / 'kept')
  store.write_text(made.report, '.' * (kept.MAX_PAGE + 1))
  with pytest.raises(errors.InputError, match='at most 3,000,000'):
    kept.write(made, tmp_path / 'kept')
  made.run('random-k20-seed0').evaluation('heldout').unlink()
  with pytest.raises(errors.InputError, match='random at 20 answers: seed 0'):
    kept.write(made, tmp_path / 'kept')
  assert not (tmp_path / 'kept').exists()


@pytest.mark.parametrize('kept_study', KEPT, ids=lambda path: path.name)
def test_what_docs_say_follows_from_their_items(kept_study):
  assert kept.differences(kept_study) == []
  assert (kept_study / 'index.html').stat().st_size <= kept.MAX_PAGE


@pytest.mark.parametrize('kept_study', KEPT, ids=lambda path: path.name)
def test_no_finetuning_and_the_full_pool_bracket_the_loss(kept_study):
  with (kept_study / 'cells.csv').open(encoding='utf-8') as file:
    rows = [row for row in csv.DictReader(file) if row['metric'] == 'loss']
  losses = {
    name: [] for name in ('cells', study.FULL_POOL, study.NO_FINETUNING)
  }
  for row in rows:
    name = row['strategy'] if row['strategy'] in losses else 'cells'
    losses[name].append(float(row['value']))
  assert max(losses[study.FULL_POOL]) < min(losses['cells'])
  assert max(losses['cells']) < min(losses[study.NO_FINETUNING])
