"""The evaluation tasks by name; each has its own file here."""

from collections.abc import Mapping

import ml_collections

from edsft_jax import errors
from edsft_jax.evaluation.task import Metric, Task
from edsft_jax.evaluation.tasks import harness
from edsft_jax.evaluation.tasks.alpaca_eval import AlpacaEval
from edsft_jax.evaluation.tasks.bbh import Bbh
from edsft_jax.evaluation.tasks.bbh_zero_shot import BbhZeroShot
from edsft_jax.evaluation.tasks.gsm8k import Gsm8k
from edsft_jax.evaluation.tasks.heldout import Heldout
from edsft_jax.evaluation.tasks.in_chat import SUFFIX, in_chat
from edsft_jax.evaluation.tasks.mmlu import Mmlu

TASKS: Mapping[str, type[Task]] = {
  task.name: task for task in (Heldout, Mmlu, Bbh, Gsm8k, AlpacaEval)
}
# Tasks whose answers are compared by a judge, once all cells have answered.
JUDGED = frozenset({AlpacaEval.name})


def find(name: str, config: ml_collections.ConfigDict) -> type[Task]:
  """The task of this name in evaluation.tasks.

  Raises:
    InputError: there is none, and the nearest name is suggested; or its prompts
      have no chat form, or are in that form anyway.
  """
  if name.endswith(SUFFIX):
    return _find_in_chat(name.removesuffix(SUFFIX), config)
  if name.startswith(harness.PREFIX):
    return harness.find(name, config.evaluation.lm_eval.include_path)
  # It has further metrics.
  if name == Bbh.name and not config.evaluation.bbh.shots:
    return BbhZeroShot
  if name not in TASKS:
    unknown = errors.unknown(
      f'evaluation.tasks has {name!r}, which', name, TASKS
    )
    raise errors.InputError(
      f"{unknown}; those of lm-evaluation-harness are '{harness.PREFIX}NAME'"
    )
  return TASKS[name]


def _find_in_chat(name: str, config: ml_collections.ConfigDict) -> type[Task]:
  task = find(name, config)
  section = 'lm_eval' if name.startswith(harness.PREFIX) else name
  options = config.evaluation.get(section, {})
  if 'chat' not in options:
    raise errors.InputError(
      f'evaluation.tasks has {name + SUFFIX!r}, but {name} always has the '
      f'prompts of finetuning: name {name!r} alone'
    )
  if options.chat:
    raise errors.InputError(
      f'evaluation.tasks has {name + SUFFIX!r}, and evaluation.{section}.chat '
      f'is True: name {name!r} alone, or set the option to False'
    )
  return in_chat(task, section)


def metrics(config: ml_collections.ConfigDict) -> dict[str, Metric]:
  """The metrics of evaluation.tasks, by their names in the report."""
  return {
    metric if name == Heldout.name else f'{name}.{metric}': about
    for name in config.evaluation.tasks
    for metric, about in find(name, config).metrics.items()
  }
