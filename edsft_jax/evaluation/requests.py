"""Sorts a task's requests by kind, and pairs those that one pass answers."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from edsft_jax import inference
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Likelihood,
  Request,
  Response,
  Scored,
)


class Place(NamedTuple):
  """An item's index, and the index of one of its requests."""

  item: int
  request: int


class Requests(NamedTuple):
  """The requests of some items.

  Attributes:
    items: the items.
    generate: requests of one kind, and where they are.
    likelihood: those of the other kind, and where they are.
    joint: for each request of `generate`, the likelihood request that is
      answered along with it, if any; these are not in `likelihood`.
  """

  items: Sequence[Item]
  generate: list[tuple[Place, Generate]]
  likelihood: list[tuple[Place, Likelihood]]
  joint: list[tuple[Place, Likelihood] | None]

  @classmethod
  def of(cls, items: Sequence[Item], joined: bool) -> 'Requests':
    """Sorts the items' requests by kind.

    Args:
      items: the items.
      joined: whether to answer two requests at once where that is possible.
    """
    result = cls(items, [], [], [])
    for i, item in enumerate(items):
      requests = list(enumerate(item.requests))
      likelihood = [
        (Place(i, k), x) for k, x in requests if isinstance(x, Likelihood)
      ]
      for k, request in requests:
        if isinstance(request, Generate):
          partner = _partner(request, likelihood) if joined else None
          if partner:
            likelihood.remove(partner)
          result.generate.append((Place(i, k), request))
          result.joint.append(partner)
      result.likelihood.extend(likelihood)
    return result

  @property
  def prompts(self) -> list[Sequence[int]]:
    """The prompts of `generate`."""
    return [request.tokens for _, request in self.generate]

  @property
  def targets(self) -> list[inference.Target]:
    """What `likelihood` scores."""
    return [
      inference.Target(request.tokens, request.num_targets)
      for _, request in self.likelihood
    ]

  @property
  def references(self) -> list[Sequence[int]]:
    """The targets that are scored along with each request of `generate`."""
    return [x[1].tokens[-x[1].num_targets :] if x else () for x in self.joint]

  def answered(
    self, responses: Mapping[Place, Response]
  ) -> dict[Place, Response]:
    """Those of the responses that can be to these requests."""
    requests: dict[Place, Request] = dict(self.generate)
    requests |= dict(self.likelihood)
    requests |= dict(joint for joint in self.joint if joint)
    return {
      place: response
      for place, response in responses.items()
      if place in requests and _is_response(requests[place], response)
    }

  def known_generations(self, known: Collection[Place]) -> set[int]:
    """Which of `generate` are at known places, with what is joint to them."""
    return {
      row
      for row, ((place, _), joint) in enumerate(
        zip(self.generate, self.joint, strict=True)
      )
      if place in known and (joint is None or joint[0] in known)
    }

  def known_likelihoods(self, known: Collection[Place]) -> set[int]:
    """Which of `likelihood` are at known places."""
    return {
      row for row, (place, _) in enumerate(self.likelihood) if place in known
    }

  @property
  def is_worth_joining(self) -> bool:
    """Whether joining saves at least as many tokens as it keeps in the cache.

    Prompts are read once instead of twice, but targets take up cache entries
    while their prompts are continued.
    """
    saved = sum(
      len(prompt)
      for prompt, joint in zip(self.prompts, self.joint, strict=True)
      if joint
    )
    return 0 < sum(map(len, self.references)) <= saved


def _is_response(request: Request, response: Response) -> bool:
  if isinstance(request, Generate):
    return isinstance(response, Generated)
  return (
    isinstance(response, Scored) and response.num_tokens == request.num_targets
  )


def _partner(
  request: Generate, likelihood: Sequence[tuple[Place, Likelihood]]
) -> tuple[Place, Likelihood] | None:
  """The first likelihood request whose context is the prompt, if any."""
  for place, other in likelihood:
    context = other.tokens[: len(other.tokens) - other.num_targets]
    if other.num_targets and [*context] == [*request.tokens]:
      return place, other
  return None
