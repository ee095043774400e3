"""A pool as the model will see it, and which of its prompts are continued."""

from collections.abc import Sequence
import dataclasses
import functools

import ml_collections
import numpy as np

from edsft_jax import errors, models, store


@dataclasses.dataclass(frozen=True)
class EncodedPool:
  """The prompts of a pool as token ids.

  Attributes:
    tokens: int32 ids of each prompt, cut to what the context holds.
    truncated: bool [N], prompts that were cut.
  """

  tokens: list[np.ndarray]
  truncated: np.ndarray

  @classmethod
  def of(
    cls,
    prompt_format: models.PromptFormat,
    pool: store.Prompts,
    limit: int,
  ) -> 'EncodedPool':
    """Tokenises the prompts of a pool.

    Args:
      prompt_format: how prompts become tokens.
      pool: the prompts.
      limit: most tokens of a prompt.

    Raises:
      InputError: a prompt cannot be encoded, or nothing is left of it.
    """
    encoded = []
    for prompt_id, prompt in zip(pool.ids, pool.prompts, strict=True):
      with errors.of_prompt(prompt_id):
        ids, truncated = prompt_format.encode_prompt(
          prompt, limit, for_response=False
        )
      encoded.append((ids, truncated))
      if not ids:
        raise errors.InputError(
          f'prompt {prompt_id!r} has no tokens, nothing is left of it by the '
          'tokenizer: take it out of the pool'
        )
    return cls(
      [np.array(ids, np.int32) for ids, _ in encoded],
      np.array([truncated for _, truncated in encoded], bool),
    )

  @functools.cached_property
  def lengths(self) -> list[int]:
    """Tokens of each prompt."""
    return [len(ids) for ids in self.tokens]


def to_generate(
  options: ml_collections.ConfigDict,
  tasks: Sequence[str] | None,
  num_prompts: int,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Which prompts to continue, bool [N], and which to draw confidence from.

  The second is None where all of a task's prompts are.

  Raises:
    InputError: a sample of each task is wanted, and there are no tasks.
  """
  per_task = options.confidence_prompts_per_task
  if not per_task:
    return np.full(num_prompts, options.generate), None
  if tasks is None:
    raise errors.InputError(
      f'scoring.confidence_prompts_per_task is {per_task}, but the pool has no '
      'tasks: name its column in pool.task_column, or leave it at 0'
    )
  in_sample = draw(tasks, per_task)
  return in_sample | options.generate, in_sample


def draw(tasks: Sequence[str], per_task: int) -> np.ndarray:
  """Prompts drawn at random from each task, or all of a small one; bool [N]."""
  rng = np.random.default_rng(0)
  names, task_N = np.unique(tasks, return_inverse=True)
  drawn_N = np.zeros(len(task_N), bool)
  for task in range(len(names)):
    members = np.flatnonzero(task_N == task)
    drawn_N[rng.permutation(members)[:per_task]] = True
  return drawn_N
