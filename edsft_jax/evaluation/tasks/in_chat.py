"""A task in the chat template, as 'TASK:chat' in evaluation.tasks.

Listed next to TASK, its prompts are evaluated and reported in both forms.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import ml_collections

from edsft_jax.evaluation.task import Task, TaskInputs

SUFFIX = ':chat'


def in_chat(task: type[Task], section: str) -> type[Task]:
  """The class of a task whose prompts are in the chat template.

  Args:
    task: the class of the task.
    section: its section in config.evaluation, with the option `chat`.
  """

  def with_chat(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    result = config.copy_and_resolve_references()
    result.evaluation[section].chat = True
    return result

  def reading_chat(method: Callable[..., Any]) -> Any:
    return staticmethod(lambda config, *args: method(with_chat(config), *args))

  class InChat(task):  # type: ignore[misc, valid-type]
    name: ClassVar[str] = f'{task.name}{SUFFIX}'
    check = reading_chat(task.check)
    fingerprint = reading_chat(task.fingerprint)

    def __init__(self, inputs: TaskInputs):
      super().__init__(inputs._replace(config=with_chat(inputs.config)))

  return InChat
