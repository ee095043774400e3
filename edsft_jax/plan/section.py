"""A part of the plan: sentences and a table, for the terminal and the page."""

from collections.abc import Sequence
import dataclasses
import textwrap

# Columns of a terminal.
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the plan.

  Attributes:
    title: its heading.
    lines: sentences.
    columns: header of a table; empty without one.
    rows: its rows.
    long_columns: header with names, where there is room for them; empty: the
      same as `columns`.
    num_text: how many of the first columns are text, which is aligned left.
      Numbers, to the right of them, are aligned right.
  """

  title: str
  lines: Sequence[str] = ()
  columns: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()
  long_columns: Sequence[str] = ()
  num_text: int = 1

  def text(self) -> str:
    """The section for the terminal."""
    # Paths and names of strategies stay whole.
    wrapped = textwrap.TextWrapper(
      WIDTH, break_long_words=False, break_on_hyphens=False
    )
    lines = [part for line in self.lines for part in wrapped.wrap(line)]
    return '\n'.join([self.title.upper(), *self._table(), *lines])

  def _table(self) -> list[str]:
    if not self.rows:
      return []
    table = [self.columns, *self.rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
      cells = [
        cell.ljust(width) if i < self.num_text else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
      ]
      lines.append(_shortened('  '.join(cells).rstrip(), WIDTH))
    return lines


def _shortened(text: str, length: int) -> str:
  return text if len(text) <= length else f'{text[: length - 3]}...'
