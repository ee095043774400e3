"""Splits off a held-out set that the pool does not reveal.

Prompts are grouped if their first user turns have the same words, or if one
occurs with its answer inside the conversation of the other. A group is held out
as a whole or not at all.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import itertools

from edsft_jax import store
from edsft_jax.pool import duplicates, items

# Hashes of the words of a question and of its answer.
_Pair = tuple[int, int]


def split(rows: Sequence[items.Item], fraction: float) -> list[bool]:
  """Which rows to hold out: this share of the answered rows, rounded.

  A hash of the id decides, so the split needs no seed. Fewer rows are held out
  only if the remaining groups are too large.
  """
  chosen = [False] * len(rows)
  missing = round(fraction * sum(bool(item.response) for item in rows))
  if not missing:
    return chosen
  groups = _Groups(len(rows))
  first_of: dict[int, int] = {}
  said_by: dict[_Pair, int] = {}
  for i, item in enumerate(rows):
    # `near` is kept with the item; the pool needs it again.
    is_text = isinstance(item.prompt, str)
    beginning = item.near if is_text else _beginning(item.prompt)
    if (first := first_of.setdefault(beginning, i)) != i:
      groups.join(first, i)
    if not is_text:
      for pair in _pairs_said(item.prompt):
        groups.join(said_by.setdefault(pair, i), i)
  if said_by:
    for i, item in enumerate(rows):
      groups.join(said_by.get(_own_pair(item), i), i)

  for members in sorted(groups.all(), key=lambda m: _order(rows[m[0]].id)):
    fits = len(members) <= missing
    if fits and all(rows[i].response for i in members):
      missing -= len(members)
      for i in members:
        chosen[i] = True
  return chosen


@dataclasses.dataclass(frozen=True)
class Separated:
  """Held-out prompts that the pool does not reveal.

  Attributes:
    kept: these prompts.
    in_pool: number of prompts that are in the pool.
    near_pool: number of prompts with the same words as one in the pool.
    in_conversation: number of prompts that occur with their answer inside a
      conversation of the pool.
  """

  kept: list[items.Item]
  in_pool: int
  near_pool: int
  in_conversation: int


def separate(heldout: Iterable[items.Item], pool: store.Prompts) -> Separated:
  """Drops the held-out prompts that the pool reveals.

  Args:
    heldout: the prompts, with answers.
    pool: the prompts to choose from, with the answers that are known.
  """
  prompts = pool.prompts
  keys = {duplicates.merge_key(prompt) for prompt in prompts}
  near = {duplicates.near_key(prompt) for prompt in prompts}
  begun = {_beginning(prompt) for prompt in prompts}
  said = {pair for prompt in prompts for pair in _pairs_said(prompt)}
  own = set(map(_pair, prompts, pool.responses or ()))
  kept: list[items.Item] = []
  in_pool = near_pool = in_conversation = 0
  for item in heldout:
    if item.key in keys:
      in_pool += 1
    elif item.near in near:
      near_pool += 1
    elif (said and _own_pair(item) in said) or not own.isdisjoint(
      _pairs_said(item.prompt)
    ):
      in_conversation += 1
    elif _beginning(item.prompt) in begun:
      near_pool += 1
    else:
      kept.append(item)
  return Separated(kept, in_pool, near_pool, in_conversation)


def revealing(rows: Sequence[items.Item], heldout: store.Prompts) -> list[bool]:
  """Which rows would have been grouped with a held-out prompt."""
  beginnings = {_beginning(prompt) for prompt in heldout.prompts}
  answers = heldout.responses or []
  pairs = set(map(_pair, heldout.prompts, answers))
  said = {pair for prompt in heldout.prompts for pair in _pairs_said(prompt)}
  return [
    _beginning(item.prompt) in beginnings
    or not pairs.isdisjoint(_pairs_said(item.prompt))
    or bool(said and _own_pair(item) in said)
    for item in rows
  ]


def _beginning(prompt: store.Prompt) -> int:
  """Equal for prompts whose first user turns have the same words."""
  if not isinstance(prompt, str):
    prompt = next(m['content'] for m in prompt if m['role'] == 'user')
  return duplicates.near_key(prompt)


def _own_pair(item: items.Item) -> _Pair:
  return _pair(item.prompt, item.response)


def _pair(prompt: store.Prompt, response: str) -> _Pair:
  question = prompt if isinstance(prompt, str) else prompt[-1]['content']
  return duplicates.near_key(question), duplicates.near_key(response)


def _pairs_said(prompt: store.Prompt) -> Iterator[_Pair]:
  """Questions and answers before the turn to answer."""
  turns = prompt if isinstance(prompt, list) else []
  for question, answer in itertools.pairwise(turns):
    if question['role'] == 'user' and answer['role'] == 'assistant':
      yield (
        duplicates.near_key(question['content']),
        duplicates.near_key(answer['content']),
      )


def _order(prompt_id: str) -> bytes:
  return hashlib.sha256(f'heldout {prompt_id}'.encode()).digest()


class _Groups:
  """Disjoint sets of row numbers (union-find)."""

  def __init__(self, count: int):
    self._parents = list(range(count))

  def join(self, a: int, b: int) -> None:
    a, b = self._root(a), self._root(b)
    self._parents[max(a, b)] = min(a, b)

  def all(self) -> list[list[int]]:
    """All groups, each in row order."""
    members: dict[int, list[int]] = {}
    for i in range(len(self._parents)):
      members.setdefault(self._root(i), []).append(i)
    return list(members.values())

  def _root(self, i: int) -> int:
    while self._parents[i] != i:
      self._parents[i] = self._parents[self._parents[i]]
      i = self._parents[i]
    return i
