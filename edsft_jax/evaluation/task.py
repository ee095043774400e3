"""What an evaluation task is: items, their requests, and how these score."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, Protocol

import ml_collections

from edsft_jax import models, store


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a column of items.jsonl is read, averaged and shown.

  Attributes:
    label: its name in a heading.
    larger_is_better: False where a smaller value is the better one.
    meaning: what is measured, with the unit.
    weight: the column that weighs the mean over items; '' for equal weights.
  """

  label: str
  larger_is_better: bool
  meaning: str
  weight: str = ''


@dataclasses.dataclass(frozen=True)
class Generate:
  """Asks for a greedy continuation.

  Attributes:
    tokens: ids of the prompt.
    truncated: whether it was shortened to fit.
  """

  tokens: Sequence[int]
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Asks how likely a given continuation is.

  Attributes:
    tokens: ids of the context and then of the continuation.
    num_targets: how many of them, at the end, are the continuation.
    truncated: whether the context was shortened to fit.
  """

  tokens: Sequence[int]
  num_targets: int
  truncated: bool = False


Request = Generate | Likelihood


@dataclasses.dataclass(frozen=True)
class Generated:
  """The response to a `Generate`.

  Attributes:
    text: decoded, without the end token or stop string.
    num_tokens: new tokens, the one that ended it included.
    finish: 'stop' or, at the most new tokens, 'length'.
  """

  text: str
  num_tokens: int
  finish: str


@dataclasses.dataclass(frozen=True)
class Scored:
  """The response to a `Likelihood`.

  Attributes:
    nll: summed negative log-likelihood, in nats.
    is_greedy: whether every token was the likeliest one.
    num_tokens: of the continuation.
  """

  nll: float
  is_greedy: bool
  num_tokens: int


Response = Generated | Scored


@dataclasses.dataclass(frozen=True)
class Item:
  """One question of a task.

  Attributes:
    id: unique within the task.
    task: the group that it is reported with, such as a subject; None for none.
    reference: the right answer.
    requests: what a model is asked.
  """

  id: str
  task: str | None
  reference: str
  requests: tuple[Request, ...]


class Task(Protocol):
  """An evaluation; each has a file in evaluation/tasks/.

  Attributes:
    name: in evaluation.tasks and in the files' paths.
    version: raised with every change of a number.
    metrics: columns of items.jsonl that become metrics of eval.json.
    max_new_tokens: of a continuation.
    stop: strings that end a continuation.
    about: protocol, shots, template and extractor, for eval.json.
    items: the questions.
    counts: what was truncated or left out, by name.
  """

  name: ClassVar[str]
  version: ClassVar[int]
  metrics: ClassVar[Mapping[str, Metric]]
  max_new_tokens: int
  stop: tuple[str, ...]
  about: Mapping[str, Any]
  items: Sequence[Item]
  counts: Mapping[str, int]

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    prompt_format: models.PromptFormat,
    context: int,
  ):
    """Reads and encodes the items, for a model with so long a context."""

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Refuses bad options and missing inputs, before any work.

    Raises:
      InputError: naming the option or the file.
    """

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """The options and inputs that change a number, by name."""

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """Columns of an item's row besides its id, task and reference."""
