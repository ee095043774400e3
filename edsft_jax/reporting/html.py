"""Templates of pages, which share a style and ways to print numbers."""

import base64
import importlib.resources

import jinja2

from edsft_jax.reporting import wording


def template(package: str, name: str) -> jinja2.Template:
  """A template that is a file of a package; `style` is the style of all."""
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'number': lambda value: f'{value:,}',
    'quality': lambda value: f'{value:.3f}',
    'signed': wording.signed,
    'probability': lambda p: '< 0.001' if p < 0.001 else f'{p:.3f}',
    'coverage': lambda share: f'{100 * share:g}%',
    'base64': lambda data: base64.b64encode(data).decode('ascii'),
  }
  environment.globals['style'] = _read('edsft_jax.reporting', 'page.css')
  return environment.from_string(_read(package, name))


def _read(package: str, name: str) -> str:
  file = importlib.resources.files(package).joinpath(name)
  return file.read_text(encoding='utf-8')
