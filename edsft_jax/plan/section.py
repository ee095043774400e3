"""A part of the plan: sentences and a table, for the terminal and the page."""

from collections.abc import Sequence
import dataclasses
import textwrap

from edsft_jax import console
from edsft_jax.reporting.wording import shortened

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
    num_text: how many of the first columns are text; the others are numbers.
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
    table = [self.columns, *self.rows] if self.rows else []
    rows = console.aligned(table, self.num_text)
    return '\n'.join(
      [self.title.upper(), *(shortened(row, WIDTH) for row in rows), *lines]
    )
