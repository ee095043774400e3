"""The pool as token ids, and the choice of prompts to continue."""

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
    tokens: int32 ids of each prompt, truncated to the limit.
    truncated: bool [N], prompts that were truncated.
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
      limit: tokens per prompt at most.

    Raises:
      InputError: a prompt cannot be encoded, or has no tokens.
    """
    encoded = []
    for prompt_id, prompt in zip(pool.ids, pool.prompts, strict=True):
      with errors.about_prompt(prompt_id):
        ids, truncated = prompt_format.encode_prompt(
          prompt, limit, for_response=False
        )
      encoded.append((ids, truncated))
      if not ids:
        raise errors.InputError(
          f'prompt {prompt_id!r} has no tokens, because the tokenizer drops '
          'all of its text: remove it from the pool'
        )
    return cls(
      [np.array(ids, np.int32) for ids, _ in encoded],
      np.array([truncated for _, truncated in encoded], bool),
    )

  @functools.cached_property
  def lengths(self) -> list[int]:
    """Number of tokens of each prompt."""
    return [len(ids) for ids in self.tokens]


def to_generate(
  options: ml_collections.ConfigDict,
  tasks: Sequence[str] | None,
  num_prompts: int,
  sampled: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Chooses the prompts to continue.

  Args:
    options: of scoring.
    tasks: a label for each prompt, or None.
    num_prompts: N.
    sampled: bool, the prompts scored earlier (the first of the pool) that a
      task's confidence is estimated from; they stay.

  Returns:
    bool [N], the prompts to continue; and bool [N], the prompts that a task's
    confidence is estimated from, or None for all.

  Raises:
    InputError: confidence needs a sample of each task, but the pool has no
      tasks.
  """
  per_task = options.confidence_prompts_per_task
  if not per_task:
    return np.full(num_prompts, options.generate), None
  if tasks is None:
    raise errors.InputError(
      f'scoring.confidence_prompts_per_task is {per_task}, but the pool has no '
      'tasks: name the task column by pool.task_column, or leave it at 0'
    )
  in_sample = draw(tasks, per_task, sampled)
  return in_sample | options.generate, in_sample


def draw(
  tasks: Sequence[str], per_task: int, earlier: np.ndarray | None = None
) -> np.ndarray:
  """Draws up to `per_task` prompts at random from each task; bool [N].

  Args:
    tasks: a label for each prompt.
    per_task: how many.
    earlier: bool, what was drawn from the first prompts; they are not drawn
      from again.
  """
  rng = np.random.default_rng(0)
  names, task_N = np.unique(tasks, return_inverse=True)
  drawn_N = np.zeros(len(task_N), bool)
  num_earlier = 0 if earlier is None else len(earlier)
  drawn_N[:num_earlier] = False if earlier is None else earlier
  for task in range(len(names)):
    members = np.flatnonzero(task_N == task)
    missing = per_task - drawn_N[members].sum()
    new = members[members >= num_earlier]
    drawn_N[rng.permutation(new)[: max(missing, 0)]] = True
  return drawn_N
