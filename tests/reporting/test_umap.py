"""The map of the pool by UMAP, where umap-learn is installed."""

import browser
import numpy as np
import pytest
import synthetic_study as synthetic

from edsft_jax import reporting
from edsft_jax.reporting import projection

pytest.importorskip('umap')
# numba compiles for 10 seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def reported(tmp_path_factory):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path_factory.mktemp('umap'), options)
  synthetic.write_features(workdir)
  reporting.run(options, workdir)
  return options, workdir


def test_similar_prompts_are_together_and_the_map_is_always_the_same():
  rng = np.random.default_rng(0)
  group_N = np.repeat([0, 1, 2], 30)
  features = rng.normal(size=(3, 8))[group_N] * 10 + rng.normal(size=(90, 8))
  first, second = (projection.project(features) for _ in range(2))
  assert list(first.points) == ['PCA', 'UMAP']
  point_Nx2 = first.points['UMAP']
  assert (point_Nx2 == second.points['UMAP']).all()
  assert point_Nx2.min() == 0
  assert point_Nx2.max() == 1
  distance_NxN = np.linalg.norm(point_Nx2[:, None] - point_Nx2, axis=-1)
  np.fill_diagonal(distance_NxN, np.inf)
  assert (group_N[distance_NxN.argmin(1)] == group_N).all()


@pytest.mark.parametrize('count', [2, 3, 15])
def test_small_pools_have_no_umap(count):
  features = np.random.default_rng(0).normal(size=(count, 8))
  assert list(projection.project(features).points) == ['PCA']


def test_the_report_names_both_and_can_be_verified(reported):
  options, workdir = reported
  text = ' '.join(workdir.report.read_text('utf-8').split())
  assert 'The pool by UMAP of its features' in text
  assert 'distances between groups mean little' in text
  assert 'principal components' not in text
  header = workdir.report.with_name('map.csv').read_text('utf-8').split()[0]
  assert header == 'id,pca_x,pca_y,umap_x,umap_y'
  assert reporting.differences(options, workdir) == []


@pytest.mark.skipif(browser.PATH is None, reason='no browser is installed')
def test_the_chart_switches_between_both(reported, tmp_path):
  _, workdir = reported
  picks = (
    '(source => [...source.data.x])(Bokeh.documents.map(d => '
    'd.get_model_by_name("picks")).find(m => m))'
  )
  expected = (
    '(pool => pool.lists[0].picks.map(i => pool.points.{}.x[i]))'
    '(JSON.parse(document.getElementById("pool-data").textContent))'
  )
  with browser.opened(tmp_path) as window:
    window.open(
      workdir.report, 1400, ready='document.documentElement.dataset.ready'
    )
    select = 'document.getElementById("map-method")'
    assert window.evaluate(f'[...{select}].map(o => o.value)') == [
      'PCA',
      'UMAP',
    ]
    assert window.evaluate(f'{select}.getBoundingClientRect().width') > 0
    for method in ('PCA', 'UMAP'):
      window.evaluate(
        f'(() => {{ {select}.value = "{method}";'
        f' {select}.dispatchEvent(new Event("change")); }})()'
      )
      assert window.evaluate(picks) == window.evaluate(expected.format(method))
    assert window.messages == []
