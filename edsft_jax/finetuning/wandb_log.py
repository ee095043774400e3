"""Shows a cell's training in Weights & Biases."""

from collections.abc import Iterator, Mapping
import contextlib
from typing import Any

from edsft_jax import store
from edsft_jax.finetuning.metrics_log import Tracker


@contextlib.contextmanager
def tracker(
  project: str, run: store.Run, facts: Mapping[str, Any]
) -> Iterator[Tracker | None]:
  """Logs to a run of a project; None without a project.

  A resumed cell continues the run that it had.

  Args:
    project: its name, or ''.
    run: the cell's folder; wandb keeps its files there.
    facts: cell and options, shown with the run.
  """
  if not project:
    yield None
    return
  import wandb

  # The same study in another folder is another run.
  run_id = store.hash_json([str(run.root.resolve()), dict(facts)])[:16]
  with wandb.init(
    project=project,
    name=run.root.name,
    id=run_id,
    resume='allow',
    dir=run.root,
    config=dict(facts),
  ) as opened:
    yield opened
