"""Finetunes cells with one trainer.

On a CPU, those of a small model are finetuned two at a time.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import pathlib
import shutil

from flax import nnx
import jax
import ml_collections

from edsft_jax import (
  console,
  errors,
  interrupts,
  models,
  processes,
  store,
  study,
)
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning import (
  batches,
  checkpoints,
  export,
  footprint,
  options,
  train_loop,
  validation,
  wandb_log,
)
from edsft_jax.finetuning import trainer as trainer_lib
from edsft_jax.finetuning.memory import MemoryOptions
from edsft_jax.finetuning.meter import Meter
from edsft_jax.finetuning.progress import CellProgress, SharedClock
from edsft_jax.inference import workers
from edsft_jax.models import responses

# A model is small if finetuning needs at most this much memory by count. The
# products of larger ones keep all cores busy.
SMALL_BYTES = 2**28
# A cell's examples: id, prompt and answer.
Triples = list[tuple[str, store.Prompt, str]]


class Runner:
  """The cells of a study with their tokens.

  Attributes:
    counts: for the manifest, over all cells.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    cells: Mapping[study.Cell, Triples],
    path: pathlib.Path,
    small_bytes: int = SMALL_BYTES,
  ):
    """Tokenises the examples; loads no model yet.

    Args:
      config: the whole config.
      workdir: where the cells are.
      cells: every cell that has its answers.
      path: the model's directory.
      small_bytes: memory that finetuning a small model needs at most.

    Raises:
      InputError: the template rejects a prompt, naming it.
    """
    self._config = config
    self._workdir = workdir
    self._cells = cells
    self._path = path
    self._small_bytes = small_bytes
    self._hyperparameters = options.hyperparameters(config.finetuning)
    self._format = models.load_prompt_format(path, **config.prompt)
    context = models.read_config(path).context
    self._max_length = self._hyperparameters.max_length or context
    self._examples = self._encode()
    # Not when it is first needed, since threads cannot share the format.
    self._heldout = (
      self._encode_heldout() if config.finetuning.eval_steps else []
    )
    self._steps = {
      cell: batches.num_steps(
        len(triples),
        self._hyperparameters.epochs,
        self._hyperparameters.batch_size,
      )
      for cell, triples in cells.items()
    }
    self.counts = self._count()

  def run(
    self, todo: Sequence[study.Cell], is_done: Callable[[study.Cell], bool]
  ) -> None:
    """Finetunes the cells of `todo` that no other command is working on.

    Every process calls this, and the first one decides what is left to do.

    Args:
      todo: the cells.
      is_done: whether a cell is done by now; writes cell.json of a new one.

    Raises:
      InputError: there is too little memory, or see `train_loop.train`.
      KeyboardInterrupt: after Ctrl-C, once what was done is saved.
      interrupts.Terminated: the same after SIGTERM.
    """
    self._say_control_tokens()
    memory = MemoryOptions.of(self._config.finetuning)
    with memory.exhausted_in_one_line(self._hyperparameters.method):
      self._run(todo, is_done, memory)

  def _run(
    self,
    todo: Sequence[study.Cell],
    is_done: Callable[[study.Cell], bool],
    memory: MemoryOptions,
  ) -> None:
    c = self._config
    mesh = mesh_lib.make_mesh(**c.mesh)
    needed = self._say_memory(memory, mesh)
    at_once = min(self._most_at_once(needed, mesh), len(todo))
    adapter = c.finetuning.adapter_path
    trainer = trainer_lib.Trainer(
      lambda: models.load_decoder(self._path, c.model.dtype, mesh),
      self._hyperparameters,
      mesh,
      memory,
      pathlib.Path(adapter) if adapter else None,
    )
    if at_once > 1:
      # The longest first, so that no thread ends long before the others.
      todo = sorted(todo, key=lambda cell: -self._steps[cell])
    clock = SharedClock()
    # Threads can share the iterator of a list.
    waiting = iter(todo)
    total = sum(self._steps[cell] for cell in todo)
    with (
      console.bar('finetune', total, 'steps') as bar,
      checkpoints.quiet(),
      interrupts.delayed() as signals,
    ):

      def work(_: int, unless_stopped: workers.UnlessStopped) -> None:
        stopping = lambda: _is_stopping(signals) or unless_stopped.is_stopped
        for cell in unless_stopped(waiting):
          if stopping():
            return
          progress = CellProgress(bar, cell.name)
          method = self._hyperparameters.method
          meter = Meter(trainer.config, method, mesh, clock)
          watchers = train_loop.Watchers(progress, meter, stopping, clock)
          with store.locked_together(self._workdir, cell.name) as is_free:
            if not is_free:
              console.say('finetune', f'{cell.name}: another command trains it')
              progress.advance(self._steps[cell])
            elif is_done(cell):
              self._complete(cell, trainer, mesh)
              progress.advance(self._steps[cell])
            else:
              with clock.cell():
                self._finetune(cell, trainer, watchers)

      workers.run(work, at_once)

  def _say_control_tokens(self) -> None:
    if self.counts['with_control_tokens']:
      examples = console.count(self.counts['with_control_tokens'], 'example')
      console.say(
        'finetune',
        f'{examples} with control tokens, {self._format.control_note}',
      )

  def _most_at_once(
    self, needed: footprint.Memory, mesh: jax.sharding.Mesh
  ) -> int:
    """How many cells to finetune at the same time.

    On a CPU, the products of a small model leave a core idle, so two cells run.
    """
    # Weights & Biases has one run at a time.
    if (
      needed.total > self._small_bytes or self._config.finetuning.wandb_project
    ):
      return 1
    return workers.num_workers(mesh)

  def _say_memory(
    self, memory: MemoryOptions, mesh: jax.sharding.Mesh
  ) -> footprint.Memory:
    """Says what the largest micro-batch needs, and what the device has."""
    setup = footprint.Setup(
      models.read_config(self._path),
      self._config.model.dtype,
      self._hyperparameters,
      memory,
      mesh,
    )
    lengths = [len(e.tokens) for e in self._examples.values()]
    hyperparameters = self._hyperparameters
    shapes = footprint.shapes(
      lengths,
      hyperparameters.batch_size,
      memory.layout(mesh, hyperparameters.method),
    )
    counted = {shape: footprint.count(setup, shape) for shape in shapes}
    shape = max(counted, key=lambda shape: counted[shape].total)
    for line in footprint.describe(
      counted[shape], footprint.available(mesh), setup, shape
    ):
      console.say('finetune', line)
    return counted[shape]

  def _finetune(
    self,
    cell: study.Cell,
    trainer: trainer_lib.Trainer,
    watchers: train_loop.Watchers,
  ) -> None:
    c = self._config.finetuning
    run = self._workdir.run(cell.name)
    made_from = processes.from_first(
      'cell.json', lambda: store.read_cell(run.cell)
    )
    project = c.wandb_project if processes.is_first() else ''
    with wandb_log.tracker(project, run, made_from) as tracker:
      result = train_loop.train(
        trainer,
        run,
        {i: self._examples[i] for i, _, _ in self._cells[cell]},
        cell.seed,
        schedule=train_loop.Schedule(
          c.checkpoint_steps, c.log_steps, c.eval_steps
        ),
        watchers=watchers._replace(tracker=tracker),
        validation=self._validation(trainer, run),
      )
    if result is None:
      return
    watchers.progress.advance(self._steps[cell] - result.facts['steps'])
    facts = processes.from_first('facts', lambda: result.facts)
    if 'loss_rise' in facts:
      start, end = facts['loss_rise']
      console.say(
        'finetune',
        f'{cell.name}: the loss ended above its start ({start:.3f} -> '
        f'{end:.3f}): lower finetuning.learning_rate',
      )
    if processes.is_first():
      store.write_json(run.cell, {**made_from, 'training': facts})
    self._export.write(trainer.decoder(result.state), run, cell, facts)
    _remove_checkpoints(run)

  def _complete(
    self,
    cell: study.Cell,
    trainer: trainer_lib.Trainer,
    mesh: jax.sharding.Mesh,
  ) -> None:
    """Writes the merged model that a done cell may lack, and tidies up."""
    run = self._workdir.run(cell.name)
    kind = self._config.finetuning.export
    if processes.from_first('merged', lambda: export.lacks_merged(run, kind)):
      facts = store.read_cell(run.cell).get('training', {})
      decoder = nnx.merge(*nnx.split(trainer.base()))
      models.load_adapter(decoder, run.model)
      models.shard_decoder(decoder, mesh)
      self._export.write_merged(decoder, run, cell, facts)
    _remove_checkpoints(run)

  @functools.cached_property
  def _export(self) -> export.Export:
    return export.Export(
      self._config.finetuning.export,
      self._hyperparameters,
      self._path,
      self._config.prompt.template,
    )

  def _validation(
    self, trainer: trainer_lib.Trainer, run: store.Run
  ) -> validation.Validation | None:
    c = self._config.finetuning
    if not c.eval_steps:
      return None
    return validation.Validation(
      validation.Options(c.keep_best, c.early_stopping),
      trainer,
      self._heldout,
      run.best_checkpoint,
    )

  def _encode_heldout(self) -> list[responses.Example]:
    """The held-out prompts with their reference answers."""
    prompts = store.read_prompts(self._workdir.heldout)
    answers = store.read_responses(self._workdir.heldout)
    return [
      self._encode_one(i, prompt, answers[i])
      for i, prompt in zip(prompts.ids, prompts.prompts, strict=True)
    ]

  def _encode(self) -> dict[str, responses.Example]:
    """The examples of all cells, by id."""
    encoded: dict[str, responses.Example] = {}
    for triples in self._cells.values():
      for i, prompt, answer in triples:
        if i not in encoded:
          encoded[i] = self._encode_one(i, prompt, answer)
    return encoded

  def _encode_one(
    self, id: str, prompt: store.Prompt, answer: str
  ) -> responses.Example:
    with errors.about_prompt(id):
      return responses.encode(self._format, prompt, answer, self._max_length)

  def _count(self) -> dict[str, int]:
    texts = {x[0]: x for triples in self._cells.values() for x in triples}
    encoded = self._examples.values()
    return {
      'cells': len(self._cells),
      'steps': sum(self._steps.values()),
      'examples': len(encoded),
      'response_tokens': sum(e.num_response for e in encoded),
      'prompts_truncated': sum(e.prompt_truncated for e in encoded),
      'responses_cut': sum(e.response_cut for e in encoded),
      'with_control_tokens': sum(
        self._format.num_control_tokens(prompt, answer) > 0
        for _, prompt, answer in texts.values()
      ),
    }


def _is_stopping(signals: interrupts.Delayed) -> bool:
  """Whether a signal has reached any process: all stop after the same step."""
  # Not `signals.arrived`: one that came since then is for the next step.
  number = processes.highest('signal', signals.number)
  signals.arrived_elsewhere(number)
  return number != 0


def _remove_checkpoints(run: store.Run) -> None:
  """Removes them once no process needs them."""
  processes.barrier('checkpoints needed')
  if not processes.is_first():
    return
  for folder in (run.checkpoints, run.best_checkpoint):
    if folder.exists():
      shutil.rmtree(folder)


def needs_work(run: store.Run, kind: str) -> bool:
  """Whether a cell is not done, or lacks a file, or has one too many."""
  return (
    not run.model.exists()
    or run.checkpoints.exists()
    or run.best_checkpoint.exists()
    or export.lacks_merged(run, kind)
  )
