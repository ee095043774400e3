"""Runs a task's requests through the inference engine, once per model."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

from flax import nnx
import jax

from edsft_jax import inference, models
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Likelihood,
  Response,
  Scored,
  Task,
)
from edsft_jax.inference.prefixes import can_share


class _Place(NamedTuple):
  """An item's index, and the index of one of its requests."""

  item: int
  request: int


class _Requests(NamedTuple):
  """The requests of some items.

  Attributes:
    items: the items.
    generate: requests of one kind, and where they are.
    likelihood: the same of the other.
    joint: for each request of `generate`, the likelihood request that is
      answered along with it, if any; these are not in `likelihood`.
  """

  items: Sequence[Item]
  generate: list[tuple[_Place, Generate]]
  likelihood: list[tuple[_Place, Likelihood]]
  joint: list[tuple[_Place, Likelihood] | None]

  @classmethod
  def of(cls, items: Sequence[Item], joined: bool) -> '_Requests':
    """Sorts the items' requests by kind.

    Args:
      items: the items.
      joined: whether to answer two requests at once where that is possible.
    """
    result = cls(items, [], [], [])
    for i, item in enumerate(items):
      requests = list(enumerate(item.requests))
      likelihood = [
        (_Place(i, k), x) for k, x in requests if isinstance(x, Likelihood)
      ]
      for k, request in requests:
        if isinstance(request, Generate):
          partner = _partner(request, likelihood) if joined else None
          if partner:
            likelihood.remove(partner)
          result.generate.append((_Place(i, k), request))
          result.joint.append(partner)
      result.likelihood.extend(likelihood)
    return result

  @property
  def references(self) -> list[Sequence[int]]:
    """The targets that are scored along with each request of `generate`."""
    return [x[1].tokens[-x[1].num_targets :] if x else () for x in self.joint]

  @property
  def is_worth_joining(self) -> bool:
    """Whether joining saves at least as many tokens as it keeps in the cache.

    Prompts are read once instead of twice, but targets take up cache entries
    while their prompts are continued.
    """
    saved = sum(
      len(request.tokens)
      for (_, request), joint in zip(self.generate, self.joint, strict=True)
      if joint
    )
    return 0 < sum(map(len, self.references)) <= saved


def _partner(
  request: Generate, likelihood: Sequence[tuple[_Place, Likelihood]]
) -> tuple[_Place, Likelihood] | None:
  """The first likelihood request whose context is the prompt, if any."""
  for place, other in likelihood:
    context = other.tokens[: len(other.tokens) - other.num_targets]
    if other.num_targets and [*context] == [*request.tokens]:
      return place, other
  return None


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
      _Requests.of(task.items, joined=True).is_worth_joining
    )
    self._shards = [
      _Requests.of(task.items[start:end], joined)
      for start, end in itertools.pairwise([0, *ends])
    ]
    self._generator = inference.GenerationEngine(
      decoder,
      device_mesh,
      [
        [request.tokens for _, request in shard.generate]
        for shard in self._shards
      ],
      references=[shard.references for shard in self._shards],
      end_ids=prompt_format.end_ids,
      max_new_tokens=task.max_new_tokens,
      batch_tokens=batch_tokens,
      num_passes=num_models,
    )
    self._scorer = inference.LikelihoodEngine(
      decoder,
      device_mesh,
      [
        [
          inference.Target(request.tokens, request.num_targets)
          for _, request in shard.likelihood
        ]
        for shard in self._shards
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
    shard: int = 0,
  ) -> list[list[Response]]:
    """The responses of one model to each request of a shard's items.

    Args:
      weights: weights of a decoder with the structure given to the constructor.
      progress: called with the work done; a request counts as a prompt.
      shard: which one, from 0.
    """
    requests = self._shards[shard]
    responses: dict[_Place, Response] = {}
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
      [responses[_Place(i, k)] for k in range(len(item.requests))]
      for i, item in enumerate(requests.items)
    ]

  def _text(self, ids: Sequence[int]) -> str:
    text = self._format.decode_response(ids)
    return self._stop.cut(text) if self._stop else text
