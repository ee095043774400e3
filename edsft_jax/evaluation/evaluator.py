"""Evaluates models on a task, one after the other, with few compilations."""

from collections.abc import Mapping, Sequence
import time
from typing import Any

from flax import nnx
import jax

from edsft_jax import console, interrupts, models, processes, store, study
from edsft_jax.evaluation import results
from edsft_jax.evaluation.journal import Journal, parse
from edsft_jax.evaluation.progress import ItemProgress
from edsft_jax.evaluation.requests import Place
from edsft_jax.evaluation.runner import Runner
from edsft_jax.evaluation.shards import Shards, begin, divide
from edsft_jax.evaluation.task import Response, Task
from edsft_jax.inference.throughput import Rate, Work


class Evaluator:
  """One task, for any number of cells.

  Processes whose devices hold the model divide the items; otherwise all of them
  compute each item together.
  """

  def __init__(
    self,
    task: Task,
    workdir: store.Workdir,
    prompt_format: models.PromptFormat,
    mesh: jax.sharding.Mesh,
    batch_tokens: int,
    num_models: int,
    rate: Rate,
  ):
    """Compiles nothing yet.

    Args:
      task: the task with its items.
      workdir: where the cells are.
      prompt_format: decodes answers.
      mesh: the mesh of the models' weights.
      batch_tokens: tokens per batch.
      num_models: how many models there are.
      rate: shows progress on a bar over items.
    """
    self._task = task
    self._workdir = workdir
    self._format = prompt_format
    self._mesh = mesh
    self._batch_tokens = batch_tokens
    self._num_models = num_models
    self._rate = rate
    self._num_shares = 1 if mesh.is_multi_process else processes.count()
    self._ends = divide(task, batch_tokens, self._num_shares)
    self._runners: dict[tuple[nnx.GraphDef, tuple[int, ...]], Runner] = {}

  def __call__(
    self,
    cell: study.Cell,
    decoder: models.Decoder,
    fingerprint: Mapping[str, Any],
  ) -> None:
    """Evaluates a cell; continues where an interrupted run stopped.

    Args:
      cell: the cell.
      decoder: its model.
      fingerprint: what the results depend on.

    Raises:
      InputError: a metric is not finite, or the disk is full.
    """
    run, name = self._workdir.run(cell.name), self._task.name
    with store.locked_together(self._workdir, cell.name) as is_free:
      if not is_free or processes.from_first(
        'is evaluated', lambda: results.marker(run, name).exists()
      ):
        console.say('evaluate', f'{cell.name}: left to another command')
        self._skip(len(self._task.items))
        return
      folder = run.evaluation_shards(name)
      ends = processes.from_first(
        'shards', lambda: begin(folder, self._ends, fingerprint)
      )
      shards = Shards(folder, [item.id for item in self._task.items], ends)
      missing = processes.from_first('missing shards', shards.missing)
      start = time.monotonic()
      self._compute(cell, decoder, shards, missing)
      processes.barrier('items evaluated')
      if processes.is_first():
        processes.await_files([shards.path(i) for i in missing])
        seconds = round(time.monotonic() - start, 3)
        store.write_json(run.evaluation_timing(name), {'seconds': seconds})
        results.write(run, cell, self._task, shards.join(), fingerprint)
        shards.remove()

  def _compute(
    self,
    cell: study.Cell,
    decoder: models.Decoder,
    shards: Shards,
    missing: Sequence[int],
  ) -> None:
    """Computes and writes this process's share of the missing shards."""
    left = sum(len(self._task.items[shards.items(i)]) for i in missing)
    self._skip(len(self._task.items) - left)
    graph, weights = nnx.split(decoder)
    runner = self._runner(graph, decoder, shards.ends)
    first = processes.index() if self._num_shares > 1 else 0
    for shard in missing[first :: self._num_shares]:
      interrupts.raise_lost()
      items = self._task.items[shards.items(shard)]
      num_requests = sum(len(item.requests) for item in items)
      progress = ItemProgress(self._rate, len(items), num_requests)
      writes = self._num_shares > 1 or processes.is_first()
      with Journal(shards.journal(shard)) as journal:
        responses = runner(
          weights,
          progress,
          shard,
          self._known(journal),
          journal.add if writes else lambda responses: None,
        )
        progress.finish()
        if writes:
          rows = results.make_rows(self._task, items, responses, cell)
          shards.write(shard, rows)
          journal.remove()

  def _known(self, journal: Journal) -> dict[Place, Response]:
    """The responses that an interrupted run left."""
    if self._mesh.is_multi_process:
      # All processes compute each item together, so they leave out the same.
      return parse(processes.from_first('known responses', journal.read))
    return parse(journal.read())

  def _runner(
    self, graph: nnx.GraphDef, decoder: models.Decoder, ends: Sequence[int]
  ) -> Runner:
    key = graph, tuple(ends)
    if key not in self._runners:
      self._runners[key] = Runner(
        self._task,
        decoder,
        self._format,
        self._mesh,
        self._batch_tokens,
        ends,
        self._num_models,
      )
    return self._runners[key]

  def _skip(self, num_items: int) -> None:
    """Counts items that need no work."""
    self._rate(Work(prompts=num_items // self._num_shares))
