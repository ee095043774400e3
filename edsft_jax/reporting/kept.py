"""Keeps a study's results in a few files that suffice to compute them again.

The page, config and tables of a finished study fit into a repository, unlike
its models and scores. All comparisons follow from the value of each item:

  items.csv.gz   strategy, budget, seed, task, metric, id, value
  weights.csv    metric, id, weight and cluster of an item in the metric's mean
  metrics.json   what each metric is, and the size of the pool
  ids.csv        split, id of the prompts that were chosen from and evaluated on
"""

from collections.abc import Mapping
import csv
import dataclasses
import gzip
import pathlib
import shutil
from typing import Any

import ml_collections
import numpy as np

from edsft_jax import errors, store, study
from edsft_jax.reporting import comparison, results, statistics, tables
from edsft_jax.reporting.differences import csv_difference
from edsft_jax.reporting.tables import Table

ITEMS, WEIGHTS, METRICS = 'items.csv.gz', 'weights.csv', 'metrics.json'
# Tables that are computed again from these.
_CELLS, _COMPARISONS, _SAVINGS = 'cells.csv', 'comparisons.csv', 'savings.csv'
IDS = 'ids.csv'
_WEIGHT_COLUMNS = ('metric', 'id', 'weight', 'cluster')
_ID_COLUMNS = ('split', 'id')
# The maximum size of index.html, in bytes.
MAX_PAGE = 3_000_000


def write(workdir: store.Workdir, folder: pathlib.Path) -> None:
  """Copies page, plots and tables of a study, and adds what they come from.

  Raises:
    InputError: the study has no report, evaluations are missing, or the page is
      too large.
  """
  config = study.read_config(workdir)
  store.require(workdir.report, 'report', frozenset())
  found = results.read_results(config, workdir)
  if found.absent:
    raise errors.InputError(
      f'{workdir.root} is not finished: '
      f'{"; ".join(results.absent_lines(found.absent))}'
    )
  if (size := workdir.report.stat().st_size) > MAX_PAGE:
    raise errors.InputError(
      f'{workdir.report} has {size:,} bytes; a page that is kept may have at '
      f'most {MAX_PAGE:,}'
    )
  folder.mkdir(parents=True, exist_ok=True)
  for path in workdir.report.parent.iterdir():
    if path.suffix in ('.html', '.png', '.svg', '.pdf', '.csv', '.tex'):
      shutil.copyfile(path, folder / path.name)
  store.write_json(store.Workdir(folder).config, config.to_dict())
  described = {
    name: dataclasses.asdict(metric) for name, metric in found.metrics.items()
  }
  store.write_json(
    folder / METRICS, {'pool_size': found.pool_size, 'metrics': described}
  )
  for name, table in {
    **_tables(config, found),
    ITEMS: (tables.ITEM_COLUMNS, tables.item_rows(found)),
    WEIGHTS: (_WEIGHT_COLUMNS, _weight_rows(found)),
    IDS: (_ID_COLUMNS, _id_rows(workdir)),
  }.items():
    _write_csv(folder / name, table)


def differences(folder: pathlib.Path) -> list[str]:
  """Names the tables that differ from what the items give; writes nothing.

  Raises:
    InputError: a file is missing or damaged.
  """
  try:
    config = study.read_config(store.Workdir(folder))
    found = _read(config, folder)
    return [
      f'{folder / name} is not what {ITEMS} gives'
      for name, table in _tables(config, found).items()
      if csv_difference(folder / name, table)
    ]
  except errors.InputError:
    raise
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f'{folder} is not a complete study ({error!r}): restore it from a copy'
    ) from error


def _tables(
  config: ml_collections.ConfigDict, found: results.Results
) -> dict[str, Table]:
  compared = comparison.compare_all(
    found, config.report.metric, config.report.confidence
  )
  return {
    _CELLS: (tables.CELL_COLUMNS, tables.cell_rows(found)),
    _COMPARISONS: (
      tables.COMPARISON_COLUMNS,
      tables.comparison_rows(compared),
    ),
    _SAVINGS: (tables.SAVINGS_COLUMNS, tables.savings_rows(compared)),
  }


def _weight_rows(found: results.Results) -> list[tuple[Any, ...]]:
  return [
    (name, item_id, float(weight), int(cluster))
    for name, items in found.items.items()
    for item_id, weight, cluster in zip(
      found.item_ids[found.metrics[name].task],
      items.weights,
      items.clusters,
      strict=True,
    )
  ]


def _id_rows(workdir: store.Workdir) -> list[tuple[str, str]]:
  """Rows of the ids of the pool and of the held-out prompts."""
  return [
    (split, prompt_id)
    for split, path in (('pool', workdir.pool), ('heldout', workdir.heldout))
    if path.exists()
    for prompt_id in store.read_prompts(path).ids
  ]


def _read(
  config: ml_collections.ConfigDict, folder: pathlib.Path
) -> results.Results:
  """The results that the items give."""
  about = store.read_json(folder / METRICS)
  metrics = {
    name: results.Metric(**fields) for name, fields in about['metrics'].items()
  }
  items, ids = _read_weights(folder, metrics)
  values: dict[study.Cell, dict[str, list[float]]] = {}
  for row in _read_csv(folder / ITEMS):
    cell = study.Cell(row['strategy'], int(row['budget']), int(row['seed']))
    of_metric = values.setdefault(cell, {}).setdefault(row['metric'], [])
    if row['id'] != ids[row['task']][len(of_metric)]:
      raise ValueError(f'{row["id"]} of {cell.name} is not in its place')
    of_metric.append(float(row['value']))
  evaluations = {}
  for cell, by_metric in values.items():
    arrays = {name: np.array(of_cell) for name, of_cell in by_metric.items()}
    evaluations[cell] = results.Evaluation(
      num_items={
        task: len(ids[task]) for task in {metrics[name].task for name in arrays}
      },
      metrics={
        name: float(array @ items[name].weights)
        for name, array in arrays.items()
      },
      items=arrays,
    )
  return results.of_study(
    config,
    metrics=metrics,
    evaluations=evaluations,
    absent=[],
    pool_size=about['pool_size'],
    items=items,
    item_ids=ids,
  )


def _read_weights(
  folder: pathlib.Path, metrics: Mapping[str, results.Metric]
) -> tuple[dict[str, statistics.Items], dict[str, list[str]]]:
  """Weights and clusters by metric, and the ids of items by task."""
  rows = _read_csv(folder / WEIGHTS)
  items, ids = {}, {}
  for name, metric in metrics.items():
    mine = [row for row in rows if row['metric'] == name]
    items[name] = statistics.Items(
      np.array([float(row['weight']) for row in mine]),
      np.array([int(row['cluster']) for row in mine]),
    )
    ids[metric.task] = [row['id'] for row in mine]
  return items, ids


def _write_csv(path: pathlib.Path, table: Table) -> None:
  text = tables.csv_text(table)
  if path.suffix != '.gz':
    store.write_text(path, text)
    return
  with store.replacing(path) as partial:
    # No timestamp, so that the same study gives the same bytes.
    partial.write_bytes(gzip.compress(text.encode('utf-8'), mtime=0))


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  open_text = gzip.open if path.suffix == '.gz' else open
  with open_text(path, 'rt', encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))
