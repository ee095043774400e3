"""The files that the page is made from."""

import pathlib

import ml_collections

from edsft_jax import store, study
from edsft_jax.reporting import results


def input_files(
  config: ml_collections.ConfigDict, workdir: store.Workdir
) -> list[pathlib.Path]:
  """The existing files that the page is made from."""
  paths = [
    workdir.pool,
    workdir.responses,
    workdir.rejected,
    workdir.amended,
    workdir.gains_curves,
    workdir.parts,
    workdir.contamination,
    *(workdir.selection_record(s) for s in config.selection.strategies),
    *(
      workdir.selection(strategy, seed)
      for strategy in config.selection.strategies
      for seed in study.seeds(config, strategy)
    ),
    *(
      path
      for cell in results.cells(config, workdir, results.pool_size(workdir))
      for path in _cell_files(workdir.run(cell.name))
    ),
  ]
  return [path for path in paths if path.exists()]


def _cell_files(run: store.Run) -> list[pathlib.Path]:
  """What the page shows of a cell."""
  return [
    *(run.cell, run.metrics, run.timing),
    *(
      evaluation.with_name(name)
      for evaluation in results.evaluation_files(run)
      for name in ('eval.json', 'items.jsonl', 'timing.json')
    ),
  ]
