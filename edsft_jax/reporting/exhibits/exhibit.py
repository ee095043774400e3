"""A plot with its data."""

from collections.abc import Callable
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Exhibit:
  """A plot with its data.

  Attributes:
    name: name of its files.
    caption: what it shows.
    alt: text for readers who cannot see the plot, with its main numbers.
    draw: makes the figure.
    columns: header of the csv.
    rows: rows of the csv; None is an empty field.
    note: a further remark, at the end of the caption.
  """

  name: str
  caption: str
  alt: str
  draw: Callable[[], Any]
  columns: tuple[str, ...]
  rows: list[tuple[Any, ...]]
  note: str = ''

  @property
  def text(self) -> str:
    """The caption with the note."""
    return f'{self.caption} {self.note}'.strip()
