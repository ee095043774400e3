"""Reports without plots and charts, which take most of the time."""

import pytest

from edsft_jax.reporting import interactive, plots


def _leave_out_plots(patch: pytest.MonkeyPatch) -> None:
  blank = plots.Images('<svg></svg>', b'', b'')
  patch.setattr(plots, 'render', lambda *_: blank)
  for name in ('efficiency_chart', 'map_chart'):
    patch.setattr(interactive, name, lambda *_: {})


@pytest.fixture
def quick(monkeypatch):
  """No plots, for tests of what else the page says."""
  _leave_out_plots(monkeypatch)


@pytest.fixture(scope='module')
def quick_module():
  """No plots in any test of the module."""
  with pytest.MonkeyPatch.context() as patch:
    _leave_out_plots(patch)
    yield
