"""Runs a task's requests through the inference engine, once per model."""

from collections.abc import Sequence

from flax import nnx
import jax

from edsft_jax import inference, models
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Likelihood,
  Response,
  Scored,
  Task,
)


class Runner:
  """Answers the requests of a task, for models of one structure.

  Weights are arguments, so all cells share the compiled programs.
  """

  def __init__(
    self,
    task: Task,
    decoder: models.Decoder,
    prompt_format: models.PromptFormat,
    device_mesh: jax.sharding.Mesh,
    batch_tokens: int,
    num_models: int = 1,
  ):
    """Chooses shapes for the task's requests.

    Args:
      task: the task with its items.
      decoder: the structure of the models; each call passes the weights.
      prompt_format: decodes answers.
      device_mesh: the mesh of the decoder's weights.
      batch_tokens: tokens per batch.
      num_models: how many models will be run; with many, compiling more
        programs pays off.
    """
    self._task = task
    self._format = prompt_format
    # (item index, request index, request), by the kind of request.
    self._generate: list[tuple[int, int, Generate]] = []
    self._likelihood: list[tuple[int, int, Likelihood]] = []
    for i, item in enumerate(task.items):
      for k, request in enumerate(item.requests):
        if isinstance(request, Generate):
          self._generate.append((i, k, request))
        else:
          self._likelihood.append((i, k, request))
    prompts = [request.tokens for _, _, request in self._generate]
    prefix = inference.choose_prefix(decoder, device_mesh, prompts)
    lengths = [len(tokens) - len(prefix) for tokens in prompts]
    self._generator = inference.Engine(
      decoder,
      device_mesh,
      inference.choose_shapes(decoder, device_mesh, lengths or [1], num_models),
      end_ids=prompt_format.end_ids,
      max_new_tokens=task.max_new_tokens,
      batch_tokens=batch_tokens,
      max_rows=max(len(lengths), 1),
      prefix=prefix,
    )
    self._scorer = inference.LikelihoodEngine(
      decoder,
      device_mesh,
      [
        inference.Target(request.tokens, request.num_targets)
        for _, _, request in self._likelihood
      ],
      batch_tokens=batch_tokens,
      num_passes=num_models,
    )
    self._stop = None
    if task.stop:
      self._stop = inference.Stop(task.stop, prompt_format.decode)

  @property
  def num_programs(self) -> int:
    """Programs compiled so far."""
    return self._generator.num_programs + self._scorer.num_programs

  def __call__(
    self,
    weights: nnx.State,
    progress: inference.Progress = lambda work: None,
  ) -> list[list[Response]]:
    """The responses of one model to each item's requests.

    Args:
      weights: weights of a decoder with the structure given to the constructor.
      progress: called with the work done; a request counts as a prompt.
    """
    responses: list[dict[int, Response]] = [{} for _ in self._task.items]
    scored = self._scorer(weights, progress)
    for row, (i, k, request) in enumerate(self._likelihood):
      responses[i][k] = Scored(
        float(scored.nll[row]),
        bool(scored.is_greedy[row]),
        request.num_targets,
      )
    generated = self._generator.generate(
      weights, [r.tokens for _, _, r in self._generate], progress, self._stop
    )
    for row, (i, k, _) in enumerate(self._generate):
      ids = generated.tokens[row].tolist()
      responses[i][k] = Generated(
        self._text(ids),
        len(ids),
        'stop' if generated.stopped[row] else 'length',
      )
    return [
      [found[k] for k in range(len(item.requests))]
      for item, found in zip(self._task.items, responses, strict=True)
    ]

  def _text(self, ids: Sequence[int]) -> str:
    """The answer's text, without the end token.

    Not every tokenizer marks it as special, so that decoding would skip it.
    """
    if ids and ids[-1] in self._format.end_ids:
      ids = ids[:-1]
    text = self._format.decode(ids)
    return self._stop.cut(text) if self._stop else text
