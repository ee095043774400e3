"""What verify says of a report whose numbers were changed."""

import json
import re

import pytest
import synthetic_study as synthetic

from edsft_jax import reporting


@pytest.fixture(scope='module')
def made(tmp_path_factory, quick_module):
  options = synthetic.config(
    selection__strategies=('random', 'min_margin'), study__seeds=(0, 1)
  )
  workdir = synthetic.write(tmp_path_factory.mktemp('study'), options)
  synthetic.write_features(workdir)
  reporting.run(options, workdir)
  return options, workdir


def _changed(workdir, name, change):
  """Writes a changed file; returns its path and what undoes it."""
  path = workdir.report.with_name(name)
  old = path.read_text('utf-8')
  assert change(old) != old
  path.write_text(change(old), 'utf-8')
  return path, lambda: path.write_text(old, 'utf-8')


def _data(change):
  """Changes the data of the page's prompts."""

  def apply(html):
    pattern = '(?s)(id="pool-data">)(.*?)(</script>)'
    before, text, after = re.search(pattern, html).groups()
    data = json.loads(text)
    change(data)
    text = json.dumps(data).replace('<', '\\u003c')
    return re.sub(pattern, lambda _: before + text + after, html)

  return apply


def test_nothing_differs_in_a_report_as_it_was_made(made):
  assert reporting.differences(*made) == []


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (
      'coverage.csv',
      lambda t: re.sub(r'(min_margin,20,)(\d)', r'\g<1>1\2', t),
      'radius of line',
    ),
    ('overlap.csv', lambda t: t.replace(',1.0', ',0.9', 1), 'share of line 2'),
    ('forest.csv', lambda t: t.replace('not dist', 'dist'), 'verdict of line'),
    (
      'picks.csv',
      lambda t: re.sub(r',p(\d)', r',q\1', t, count=1),
      'id of line 2',
    ),
    ('lengths_of_picks.csv', lambda t: f'{t}more\n', 'line '),
    (
      'index.html',
      _data(lambda data: data['lists'][1]['picks'].reverse()),
      'lists 1 picks 0 of the data pool',
    ),
    (
      'index.html',
      _data(lambda data: data['points']['PCA']['x'].__setitem__(3, 0.987654)),
      'points PCA x 3 of the data pool',
    ),
    ('index.html', _data(dict.clear), 'the names of everything'),
    ('index.html', lambda t: t.replace('0.1', '0.2', 1), 'run the report'),
  ],
)
def test_a_changed_number_is_named(made, name, change, message):
  options, workdir = made
  path, undo = _changed(workdir, name, change)
  try:
    lines = reporting.differences(options, workdir)
  finally:
    undo()
  assert any(str(path) in line and message in line for line in lines), lines


def test_rounding_seconds_and_umap_do_not_matter(made):
  options, workdir = made

  def rounded(text):
    return re.sub(r'\d\.\d{9,}', lambda m: f'{float(m[0]):.9f}', text)

  for name, change in (
    ('coverage.csv', rounded),
    ('stage_seconds.csv', lambda t: t.replace('12.5', '13.5')),
    # The report was made where UMAP is installed.
    ('map.csv', lambda t: re.sub('(.)\r?\n', r'\1,umap_x,umap_y\n', t)),
    (
      'index.html',
      _data(lambda data: data['points'].update(UMAP={'x': [], 'y': []})),
    ),
  ):
    _, undo = _changed(workdir, name, change)
    assert reporting.differences(options, workdir) == [], name
    undo()


def test_a_missing_file_is_named(made):
  options, workdir = made
  path = workdir.report.with_name('costs.csv')
  old = path.read_text('utf-8')
  path.unlink()
  assert reporting.differences(options, workdir) == [f'{path} is missing']
  path.write_text(old, 'utf-8')
