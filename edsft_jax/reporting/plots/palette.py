"""The colours of the plots and of the page, for light and dark screens."""

import re

from edsft_jax.strategies.registry import LENGTH_MATCHED, STRATEGIES

INK = '#1f2430'
MUTED = '#6b7280'
FAINT = '#c9ced6'
SPINE = '#9aa1ac'
TICK = '#4b5563'
GRID = '#eceef2'
BAR = '#dfe3e9'
PAPER = '#ffffff'
ACCENT = '#0072b2'
WARNING = '#b9785a'

# Colour on a light page -> on a dark one, where it is not just lightened.
_DARK = {
  INK: '#e4e7ec',
  MUTED: '#a2a9b4',
  FAINT: '#4a515c',
  SPINE: '#6d7480',
  TICK: '#aeb5c0',
  GRID: '#2a2f37',
  BAR: '#3a414c',
  PAPER: '#14171c',
}
# The least contrast of a colour with a dark background (WCAG 2, 1.4.11).
_CONTRAST = 4.5


def on_dark(colour: str) -> str:
  """The colour '#rrggbb', with as much white as a dark background needs."""
  for white in range(0, 100, 5):
    mixed = _mixed(colour, white / 100)
    if _contrast(mixed, _DARK[PAPER]) >= _CONTRAST:
      return mixed
  return '#ffffff'


def _mixed(colour: str, white: float) -> str:
  parts = [round(x + (255 - x) * white) for x in _channels(colour)]
  return '#' + ''.join(f'{part:02x}' for part in parts)


def _channels(colour: str) -> list[int]:
  return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _contrast(one: str, other: str) -> float:
  """Contrast ratio of WCAG 2, from 1 to 21."""

  def luminance(colour: str) -> float:
    linear = [
      x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
      for x in (c / 255 for c in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


# Colour on paper -> on a dark screen.
COLOURS = {
  **{colour: on_dark(colour) for colour in (ACCENT, WARNING)},
  **{row.colour: on_dark(row.colour) for row in STRATEGIES.values()},
  # Lighter than random's, which is also grey.
  STRATEGIES[LENGTH_MATCHED].colour: '#d5d9e0',
  **_DARK,
}


def variable(colour: str) -> str:
  """The style sheet's variable with a colour of COLOURS."""
  return f'--c-{colour[1:]}'


def css(colour: str) -> str:
  """A colour of COLOURS as a value in a style sheet."""
  return f'var({variable(colour)})'


def themed(svg: str) -> str:
  """The SVG with variables of the style sheet in place of its colours."""
  return re.sub(
    '#[0-9a-f]{6}',
    lambda match: css(match[0]) if match[0] in COLOURS else match[0],
    svg,
  )


def definitions(dark: bool = False) -> str:
  """The variables, for the style sheet."""
  return ' '.join(
    f'{variable(light)}: {shade if dark else light};'
    for light, shade in COLOURS.items()
  )
