"""Draws which part of the package imports which, for WORKSPACE.md.

  python scripts/draw_imports.py     # writes docs/imports.svg

A part is a top-level package or module of edsft_jax, or strategies/registry.py.
Each is drawn above all that it imports. Arrows that follow from others are left
out, and so are those to the bottom row, which all parts may import.
"""

import ast
from collections.abc import Iterator, Mapping
import pathlib

import command_line
import matplotlib
from matplotlib import figure, patches

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / 'edsft_jax'
BOTTOM = ('store', 'console', 'interrupts', 'processes', 'errors')
REGISTRY = 'strategies/registry'
# Rows from top to bottom: part -> horizontal position, from 0 to 1.
ROWS: tuple[dict[str, float], ...] = (
  {'main': 0.5},
  {'pipeline': 0.5, 'huge_pages': 0.7},
  {'plan': 0.4, 'verify': 0.6},
  {
    'scoring': 0.08,
    'evaluation': 0.21,
    'preview': 0.34,
    'finetuning': 0.46,
    'pool': 0.58,
    'annotation': 0.69,
    'reporting': 0.81,
    'strategies': 0.93,
  },
  {'inference': 0.15, 'parts': 0.68, 'selection': 0.9},
  {'models': 0.3, 'study': 0.68, 'prices': 0.88},
  {
    'out_of_memory': 0.1,
    'mesh': 0.3,
    'tables': 0.5,
    REGISTRY: 0.68,
    'config': 0.84,
  },
  {name: 0.1 + 0.2 * i for i, name in enumerate(BOTTOM)},
)


def part_of(module: str) -> str:
  """The part that a module, or a name in one, belongs to."""
  if module.startswith('edsft_jax.strategies.registry'):
    return REGISTRY
  return module.split('.')[1]


def imports() -> dict[str, set[str]]:
  """Part -> the parts that it imports, anywhere in its files.

  Modules named in the table of stages in pipeline.py count, too.
  """
  found: dict[str, set[str]] = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    if path == PACKAGE / '__init__.py':
      continue
    module = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
    part = part_of(module)
    names = found.setdefault(part, set())
    for name in _imported(ast.parse(path.read_text(encoding='utf-8'))):
      if name.startswith('edsft_jax.'):
        names.add(part_of(name))
    names.discard(part)
  # A chooser's imports, made when it is called, do not count for the registry.
  found[REGISTRY] -= {'selection', 'strategies'}
  return found


def _imported(tree: ast.AST) -> Iterator[str]:
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Constant):
      text = str(node.value)
      if text.startswith('edsft_jax.') and ' ' not in text:
        yield text


def arrows(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
  """The imports above the bottom row that do not follow from others."""
  above = {p: names - {*BOTTOM} for p, names in found.items()}

  def reached(part: str) -> set[str]:
    return above[part].union(*(reached(p) for p in above[part]))

  return sorted(
    (part, other)
    for part, names in above.items()
    if part not in BOTTOM
    for other in names
    if not any(other in reached(p) for p in names - {other})
  )


def places(found: Mapping[str, set[str]]) -> dict[str, tuple[float, int]]:
  """Part -> its position; rows are counted from the bottom.

  Raises:
    ValueError: a part has no position, or imports one that is above it.
  """
  result = {
    part: (x, len(ROWS) - 1 - row)
    for row, parts in enumerate(ROWS)
    for part, x in parts.items()
  }
  if odd := {*found} ^ {*result}:
    raise ValueError(f'ROWS and the package differ by {sorted(odd)}')
  for part, other in arrows(found):
    if result[other][1] > result[part][1]:
      raise ValueError(f'{part} imports {other}, which is above it')
  return result


def draw(path: pathlib.Path) -> None:
  """Writes the picture; the same imports give the same bytes."""
  found = imports()
  where = places(found)
  made = figure.Figure(figsize=(10.5, 7))
  axes = made.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, 1)
  axes.set_ylim(-0.5, len(ROWS) - 0.5)
  axes.axis('off')
  for part, other in arrows(found):
    (x0, y0), (x1, y1) = where[part], where[other]
    level = y0 == y1
    axes.add_patch(
      patches.FancyArrowPatch(
        (x0 + 0.05, y0) if level else (x0, y0 - 0.2),
        (x1 - 0.04, y1) if level else (x1, y1 + 0.22),
        arrowstyle='-|>',
        mutation_scale=11,
        color='#9aa1ac',
        linewidth=1,
      )
    )
  for part, (x, y) in where.items():
    bottom = part in BOTTOM
    axes.text(
      x,
      y,
      part,
      ha='center',
      va='center',
      fontsize=11,
      bbox={
        'boxstyle': 'round,pad=0.45',
        'facecolor': '#eceef2' if bottom else '#e6f0f7',
        'edgecolor': '#9aa1ac' if bottom else '#0072b2',
      },
    )
  axes.text(
    0.5,
    -0.42,
    'all parts may import these: no arrows are drawn',
    ha='center',
    color='#5f6775',
    fontsize=9,
  )
  made.savefig(path, metadata={'Date': None, 'Description': listing(found)})


def listing(found: Mapping[str, set[str]]) -> str:
  """The arrows as text, stored in the picture's metadata."""
  return '; '.join(f'{part} -> {other}' for part, other in arrows(found))


def main() -> None:
  """Writes the picture."""
  parser = command_line.parser(__doc__)
  parser.add_argument(
    'path',
    nargs='?',
    type=pathlib.Path,
    default=REPOSITORY / 'docs' / 'imports.svg',
    help='SVG to write; docs/imports.svg by default',
  )
  path = parser.parse_args().path
  path.parent.mkdir(parents=True, exist_ok=True)
  # Reproducible names of shapes, and text as text.
  with matplotlib.rc_context({'svg.hashsalt': 'x', 'svg.fonttype': 'none'}):
    draw(path)


if __name__ == '__main__':
  command_line.run(main)
