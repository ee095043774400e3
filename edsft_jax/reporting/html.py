"""Templates of the pages, which share a style sheet and number formats."""

import functools
import importlib.resources
from typing import Any

import jinja2
import markupsafe

from edsft_jax.reporting import wording
from edsft_jax.reporting.plots import palette


@functools.cache
def template(package: str, name: str) -> jinja2.Template:
  """A template from a file of a package; `style` is the shared style sheet.

  Templates may include others of their package.
  """
  environment = jinja2.Environment(
    autoescape=True,
    loader=jinja2.FunctionLoader(lambda other: read(package, other)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'number': lambda value: f'{value:,}',
    'quality': lambda value: f'{value:.3f}',
    'amount': wording.amount,
    'signed': wording.signed,
    'probability': lambda p: wording.probability(p).removeprefix('= '),
    'percent': lambda share: f'{100 * share:g}%',
    'sentence': lambda text: text[:1].upper() + text[1:],
    'plain': _plain,
  }
  environment.globals['style'] = _style()
  environment.globals['css'] = palette.css
  return environment.get_template(name)


def _plain(value: Any) -> str:
  """A value of a config or manifest, as a reader of the page would write it."""
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if value is None or value == '':
    return '–'
  return f'{value:,}' if isinstance(value, int) else str(value)


def _style() -> markupsafe.Markup:
  return markupsafe.Markup(
    f':root {{ color-scheme: light dark; {palette.definitions()} }}\n'
    '@media screen and (prefers-color-scheme: dark) {\n'
    f'  :root {{ {palette.definitions(dark=True)} }}\n'
    f'}}\n{read("edsft_jax.reporting", "page.css")}'
  )


def read(package: str, name: str) -> str:
  """The text of a file of a package."""
  file = importlib.resources.files(package).joinpath(name)
  return file.read_text(encoding='utf-8')
