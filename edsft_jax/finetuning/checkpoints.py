"""The latest checkpoints of a cell, kept while the cell is being finetuned.

A folder per step, written by orbax, with the SHA-256 of its files. It gets its
name once it is complete, so a kill during a save leaves the one before. Each of
several processes writes and reads its part, and all make the same calls.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import pathlib
import shutil
import sys
import threading
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from edsft_jax import errors, out_of_memory, processes, store
from edsft_jax.finetuning.bundles import Bundles
from edsft_jax.finetuning.trainer import State

# If the last one is damaged, the one before it is still good.
_MAX_TO_KEEP = 2
_CHECKSUMS = 'checksums.json'
_PROGRESS = 'progress.json'
# orbax adds the time to this one when it renames the folder.
_UNSUMMED = (_CHECKSUMS, '_CHECKPOINT_METADATA')
_PARTIAL = '.orbax-checkpoint-tmp'


class Restored(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    step: the number of steps done.
    state: parameters and optimizer state after that step.
    progress: the JSON object saved with it; empty for the initial state.
  """

  step: int
  state: State
  progress: dict[str, Any]


class Checkpoints:
  """The checkpoints of a cell; opens the folder only when needed.

  Each thread can have its own. A save first waits for any other one, because
  orbax confuses saves that run at the same time in one process.
  """

  # Held while a thread uses orbax.
  _orbax = threading.RLock()
  # The instance whose save may still be running.
  _saving: 'Checkpoints | None' = None

  def __init__(
    self,
    directory: pathlib.Path,
    max_to_keep: int | None = _MAX_TO_KEEP,
    remedy: str = '',
  ):
    """Takes the checkpoint folder, which need not exist.

    Args:
      directory: the folder.
      max_to_keep: how many checkpoints stay, the latest ones; None: all.
      remedy: what to do if one cannot be used; '': remove it, and resume from
        the one before.
    """
    self._directory = directory.absolute()
    self._max_to_keep = max_to_keep
    self._remedy = remedy
    self._manager: ocp.CheckpointManager | None = None
    self._bundles: Bundles | None = None
    self._progress: dict[str, Any] = {}

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, exception: type[BaseException] | None, *_: Any) -> None:
    """Waits for a pending save; hides its error if another one was raised."""
    try:
      with (
        contextlib.suppress(errors.InputError)
        if exception
        else contextlib.nullcontext()
      ):
        self.wait()
    finally:
      self._close()

  @property
  def last_step(self) -> int | None:
    """The step of the last complete checkpoint, or None."""
    return processes.from_first(
      'last checkpoint', lambda: max(self._steps(), default=None)
    )

  def has(self, step: int) -> bool:
    """Whether there is a complete checkpoint of a step."""
    return processes.from_first('checkpoint', lambda: step in self._steps())

  def restore(self, shapes: State) -> Restored | None:
    """The last complete checkpoint, or None if there is none.

    Args:
      shapes: shape, dtype and sharding of every array, or the arrays.

    Raises:
      InputError: it is damaged, or has other arrays; the message names the
        folder and says what to do.
    """
    step = self.last_step
    return None if step is None else self.read(step, shapes)

  def check(self, step: int) -> None:
    """Requires the checkpoint of a step, with its files as they were written.

    Raises:
      InputError: it is missing or damaged.
    """
    if processes.is_first():
      self._verify(step)
    processes.barrier('checkpoint verified')

  def read(self, step: int, shapes: State) -> Restored:
    """The checkpoint of a step; see `restore`.

    Raises:
      InputError: it is missing or damaged, or has other arrays.
    """
    self.check(step)
    bundles = Bundles(_on_disk(shapes))
    try:
      with self._orbax:
        found = self._open().restore(
          step,
          args=ocp.args.PyTreeRestore(
            bundles.shapes,
            ocp.checkpoint_utils.construct_restore_args(bundles.shapes),
          ),
        )
      progress = processes.from_first(
        'progress',
        lambda: store.read_json(self._directory / str(step) / _PROGRESS),
      )
    except Exception as error:  # orbax has no error of its own.
      if out_of_memory.is_meant_by(error):
        raise
      what = str(error).partition('\n')[0].rstrip(': ') or repr(error)
      raise self._unusable(
        step, f'is damaged, or of another version ({what})'
      ) from error
    state = bundles.unpack(found)
    saved = State(state['params'], state['optimizer'])
    return Restored(step, saved, progress)

  def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
    """Saves in the background; waits for the save before this one.

    All states have the shapes and shardings of the first one.

    Raises:
      InputError: the disk was full during this save or the one before.
    """
    on_disk = _on_disk(state)
    # Once, since names and hashes of all arrays take longer than packing them.
    self._bundles = self._bundles or Bundles(on_disk)
    arrays = self._bundles.pack(on_disk)
    with self._orbax, self._reporting_full_disk():
      if Checkpoints._saving is not None:
        Checkpoints._saving.wait()
      Checkpoints._saving = self
      self._progress = progress
      # Also if there is one of a later step.
      self._open().save(step, args=ocp.args.PyTreeSave(arrays), force=True)

  def wait(self) -> None:
    """Waits until the last save is complete.

    Raises:
      InputError: the disk was full.
    """
    with self._orbax:
      if self._manager is not None:
        with self._reporting_full_disk():
          self._manager.wait_until_finished()

  def remove_others(self, step: int) -> None:
    """Removes the checkpoints of all other steps."""
    others = processes.from_first(
      'other checkpoints', lambda: [s for s in self._steps() if s != step]
    )
    if not others:
      return
    # orbax remembers which ones there are.
    self._close()
    if processes.is_first():
      for other in others:
        shutil.rmtree(self._directory / str(other))
    processes.barrier('checkpoints removed')

  def _close(self) -> None:
    with self._orbax:
      if Checkpoints._saving is self:
        Checkpoints._saving = None
      if self._manager is not None:
        self._manager.close()
        self._manager = None

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      if processes.is_first():
        self._directory.mkdir(parents=True, exist_ok=True)
      processes.barrier('checkpoint folder')
      self._manager = ocp.CheckpointManager(
        self._directory,
        item_handlers=_handler(),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._max_to_keep,
          create=False,
          multiprocessing_options=_multiprocessing(),
          cleanup_tmp_directories=True,
          async_options=ocp.AsyncOptions(
            post_finalization_callback=self._complete
          ),
        ),
      )
    return self._manager

  def _steps(self) -> list[int]:
    if not self._directory.exists():
      return []
    if not self._directory.is_dir():
      raise errors.InputError(
        f'{self._directory} is not a folder: remove it and run the same command'
      )
    names = [p.name for p in self._directory.iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())

  def _complete(self) -> None:
    """Adds the progress and the checksums to a folder with its arrays.

    Called by orbax before the folder gets its name. An item of orbax's own for
    the progress would take as long as all arrays of a small model.
    """
    for folder in self._directory.glob(f'*{_PARTIAL}'):
      store.write_json(folder / _PROGRESS, self._progress)
      store.write_json(folder / _CHECKSUMS, _checksums(folder))

  def _verify(self, step: int) -> None:
    """Compares a checkpoint's files with their checksums."""
    folder = self._directory / str(step)
    if not folder.exists():
      raise self._unusable(step, 'is missing')
    try:
      expected = store.read_json(folder / _CHECKSUMS)
    except (OSError, ValueError):
      expected = None
    if not isinstance(expected, dict):
      what = f'{_CHECKSUMS} cannot be read'
      raise self._unusable(step, f'is damaged ({what})')
    found = _checksums(folder)
    for name in found:
      # When orbax renames the folder, it adds files next to the checksums.
      is_added = pathlib.Path(name).parent == pathlib.Path()
      if name not in expected and not is_added:
        what = f'{name} is not in {_CHECKSUMS}'
        raise self._unusable(step, f'is damaged ({what})')
    for name, checksum in expected.items():
      if name not in found:
        raise self._unusable(step, f'is damaged ({name} is missing)')
      if found[name] != checksum:
        raise self._unusable(
          step, f'is damaged ({name} has changed since it was written)'
        )

  def _unusable(self, step: int, why: str) -> errors.InputError:
    before = [s for s in self._steps() if s < step]
    then = (
      f'resume from step {before[-1]}' if before else 'start this cell again'
    )
    remedy = self._remedy or (
      f'remove that folder and run the same command to {then}'
    )
    return errors.InputError(
      f'the checkpoint {self._directory / str(step)} {why}: {remedy}'
    )

  @contextlib.contextmanager
  def _reporting_full_disk(self) -> Iterator[None]:
    try:
      with store.reporting_full_disk(self._directory):
        yield
    except errors.InputError:
      for folder in self._directory.glob(f'*{_PARTIAL}'):
        shutil.rmtree(folder, ignore_errors=True)
      raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Hides orbax's reports of a failed save, whose error is also raised."""
  logging.getLogger('absl').addFilter(_is_not_by_orbax)
  # The next two stay, since these reports come when the failed writes are
  # collected, at the latest when the process ends.
  logging.getLogger('asyncio').addFilter(_is_not_about_a_write)
  if not isinstance(sys.unraisablehook, _HookForOthers):
    sys.unraisablehook = _HookForOthers(sys.unraisablehook)
  try:
    yield
  finally:
    logging.getLogger('absl').removeFilter(_is_not_by_orbax)


