"""The pages in a browser, on a desktop and on a phone."""

import io
import re

import browser
import pytest
import synthetic_study as synthetic

from edsft_jax import plan, reporting
from edsft_jax.reporting import comparison, results

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(browser.PATH is None, reason='no browser is installed'),
]
READY = 'document.documentElement.dataset.ready'


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A study with prices and features, reported and planned."""
  options = synthetic.config(annotation__price_per_answer=2.0)
  workdir = synthetic.write(tmp_path_factory.mktemp('study'), options)
  synthetic.write_features(workdir)
  reporting.run(options, workdir)
  options.plan.sample_prompts = 0
  plan.run(options, workdir)
  return options, workdir


@pytest.fixture(scope='module')
def window(tmp_path_factory):
  with browser.opened(tmp_path_factory.mktemp('profile')) as opened:
    yield opened


def _open(window, workdir, width=1400, dark=False):
  window.open(workdir.report, width, dark, READY)


def _columns(window, source):
  """The columns of a chart's data source."""
  return window.evaluate(
    'Object.fromEntries(Object.entries(Bokeh.documents.map(d => '
    f'd.get_model_by_name("{source}")).find(m => m).data).map('
    '([k, v]) => [k, [...v]]))'
  )


def _choose(window, control, value):
  window.evaluate(
    f'(() => {{ const c = document.getElementById("{control}");'
    f' c.value = "{value}"; c.dispatchEvent(new Event("change")); }})()'
  )


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [390, 1400])
def test_the_page_fits_without_messages_and_requests(
  study, window, width, dark
):
  _, workdir = study
  _open(window, workdir, width, dark)
  assert window.messages == []
  asked = {url for url in window.requests if not url.startswith('data:')}
  assert asked == {workdir.report.resolve().as_uri()}
  root = 'document.documentElement'
  assert window.evaluate(f'{root}.scrollWidth - {root}.clientWidth') <= 0
  assert len(window.evaluate('document.body.innerText')) > 3000
  background = window.evaluate(
    'getComputedStyle(document.body).backgroundColor'
  )
  assert background == ('rgb(20, 23, 28)' if dark else 'rgb(255, 255, 255)')
  # Every budget is on the phone, too.
  for budget in synthetic.config().study.budgets:
    inside = window.evaluate(
      f'[...document.querySelectorAll(`td[data-label="{budget} answers"]`)].'
      'map(cell => cell.getBoundingClientRect()).'
      'map(box => box.width > 0 && box.left >= 0 && box.right <= innerWidth)'
    )
    assert inside == [True] * 4
  ticks = 'Bokeh.documents[0].get_model_by_name("ticks").ticks'
  assert window.evaluate(f'[...{ticks}]') == [20, 40, 80]


@pytest.mark.parametrize('width', [390, 1400])
def test_the_plan_fits(study, window, width):
  window.open(study[1].plan, width)
  root = 'document.documentElement'
  assert window.evaluate(f'{root}.scrollWidth - {root}.clientWidth') <= 0
  assert len(window.evaluate('document.body.innerText')) > 1000
  assert window.messages == []


def test_controls_of_the_curves_change_what_they_show(study, window):
  options, workdir = study
  _open(window, workdir)
  found = results.read_results(options, workdir)
  budgets = [20, 40, 80]
  for metric in ('rouge_l', 'loss'):
    _choose(window, 'metric', metric)
    shown = _columns(window, 'means facility_location')
    compared = comparison.compare(found, metric, 0.95)
    intervals = [
      compared.interval('facility_location', b, 0.95) for b in budgets
    ]
    assert shown['y'] == pytest.approx([one.mean for one in intervals])
    assert shown['low'] == pytest.approx([one.low for one in intervals])
    assert shown['x'] == budgets
    rings = _columns(window, 'seeds facility_location')['y']
    assert rings == pytest.approx(
      [v for b in budgets for v in found.values('facility_location', b, metric)]
    )
  _choose(window, 'axis', 'money')
  assert _columns(window, 'means random')['x'] == [40, 80, 160]
  visible = 'Bokeh.documents[0].get_model_by_name("{}").visible'
  assert window.evaluate(visible.format('costs'))
  assert not window.evaluate(visible.format('budgets'))
  assert not window.evaluate(visible.format('band min_margin'))
  window.evaluate('document.getElementById("intervals").click()')
  assert window.evaluate(visible.format('band min_margin'))
  window.evaluate('document.querySelector("#shown [value=min_margin]").click()')
  for part in ('band', 'line', 'dots', 'rings'):
    assert not window.evaluate(visible.format(f'{part} min_margin'))
  assert window.messages == []


