"""Which of a task's requests are answered together."""

import pytest

from edsft_jax.evaluation.requests import Place, Requests
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Likelihood,
  Scored,
)

PROMPT = [5, 6, 7]


def _item(*requests):
  return Item('an item', None, 'an answer', requests)


def _likelihood(prompt, target):
  return Likelihood([*prompt, *target], len(target))


def test_the_first_target_of_the_same_prompt_is_joined():
  other, same, again = (
    _likelihood([5, 6, 8], [1]),
    _likelihood(PROMPT, [1, 2]),
    _likelihood(PROMPT, [3]),
  )
  generate = Generate(PROMPT)
  items = [_item(other), _item(same, generate, other, again)]
  requests = Requests.of(items, joined=True)
  assert requests.generate == [(Place(1, 1), generate)]
  assert requests.joint == [(Place(1, 0), same)]
  assert requests.references == [[1, 2]]
  assert requests.likelihood == [
    (Place(0, 0), other),
    (Place(1, 2), other),
    (Place(1, 3), again),
  ]


def test_responses_have_to_fit_their_requests():
  items = [_item(Generate(PROMPT), _likelihood(PROMPT, [1, 2]))]
  generated = Generated('so', 2, 'stop')
  scored = Scored(1.5, True, 2)
  good = {Place(0, 0): generated, Place(0, 1): scored}
  for joined in (True, False):
    found = Requests.of(items, joined=joined)
    assert found.answered(good) == good
    for bad in (
      {Place(0, 0): scored},
      {Place(0, 1): generated},
      {Place(0, 1): Scored(1.5, True, 3)},
      {Place(1, 0): generated},
      {Place(0, -1): scored},
    ):
      assert found.answered(bad) == {}


@pytest.mark.parametrize(
  'other', [_likelihood([5, 6], [7]), _likelihood(PROMPT, []), None]
)
def test_what_is_not_the_target_of_a_prompt_is_not_joined(other):
  requests = [Generate(PROMPT), *([other] if other else [])]
  found = Requests.of([_item(*requests)], joined=True)
  assert found.joint == [None]
  assert found.references == [()]
  assert len(found.likelihood) == bool(other)


def test_nothing_is_joined_unless_asked_for():
  items = [_item(Generate(PROMPT), _likelihood(PROMPT, [1]))]
  found = Requests.of(items, joined=False)
  assert found.joint == [None]
  assert len(found.likelihood) == 1


@pytest.mark.parametrize(
  ('target', 'is_worth_it'), [([1, 2, 3], True), ([1, 2, 3, 4], False)]
)
def test_targets_longer_than_their_prompts_are_not_worth_joining(
  target, is_worth_it
):
  items = [_item(Generate(PROMPT), _likelihood(PROMPT, target))]
  assert Requests.of(items, joined=True).is_worth_joining == is_worth_it


def test_without_targets_joining_is_not_worth_it():
  items = [_item(Generate(PROMPT))]
  assert not Requests.of(items, joined=True).is_worth_joining
