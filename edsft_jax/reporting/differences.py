"""Compares a report with what its inputs give."""

from collections.abc import Iterator
import csv
import io
import itertools
import json
import math
import pathlib
import re
from typing import Any

import ml_collections

from edsft_jax import store
from edsft_jax.reporting import results, tables
from edsft_jax.reporting.tables import Table

# A stage adds seconds even if its work was done before, and money may include
# their price. UMAP depends on the machine, and need not be installed on it.
_NOT_COMPARED = ('seconds', 'money', 'umap')


def differences(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[str]:
  """Names each file of the report that differs, and its first difference.

  Nothing is written. Numbers may differ by rounding.

  Raises:
    InputError: an input is damaged.
  """
  if not workdir.report.exists():
    return []
  from edsft_jax.reporting import page, plots

  found = results.read_results(config, workdir)
  # The numbers of images are those of their csv files.
  made = page.make(
    config,
    workdir,
    store.Manifest(workdir),
    found,
    lambda draw, name, caption: plots.Images('<svg></svg>', b'', b''),
  )
  folder = workdir.report.parent
  made_tables: dict[str, Table] = {
    **{f'{e.name}.csv': (e.columns, e.rows) for e in made.exhibits},
    **made.tables,
  }
  lines = []
  for name, table in made_tables.items():
    path = folder / name
    if not path.exists():
      lines.append(f'{path} is missing')
    elif place := csv_difference(path, table):
      lines.append(f'{path} is not what the items and selections give: {place}')
  html = _read(workdir.report)
  for name, data in made.data.items():
    if place := next(_data_differences(_embedded(html, name), data), ''):
      lines.append(
        f'{workdir.report} is not what the items and selections give: {place} '
        f'of the data {name}'
      )
  if _numbers(html) != _numbers(made.html):
    lines.append(
      f'{workdir.report} is not what the items and selections give: run the '
      'report stage to see what it should be'
    )
  return lines


def csv_difference(path: pathlib.Path, table: Table) -> str:
  """The first value of a csv that is not the table's, in words; '' if none.

  Numbers may differ by rounding.
  """
  old, new = (
    list(csv.reader(io.StringIO(text)))
    for text in (_read(path), tables.csv_text(table))
  )
  places = [
    [i for i, column in enumerate(rows[0]) if _is_compared(column)]
    if rows
    else []
    for rows in (old, new)
  ]
  columns = [new[0][i] for i in places[1]]
  if not old or [old[0][i] for i in places[0]] != columns:
    return 'other columns'
  lengths = len(old[0]), len(new[0])
  for number, (was, would) in enumerate(
    itertools.zip_longest(old[1:], new[1:], fillvalue=()), start=2
  ):
    if (len(was), len(would)) != lengths:
      return f'line {number}'
    for column, i, j in zip(columns, *places, strict=True):
      if not _equal(_value(was[i]), _value(would[j]), column):
        return f'{column} of line {number} is {was[i]!r}, not {would[j]!r}'
  return ''


def _read(path: pathlib.Path) -> str:
  """A file's text with its line endings unchanged."""
  return path.read_bytes().decode('utf-8')


def _is_compared(name: str) -> bool:
  return not any(word in name.lower() for word in _NOT_COMPARED)


def _value(text: str) -> float | str:
  try:
    return float(text)
  except ValueError:
    return text


def _equal(one: Any, other: Any, name: str) -> bool:
  """Whether two values of that name are equal, up to rounding."""
  if isinstance(one, float) and isinstance(other, float):
    # Coordinates have four digits.
    least = 2e-4 if 'pca' in name.lower() else 1e-9
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=least)
  return bool(one == other)


def _embedded(html: str, name: str) -> Any:
  """Data embedded in the page; None if it is missing."""
  match = re.search(f'(?s)id="{name}-data">(.*?)</script>', html)
  return json.loads(match[1]) if match else None


def _data_differences(one: Any, other: Any, place: str = '') -> Iterator[str]:
  """Where two values from JSON differ."""
  if isinstance(other, dict) and isinstance(one, dict):
    one, other = (
      {name: value for name, value in names.items() if _is_compared(name)}
      for names in (one, other)
    )
    if one.keys() != other.keys():
      yield f'the names of {place or "everything"}'
      return
    for name, value in other.items():
      yield from _data_differences(one[name], value, f'{place} {name}')
  elif isinstance(other, list) and isinstance(one, list):
    if len(one) != len(other):
      yield f'the number of {place}'
      return
    for number, (was, would) in enumerate(zip(one, other, strict=True)):
      yield from _data_differences(was, would, f'{place} {number}')
  elif isinstance(other, float) and isinstance(one, int | float):
    if not _equal(float(one), other, place):
      yield place.strip()
  elif one != other:
    yield place.strip() or 'everything'


def _numbers(html: str) -> str:
  """The page without plots, scripts, seconds, UMAP and the counts of stages.

  A later command may have counted again, even if it was refused.
  """
  html = re.sub('(?s)<svg.*?</svg>', '', html)
  html = re.sub('(?s)<script.*?</script>', '', html)
  html = re.sub('(?s)<table id="counts">.*?</table>', '', html)
  html = re.sub('(?s)<figure id="(cost_efficiency|map).*?</figure>', '', html)
  return re.sub('(?s)<h2 id="time">.*?(?=<h2)', '', html)
