"""The pages in a browser: they fit, whole, on a desk and on a phone."""

import re
import shutil
import subprocess

import pytest
import synthetic_study as synthetic

from edsft_jax import plan, reporting

pytestmark = pytest.mark.slow

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None
)
# What the browser finds is written into the page, which it then prints.
MEASURE = """
<script>
const root = document.documentElement;
const images = [...document.images];
root.dataset.found = [
  root.scrollWidth - root.clientWidth,
  images.length,
  images.filter(image => image.naturalWidth > 0).length,
  document.body.innerText.length,
].join(' ');
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason='no browser is installed')
@pytest.mark.parametrize('width', [390, 1400])
def test_the_page_fits_and_every_image_loads(tmp_path, width):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  reporting.run(options, workdir)
  overflow, images, loaded, letters = _measured(workdir.report, tmp_path, width)
  assert overflow <= 0
  assert images == loaded >= 5
  assert letters > 1000


@pytest.mark.skipif(BROWSER is None, reason='no browser is installed')
@pytest.mark.parametrize('width', [390, 1400])
def test_the_plan_fits(tmp_path, width):
  options = synthetic.config()
  workdir = synthetic.write(tmp_path, options)
  options.plan.sample_prompts = 0
  plan.run(options, workdir)
  overflow, _, _, letters = _measured(workdir.plan, tmp_path, width)
  assert overflow <= 0
  assert letters > 1000


def _measured(source, folder, width):
  """What MEASURE finds on a page, at that width."""
  page = folder / 'page.html'
  page.write_text(source.read_text('utf-8') + MEASURE, 'utf-8')
  # A browser window may not be narrower than 500 pixels: a frame may.
  frame = folder / 'frame.html'
  frame.write_text(
    f'<iframe src="{page.name}" width="{width}" height="800"></iframe>'
    '<script>onload = () => { document.title ='
    ' frames[0].document.documentElement.dataset.found; }</script>'
  )
  result = subprocess.run(
    [
      str(BROWSER),
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--allow-file-access-from-files',
      f'--user-data-dir={folder / "profile"}',
      '--virtual-time-budget=5000',
      '--dump-dom',
      frame.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  found = re.search(r'<title>(-?\d+) (\d+) (\d+) (\d+)</title>', result.stdout)
  assert found, result.stdout[:2000] + result.stderr[-2000:]
  return tuple(map(int, found.groups()))
