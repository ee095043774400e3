"""The notebook's cells, one after the other, on the demo."""

import json

import matplotlib
from matplotlib import pyplot
from places import REPOSITORY
import pytest

NOTEBOOK = REPOSITORY / 'scripts' / 'notebook.ipynb'


def _code() -> list[str]:
  """The source of the cells, without the magic that installs packages."""
  cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
  sources = [
    ''.join(line for line in cell['source'] if not line.startswith('%'))
    for cell in cells
    if cell['cell_type'] == 'code'
  ]
  assert len(sources) > 5
  return sources


def test_cells_have_no_outputs_and_are_python():
  for cell in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']:
    assert not cell.get('outputs')
    assert not cell.get('execution_count')
  for source in _code():
    compile(source, str(NOTEBOOK), 'exec')


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('tempfile.gettempdir', lambda: str(tmp_path))
  monkeypatch.chdir(tmp_path)
  matplotlib.use('Agg')
  figures = []
  monkeypatch.setattr(pyplot, 'show', lambda: figures.append(pyplot.gcf()))
  names: dict[str, object] = {}
  for source in _code():
    exec(compile(source, str(NOTEBOOK), 'exec'), names)
    pyplot.close('all')
  assert len(figures) == 2
  assert 'of the optimum' in capsys.readouterr().out
  assert (tmp_path / 'edsft_demo' / 'report' / 'index.html').exists()
