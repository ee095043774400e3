"""Runs a task's requests through the inference engine, once per model."""

from collections.abc import Callable, Mapping, Sequence
import itertools
import types

from flax import nnx
import jax

from edsft_jax import inference, models
from edsft_jax.evaluation.requests import Place, Requests
from edsft_jax.evaluation.task import Generated, Response, Scored, Task
from edsft_jax.inference.prefixes import can_share


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
    ends: Sequence[int] | None = None,
    num_models: int = 1,
  ):
    """Chooses shapes for the task's requests.

    Args:
      task: the task with its items.
      decoder: the structure of the models; each call passes the weights.
      prompt_format: decodes answers.
      device_mesh: the mesh of the decoder's weights.
      batch_tokens: tokens per batch.
      ends: where the shards of items end; each call runs one of them. None: all
        items are one shard.
      num_models: how many models will be run; with many, compiling more
        programs pays off.
    """
    if ends is None:
      ends = [len(task.items)]
    self._format = prompt_format
    # Otherwise, targets would change how their prompts are continued.
    joined = can_share(decoder.config) and (
      Requests.of(task.items, joined=True).is_worth_joining
    )
    self._shards = [
      Requests.of(task.items[start:end], joined)
      for start, end in itertools.pairwise([0, *ends])
    ]
    self._generator = inference.GenerationEngine(
      decoder,
      device_mesh,
      [shard.prompts for shard in self._shards],
      references=[shard.references for shard in self._shards],
      end_ids=prompt_format.end_ids,
      max_new_tokens=task.max_new_tokens,
      batch_tokens=batch_tokens,
      num_passes=num_models,
    )
    self._scorer = inference.LikelihoodEngine(
      decoder,
      device_mesh,
      [shard.targets for shard in self._shards],
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
    shard: int = 0,
    known: Mapping[Place, Response] = types.MappingProxyType({}),
    found: Callable[[Mapping[Place, Response]], None] = lambda responses: None,
  ) -> list[list[Response]]:
    """The responses of one model to each request of a shard's items.

    Args:
      weights: weights of a decoder with the structure given to the constructor.
      progress: called with the work done; a request counts as a prompt.
      shard: which one, from 0.
      known: responses of this model that an interrupted call found.
      found: called with the others as soon as they are computed.
    """
    requests = self._shards[shard]
    known = requests.answered(known)
    # A continuation without tokens is certain.
    responses: dict[Place, Response] = {
      place: Scored(0.0, True, 0)
      for place, request in requests.likelihood
      if not request.num_targets
    }
    responses.update(known)
    progress(inference.Work(prompts=len(known)))

    def add(new: Mapping[Place, Response]) -> None:
      # Rows that share a packed row with new ones are computed once more.
      new = {k: v for k, v in new.items() if k not in responses}
      responses.update(new)
      # One that is not finite is computed again by the next run.
      found({k: v for k, v in new.items() if v.is_finite})

    self._scorer(
      weights,
      progress,
      shard,
      known=requests.known_likelihoods(known),
      found=lambda rows, scored: add(_scored(requests, rows, scored)),
    )
    self._generator(
      weights,
      progress,
      shard,
      self._stop,
      known=requests.known_generations(known),
      found=lambda rows, some: add(self._generated(requests, rows, some)),
    )
    return [
      [responses[Place(i, k)] for k in range(len(item.requests))]
      for i, item in enumerate(requests.items)
    ]

  def _generated(
    self,
    requests: Requests,
    rows: Sequence[int],
    generations: inference.Generations,
  ) -> dict[Place, Response]:
    """Responses to some of `requests.generate`, and to what joins them."""
    responses: dict[Place, Response] = {}
    for number, row in enumerate(rows):
      ids = generations.tokens[number].tolist()
      responses[requests.generate[row][0]] = Generated(
        self._text(ids),
        len(ids),
        'stop' if generations.stopped[number] else 'length',
        bool(generations.row_results[number]),
      )
      if joint := requests.joint[row]:
        place, request = joint
        scored = generations.prompt_results
        responses[place] = Scored(
          float(scored['nll'][number, 0]),
          bool(scored['is_greedy'][number, 0]),
          request.num_targets,
        )
    return responses

  def _text(self, ids: Sequence[int]) -> str:
    text = self._format.decode_response(ids)
    return self._stop.cut(text) if self._stop else text


def _scored(
  requests: Requests, rows: Sequence[int], scored: inference.Likelihoods
) -> dict[Place, Response]:
  """Responses to some of `requests.likelihood`."""
  responses: dict[Place, Response] = {}
  for number, row in enumerate(rows):
    place, request = requests.likelihood[row]
    responses[place] = Scored(
      float(scored.nll[number]),
      bool(scored.is_greedy[number]),
      request.num_targets,
    )
  return responses
