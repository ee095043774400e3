"""The interface of evaluation tasks: items, requests, responses, metrics."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Protocol

import ml_collections

from edsft_jax import models, store


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric: a column of items.jsonl, and how it is averaged and shown.

  Attributes:
    label: its name in headings.
    larger_is_better: False if smaller values are better.
    meaning: what it measures, with the unit.
    weight: the column of weights for the mean over items; '' for equal ones.
    column: the column that is averaged; '' for the one with the metric's name.
    over_tasks: whether to average the means of the items' tasks, each with the
      same weight, instead of the items.
    against_random: whether it is relative to random at the same budget and for
      the same seed.
  """

  label: str
  larger_is_better: bool
  meaning: str
  weight: str = ''
  column: str = ''
  over_tasks: bool = False
  against_random: bool = False


@dataclasses.dataclass(frozen=True)
class Generate:
  """A request for a greedy continuation.

  Attributes:
    tokens: ids of the prompt.
    truncated: whether the prompt was truncated to fit.
  """

  tokens: Sequence[int]
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """A request for the likelihood of a given continuation.

  Attributes:
    tokens: ids of the context, followed by those of the continuation.
    num_targets: number of tokens of the continuation.
    truncated: whether the context was truncated to fit.
  """

  tokens: Sequence[int]
  num_targets: int
  truncated: bool = False


Request = Generate | Likelihood


@dataclasses.dataclass(frozen=True)
class Generated:
  """The response to a `Generate`.

  Attributes:
    text: the decoded text, without the end token or stop string.
    num_tokens: number of new tokens, including the one that ended it.
    finish: 'stop', or 'length' if it reached the limit on new tokens.
    is_finite: whether the logits that its tokens were chosen from are finite.
  """

  text: str
  num_tokens: int
  finish: str
  is_finite: bool = True


@dataclasses.dataclass(frozen=True)
class Scored:
  """The response to a `Likelihood`.

  Attributes:
    nll: summed negative log-likelihood, in nats.
    is_greedy: whether every token was the likeliest one.
    num_tokens: number of tokens of the continuation.
  """

  nll: float
  is_greedy: bool
  num_tokens: int

  @property
  def is_finite(self) -> bool:
    """Whether the likelihood is finite."""
    return math.isfinite(self.nll)


Response = Generated | Scored


def generation_columns(request: Request, response: Generated) -> dict[str, Any]:
  """Columns of items.jsonl about the sizes of a prompt and its answer."""
  return {
    'num_prompt_tokens': len(request.tokens),
    'num_generated_tokens': response.num_tokens,
    'truncated': request.truncated,
    'finish': response.finish,
  }


@dataclasses.dataclass(frozen=True)
class Item:
  """One question of a task.

  Attributes:
    id: unique within the task.
    task: the group that it is reported under, such as a subject, or None.
    reference: the correct answer.
    requests: the requests to a model.
    category: a larger group that its task belongs to, or None.
    text: the question without what all items share, to be searched for in the
      pool.
  """

  id: str
  task: str | None
  reference: str
  requests: tuple[Request, ...]
  category: str | None = None
  text: str = ''


class TaskInputs(NamedTuple):
  """What a task makes its items from.

  Attributes:
    config: see edsft_jax/config.py.
    workdir: the study's folder.
    prompt_format: encodes prompts, as in finetuning.
    context: tokens that the model reads at most.
  """

  config: ml_collections.ConfigDict
  workdir: store.Workdir
  prompt_format: models.PromptFormat
  context: int


class Task(Protocol):
  """An evaluation; each has a file in evaluation/tasks/.

  Attributes:
    name: its name in evaluation.tasks and in paths.
    version: raised with every change that affects results.
    metrics: columns of items.jsonl that become metrics of eval.json.
    max_new_tokens: tokens per continuation at most.
    stop: strings that end a continuation.
    about: protocol, shots, template and extractor, for eval.json.
    items: the questions.
    counts: how many items or tokens were truncated or left out, by name.
  """

  name: ClassVar[str]
  version: ClassVar[int]
  metrics: ClassVar[Mapping[str, Metric]]
  max_new_tokens: int
  stop: tuple[str, ...]
  about: Mapping[str, Any]
  items: Sequence[Item]
  counts: Mapping[str, int]

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the items."""

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects bad options and missing inputs, before any work.

    Raises:
      InputError: naming the option or the file.
    """

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """The options and inputs that affect results, by name."""

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """Returns an item's columns besides id, task and reference.

    These are prediction, num_prompt_tokens, num_generated_tokens, truncated,
    finish, a number for each metric, and whatever else is worth keeping.
    """
