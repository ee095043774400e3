"""Draws which part of the package imports which, for WORKSPACE.md.

  python scripts/draw_imports.py     # writes docs/imports.svg

A part is a package or a module at the top of edsft_jax; strategies/registry.py
is one of its own. Each stands above all that it imports. Arrows that follow
from others are left out, and so are those to the ground floor, which serves
all.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping
import pathlib

from matplotlib import figure, patches

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / 'edsft_jax'
GROUND = ('store', 'console', 'processes', 'errors')
REGISTRY = 'strategies/registry'
# Floors from the top, and where parts stand on them, from 0 to 1.
FLOORS: tuple[dict[str, float], ...] = (
  {'main': 0.5},
  {'pipeline': 0.5, 'config': 0.75},
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
  {'inference': 0.15, 'selection': 0.9},
  {'models': 0.3, 'study': 0.68},
  {'mesh': 0.3, REGISTRY: 0.68},
  {name: 0.2 + 0.2 * i for i, name in enumerate(GROUND)},
)


def part_of(module: str) -> str:
  """The part that a module, or a name in one, belongs to."""
  if module.startswith('edsft_jax.strategies.registry'):
    return REGISTRY
  return module.split('.')[1]


def imports() -> dict[str, set[str]]:
  """Part -> the parts that it imports, wherever in its files it does.

  The table of stages in pipeline.py names modules; these count too.
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
  # What a chooser imports when it is called is not an import of the registry.
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
  """The imports above the ground floor that do not follow from others."""
  above = {p: names - {*GROUND} for p, names in found.items()}

  def reached(part: str) -> set[str]:
    return above[part].union(*(reached(p) for p in above[part]))

  return sorted(
    (part, other)
    for part, names in above.items()
    if part not in GROUND
    for other in names
    if not any(other in reached(p) for p in names - {other})
  )


def places(found: Mapping[str, set[str]]) -> dict[str, tuple[float, int]]:
  """Part -> where it stands, floors counted from the ground.

  Raises:
    ValueError: a part has no place, or imports one that is not below it.
  """
  result = {
    part: (x, len(FLOORS) - 1 - floor)
    for floor, parts in enumerate(FLOORS)
    for part, x in parts.items()
  }
  if odd := {*found} ^ {*result}:
    raise ValueError(f'FLOORS and the package differ by {sorted(odd)}')
  for part, other in arrows(found):
    if result[other][1] > result[part][1]:
      raise ValueError(f'{part} imports {other}, which is above it')
  return result


def draw(path: pathlib.Path) -> None:
  """Writes the picture; the same code gives the same bytes."""
  found = imports()
  where = places(found)
  made = figure.Figure(figsize=(10.5, 7))
  axes = made.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, 1)
  axes.set_ylim(-0.5, len(FLOORS) - 0.5)
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
    ground = part in GROUND
    axes.text(
      x,
      y,
      part,
      ha='center',
      va='center',
      fontsize=11,
      bbox={
        'boxstyle': 'round,pad=0.45',
        'facecolor': '#eceef2' if ground else '#e6f0f7',
        'edgecolor': '#9aa1ac' if ground else '#0072b2',
      },
    )
  axes.text(
    0.5,
    -0.42,
    'serve all: arrows to them are not drawn',
    ha='center',
    color='#5f6775',
    fontsize=9,
  )
  made.savefig(path, metadata={'Date': None, 'Description': listing(found)})


def listing(found: Mapping[str, set[str]]) -> str:
  """The arrows in words, kept in the picture."""
  return '; '.join(f'{part} -> {other}' for part, other in arrows(found))


def main() -> None:
  """Writes the picture."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    'path',
    nargs='?',
    type=pathlib.Path,
    default=REPOSITORY / 'docs' / 'imports.svg',
  )
  import matplotlib

  # Names of shapes that do not change from run to run; text as text.
  with matplotlib.rc_context({'svg.hashsalt': 'x', 'svg.fonttype': 'none'}):
    draw(parser.parse_args().path)


if __name__ == '__main__':
  main()