def test_controls_of_the_map_change_what_it_shows(study, window):
  _, workdir = study
  _open(window, workdir)
  assert len(_columns(window, 'picks')['x']) == 80
  # With a single method, there is nothing to choose.
  methods = 'document.getElementById("map-method")'
  shown = window.evaluate(f'{methods}.getBoundingClientRect().width > 0')
  assert shown == (window.evaluate(f'{methods}.length') > 1)
  _choose(window, 'map-budget', 20)
  lists = 'JSON.parse(document.getElementById("pool-data").textContent).lists'
  names = window.evaluate(f'{lists}.map(one => one.strategy)')
  number = names.index('min_margin')
  _choose(window, 'map-list', number)
  texts = window.evaluate(
    f'(pool => pool.lists[{number}].picks.slice(0, 20).map(i => pool.texts[i]))'
    '(JSON.parse(document.getElementById("pool-data").textContent))'
  )
  assert _columns(window, 'picks')['text'] == texts
  assert len(_columns(window, 'others')['x']) == synthetic.POOL_SIZE - 20


# Where the first pick is on the screen.
FIRST_PICK = """(() => {
  const view = [...Bokeh.index.roots].find(one => one.model.name === 'map');
  view.el.scrollIntoView();
  const { x, y } = view.model.document.get_model_by_name('picks').data;
  const box = view.canvas_view.el.getBoundingClientRect();
  return [
    box.left + view.frame.x_scale.compute(x[0]),
    box.top + view.frame.y_scale.compute(y[0]),
  ];
})()"""
# The texts of tooltips, which are in shadow trees.
TIPS = """(() => {
  const found = [];
  const walk = (node) => {
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.className === 'tip') found.push(node.textContent);
    for (const child of node.children) walk(child);
  };
  walk(document.body);
  return found;
})()"""


def test_pointing_at_a_prompt_shows_it(study, window):
  _, workdir = study
  _open(window, workdir)
  x, y = window.evaluate(FIRST_PICK)
  window.hover(x - 40, y)
  window.hover(x, y)
  window.evaluate('new Promise(done => setTimeout(done, 300))')
  shown = ' '.join(window.evaluate(TIPS))
  assert _columns(window, 'picks')['text'][0] in shown
  assert 'pick 1, ' in shown


def test_picks_can_be_searched_and_sorted(study, window):
  _, workdir = study
  _open(window, workdir)
  rows = '[...document.querySelectorAll("#picks tbody tr")]'
  words = f'{rows}.map(row => [...row.cells].map(cell => cell.innerText))'
  assert [row[0] for row in window.evaluate(words)][:3] == ['1', '2', '3']
  first = window.evaluate(words)[0]
  window.evaluate(
    '(() => { const s = document.getElementById("picks-search");'
    f' s.value = "{first[5]}"; s.dispatchEvent(new Event("input")); }})()'
  )
  assert first in window.evaluate(words)
  assert all(first[5] in row[5] for row in window.evaluate(words))
  _open(window, workdir)
  window.evaluate('document.querySelector("#picks [data-by=rank]").click()')
  assert window.evaluate(words)[0][0] == '80'
  before = len(window.evaluate(words))
  window.evaluate('document.getElementById("picks-more").click()')
  assert len(window.evaluate(words)) == 80 > before


@pytest.mark.parametrize('dark', [False, True])
def test_every_verdict_is_whole_in_print(study, window, dark):
  pypdf = pytest.importorskip('pypdf')
  options, workdir = study
  _open(window, workdir, dark=dark)
  reader = pypdf.PdfReader(io.BytesIO(window.pdf()))
  text = ' '.join(page.extract_text() for page in reader.pages)
  text = re.sub(r'\s+', ' ', text)
  compared = comparison.compare_all(
    results.read_results(options, workdir), 'rouge_l', 0.95
  )
  for one in compared.values():
    verdicts = [*one.curves.values(), *one.budgets.values()]
    for verdict in {v.verdict.value for v in verdicts}:
      wanted = sum(v.verdict.value == verdict for v in verdicts)
      assert text.count(verdict) >= wanted
  # Nothing is cut off at the right edge of A4 paper, details included.
  _open(window, workdir, 718, dark)
  window.print_preview()
  window.evaluate('dispatchEvent(new Event("beforeprint"))')
  root = 'document.documentElement'
  assert window.evaluate(f'{root}.scrollWidth - {root}.clientWidth') <= 0
  # Details are open, and the complete config is in one.
  assert '"pool_fraction": 1.0' in text
  # Controls are not printed.
  assert 'intervals and seeds' not in text