class _HookForOthers:
  """Reports what cannot be raised, but not a write that was abandoned."""

  def __init__(self, hook: Callable[['sys.UnraisableHookArgs'], Any]):
    self._hook = hook

  def __call__(self, found: 'sys.UnraisableHookArgs') -> None:
    if str(found.exc_value) != 'Event loop is closed':
      self._hook(found)


def _handler() -> ocp.PyTreeCheckpointHandler:
  """Writes each array that it is given (see bundles.py) to a folder of its own.

  One database for all arrays (OCDBT) and a file about each array take a quarter
  of the time of a small model's save, and are worth it for many arrays.
  """
  handlers = ocp.type_handlers
  arrays = handlers.ArrayHandler(array_metadata_store=None)
  return ocp.PyTreeCheckpointHandler(
    use_ocdbt=False,
    type_handler_registry=handlers.create_type_handler_registry(
      (jax.Array, arrays)
    ),
  )


def _multiprocessing() -> MultiprocessingOptions:
  """Makes orbax wait through JAX's coordination service, not by collectives."""
  everyone = set(range(processes.count()))
  return MultiprocessingOptions(
    active_processes=everyone if len(everyone) > 1 else None
  )


def _on_disk(state: State) -> dict[str, Any]:
  """The state under its names on disk, independent of the field names."""
  return {'params': state.params, 'optimizer': state.opt_state}


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of the files in a checkpoint's folder."""
  return {
    str(path.relative_to(folder)): store.hash_file(path)
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name not in _UNSUMMED
  }


def _is_not_about_a_write(record: logging.LogRecord) -> bool:
  """Log filter: asyncio reports each of orbax's writes that failed."""
  error = record.exc_info[1] if record.exc_info else None
  return _PARTIAL not in str(error)


def _is_not_by_orbax(record: logging.LogRecord) -> bool:
  """Log filter: orbax logs the errors that it raises, with tracebacks."""
  return 'orbax' not in pathlib.Path(record.pathname).parts
