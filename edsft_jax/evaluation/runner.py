"""Runs a task's requests through the inference engine, once per model."""

from collections.abc import Sequence
import itertools

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
  ) -> list[list[Response]]:
    """The responses of one model to each request of a shard's items.

    Args:
      weights: weights of a decoder with the structure given to the constructor.
      progress: called with the work done; a request counts as a prompt.
      shard: which one, from 0.
    """
    requests = self._shards[shard]
    responses: dict[Place, Response] = {}
    scored = self._scorer(weights, progress, shard)
    for row, (place, request) in enumerate(requests.likelihood):
      responses[place] = Scored(
        float(scored.nll[row]),
        bool(scored.is_greedy[row]),
        request.num_targets,
      )
    generated = self._generator(weights, progress, shard, self._stop)
    for row, (place, _) in enumerate(requests.generate):
      ids = generated.tokens[row].tolist()
      responses[place] = Generated(
        self._text(ids),
        len(ids),
        'stop' if generated.stopped[row] else 'length',
        bool(generated.row_results[row]),
      )
    for row, joint in enumerate(requests.joint):
      if joint:
        place, request = joint
        found = generated.prompt_results
        responses[place] = Scored(
          float(found['nll'][row, 0]),
          bool(found['is_greedy'][row, 0]),
          request.num_targets,
        )
    return [
      [responses[Place(i, k)] for k in range(len(item.requests))]
      for i, item in enumerate(requests.items)
    ]

  def _text(self, ids: Sequence[int]) -> str:
    text = self._format.decode_response(ids)
    return self._stop.cut(text) if self._stop else text
