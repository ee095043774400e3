"""The evaluation tasks by name; each has its own file here."""

from collections.abc import Iterable, Mapping

from edsft_jax.evaluation.task import Metric, Task
from edsft_jax.evaluation.tasks.bbh import Bbh
from edsft_jax.evaluation.tasks.gsm8k import Gsm8k
from edsft_jax.evaluation.tasks.heldout import Heldout
from edsft_jax.evaluation.tasks.mmlu import Mmlu

TASKS: Mapping[str, type[Task]] = {
  task.name: task for task in (Heldout, Mmlu, Bbh, Gsm8k)
}


def metrics(names: Iterable[str]) -> dict[str, Metric]:
  """The metrics of these tasks, by their names in the report."""
  return {
    metric if name == Heldout.name else f'{name}.{metric}': about
    for name in names
    for metric, about in TASKS[name].metrics.items()
  }
