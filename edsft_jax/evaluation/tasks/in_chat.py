"""A task in the chat template, as 'TASK:chat' in evaluation.tasks.

Listed next to TASK, its prompts are evaluated and reported in both forms.
"""

from typing import Any, ClassVar

import ml_collections

from edsft_jax import store
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

  class InChat(task):  # type: ignore[misc, valid-type]
    name: ClassVar[str] = f'{task.name}{SUFFIX}'

    def __init__(self, inputs: TaskInputs):
      super().__init__(inputs._replace(config=with_chat(inputs.config)))

    @staticmethod
    def check(
      config: ml_collections.ConfigDict,
      workdir: store.Workdir,
      planned: frozenset[str],
    ) -> None:
      task.check(with_chat(config), workdir, planned)

    @staticmethod
    def fingerprint(
      config: ml_collections.ConfigDict, workdir: store.Workdir
    ) -> dict[str, Any]:
      return task.fingerprint(with_chat(config), workdir)

  return InChat
