"""The state of the cells that the page does not show."""

from collections.abc import Sequence
import dataclasses

import ml_collections

from edsft_jax import console, store, study


@dataclasses.dataclass(frozen=True)
class Group:
  """Cells of a strategy at a budget that are in the same state.

  Attributes:
    strategy: the strategy, or the reference.
    budget: the budget.
    seeds: the seeds of the cells.
    state: why they are missing, in words.
  """

  strategy: str
  budget: int
  seeds: Sequence[int]
  state: str


def groups(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  absent: Sequence[study.Cell],
) -> list[Group]:
  """The absent cells, grouped by strategy, budget and state."""
  if not absent:
    return []
  outdated = study.outdated(workdir)
  answered = store.known_answers(workdir)
  seeds: dict[tuple[str, int, str], list[int]] = {}
  for cell in absent:
    if cell in outdated:
      state = 'its answers were corrected: finetune again'
    else:
      state = _state(config, workdir, cell, answered)
    seeds.setdefault((cell.strategy, cell.budget, state), []).append(cell.seed)
  return [
    Group(strategy, budget, found, state)
    for (strategy, budget, state), found in seeds.items()
  ]


def _state(
  config: ml_collections.ConfigDict,
  workdir: store.Workdir,
  cell: study.Cell,
  answered: dict[str, str],
) -> str:
  run = workdir.run(cell.name)
  if run.model.exists() or cell == study.no_finetuning_cell():
    return 'not evaluated'
  if run.cell.exists():
    return f'failed or interrupted: {_progress(run)}, no model'
  if not workdir.selection(cell.strategy, cell.seed).exists():
    return 'not finetuned'
  ids = study.selected_ids(workdir, cell.strategy, cell.seed)[: cell.budget]
  if missing := study.num_missing(cell, ids, answered):
    return f'waits for {console.count(missing, "answer")}'
  return 'not finetuned'


def _progress(run: store.Run) -> str:
  """How far the finetuning of an unfinished cell got."""
  lines = store.read_jsonl(run.metrics) if run.metrics.exists() else []
  if not lines:
    return 'no step was logged'
  last = lines[-1]
  return f'loss {last["loss"]:.3f} at step {last["step"]:,}'
