"""Terminal output: one line per fact, tables, and progress bars.

With several processes, only the first prints.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import tqdm

from edsft_jax import processes


def say(stage: str, text: str) -> None:
  """Prints one line of a stage, aligned with the others."""
  if processes.is_first():
    tqdm.tqdm.write(f'{stage:<9} {text}')


def count(number: int, noun: str) -> str:
  """'1 prompt', '2,000 prompts': for nouns with a regular plural."""
  return f'{number:,} {noun}{"" if number == 1 else "s"}'


def aligned(rows: Sequence[Sequence[str]], num_text: int = 1) -> list[str]:
  """The lines of a table.

  Args:
    rows: their cells, the same number in each.
    num_text: how many of the first columns are text, aligned left; the others
      are numbers, aligned right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if i < num_text else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def bar(
  stage: str,
  total: int | None,
  unit: str,
  initial: int = 0,
  iterable: Iterable[Any] | None = None,
) -> tqdm.tqdm:
  """A progress bar with rate and time left; `initial` was done before.

  Redraws on a terminal, and writes a line every ten seconds to a log file.
  """
  import sys

  return tqdm.tqdm(
    iterable,
    desc=f'{stage:<9}',
    total=total,
    unit=f' {unit}',
    initial=initial,
    dynamic_ncols=True,
    mininterval=0.2 if sys.stderr.isatty() else 10.0,
    smoothing=0.1,
    disable=not processes.is_first(),
  )
