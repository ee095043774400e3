"""The latest checkpoint of a cell, kept while the cell is being finetuned."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from edsft_jax.finetuning.trainer import State


class Checkpoints:
  """The latest checkpoint of a cell; opens the folder only when needed."""

  def __init__(self, directory: pathlib.Path):
    """Takes the checkpoint folder, which need not exist."""
    self._directory = directory.absolute()
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._manager is not None:
      self._manager.close()

  def restore(self, state: State) -> tuple[int, State]:
    """Step and state of the last complete checkpoint, or 0 and `state`."""
    if not self._directory.exists():
      return 0, state
    step = self._open().latest_step()
    if step is None:
      return 0, state
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, _on_disk(state))
    restored = self._open().restore(
      step, args=ocp.args.StandardRestore(abstract)
    )
    return step, State(restored['params'], restored['optimizer'])

  def save(self, step: int, state: State) -> None:
    """Saves asynchronously; orbax renames the folder once it is complete."""
    self._open().save(step, args=ocp.args.StandardSave(_on_disk(state)))

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=1),
      )
    return self._manager


def _on_disk(state: State) -> dict[str, Any]:
  """The state under its names on disk, independent of the field names."""
  return {'params': state.params, 'optimizer': state.opt_state}
