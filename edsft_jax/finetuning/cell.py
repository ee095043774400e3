"""One cell from its first step to its model, through kills and restarts."""

from collections.abc import Callable, Sequence
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorboardX

from edsft_jax import errors, store
from edsft_jax.finetuning import batches
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.models import responses


def train(
  trainer: trainer_lib.Trainer,
  run: store.Run,
  examples: Sequence[responses.Example],
  recipe: trainer_lib.Recipe,
  seed: int,
  *,
  num_rows: int,
  checkpoint_steps: int,
  log_steps: int,
  progress: Callable[[int], Any] = lambda n: None,
) -> trainer_lib.State:
  """Finetunes on the examples; goes on from the last checkpoint if there is.

  metrics.jsonl, the events of TensorBoard and the state returned are, apart
  from seconds, those of a run that was never cut short.

  Args:
    trainer: the compiled step.
    run: where metrics and checkpoints lie.
    examples: the cell's answered prompts.
    recipe: epochs, batch size and learning rate.
    seed: of the initialisation and the data order.
    num_rows: rows a batch is padded to, at least the batch size.
    checkpoint_steps: steps between checkpoints.
    log_steps: steps between lines of metrics.jsonl; every checkpoint and the
      last step have one too.
    progress: called with the number of steps done since the last call, first
      with those of the checkpoint.

  Raises:
    InputError: the loss is not finite, naming cell and step.
  """
  num_steps = batches.num_steps(len(examples), recipe.epochs, recipe.batch_size)
  order = batches.order(len(examples), recipe.epochs, seed)
  rates = trainer_lib.learning_rates(
    recipe.learning_rate, num_steps, recipe.warmup_fraction
  )
  state = trainer.start(seed)
  with _Checkpoints(run.checkpoints) as checkpoints:
    first, state = checkpoints.restore(state)
    progress(first)
    with _Metrics(run, first) as metrics:
      losses: list[jax.Array] = []
      num_targets: list[int] = []
      for step in range(first + 1, num_steps + 1):
        rows = order[(step - 1) * recipe.batch_size : step * recipe.batch_size]
        batch, width = batches.make([examples[i] for i in rows], num_rows)
        state, loss = trainer.step(state, batch, width, rates[step - 1])
        losses.append(loss)
        num_targets.append(int(batch.num_response.sum()))
        progress(1)
        due = step % checkpoint_steps == 0 and step < num_steps
        if not (due or step % log_steps == 0 or step == num_steps):
          continue
        # The only wait for the device, so that steps follow without a gap.
        values = np.asarray(jax.device_get(losses), np.float64)
        if not np.all(np.isfinite(values)):
          bad = step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
          raise _not_finite(run, bad, recipe)
        if step == num_steps and not trainer_lib.all_finite(state):
          raise _not_finite(run, step, recipe)
        metrics.write(
          step,
          loss=float(np.average(values, weights=np.maximum(num_targets, 1))),
          learning_rate=float(rates[step - 1]),
          num_tokens=sum(num_targets),
        )
        losses.clear()
        num_targets.clear()
        if due:
          checkpoints.save(step, state)
  return state


def _not_finite(
  run: store.Run, step: int, recipe: trainer_lib.Recipe
) -> errors.InputError:
  return errors.InputError(
    f'finetuning {run.root.name}: the loss is not finite at step {step}: '
    f'lower finetuning.learning_rate (now {recipe.learning_rate:g}) and remove '
    f'{run.root.parent}, whose other cells were made with it'
  )


class _Checkpoints:
  """The newest state of a cell; opens nothing before there is one to keep."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory.absolute()
    self._manager: ocp.CheckpointManager | None = None

  def __enter__(self) -> '_Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    if self._manager is not None:
      self._manager.close()

  def restore(self, state: trainer_lib.State) -> tuple[int, trainer_lib.State]:
    """The last whole checkpoint and its step, or `state` and 0."""
    if not self._directory.exists():
      return 0, state
    step = self._open().latest_step()
    if step is None:
      return 0, state
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
    return step, self._open().restore(
      step, args=ocp.args.StandardRestore(abstract)
    )

  def save(self, step: int, state: trainer_lib.State) -> None:
    """Writes behind the training's back; whole or not at all."""
    self._open().save(step, args=ocp.args.StandardSave(state))

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=1),
      )
    return self._manager


class _Metrics:
  """metrics.jsonl and the same numbers for TensorBoard, from one step on."""

  def __init__(self, run: store.Run, step: int):
    """Drops what a run that was cut short wrote after `step`."""
    kept = _lines_until(run.metrics, step)
    self._tokens = kept[-1]['tokens'] if kept else 0
    before = kept[-1]['seconds'] if kept else 0.0
    self._start = time.monotonic() - before
    store.write_jsonl(run.metrics, kept)
    if run.tensorboard.exists():
      shutil.rmtree(run.tensorboard)
    self._writer = tensorboardX.SummaryWriter(str(run.tensorboard))
    for line in kept:
      self._plot(line)
    self._file = run.metrics.open('a', encoding='utf-8')

  def __enter__(self) -> '_Metrics':
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    self._writer.close()

  def write(
    self, step: int, loss: float, learning_rate: float, num_tokens: int
  ) -> None:
    """One line; `num_tokens` are those since the last one."""
    self._tokens += num_tokens
    line = {
      'step': step,
      'loss': loss,
      'learning_rate': learning_rate,
      'tokens': self._tokens,
      'seconds': round(time.monotonic() - self._start, 3),
    }
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    # Before the checkpoint of the same step: what it counts on is there.
    self._file.flush()
    self._plot(line)

  def _plot(self, line: dict[str, float]) -> None:
    for name in ('loss', 'learning_rate', 'tokens'):
      self._writer.add_scalar(name, line[name], line['step'])


def _lines_until(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Lines up to `step`; a kill may have left the last one unfinished."""
  kept = []
  for text in path.read_text('utf-8').splitlines() if path.exists() else ():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:
      break
    if line['step'] > step:
      break
    kept.append(line)
  return kept
