"""What every format of an annotation tool implements."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
from typing import Any

from edsft_jax import store
from edsft_jax.tables import readers


@dataclasses.dataclass(frozen=True)
class Task:
  """A prompt to be answered, as a row of a todo.

  Attributes:
    prompt_id: the prompt's id; not called `id`, since tools overwrite that.
    rank: its place in the todo, from 1; the first ones complete the smallest
      budgets.
    task: its label; '' if the pool has none.
    prompt: its text, with the roles of several turns.
  """

  prompt_id: str
  rank: int
  task: str
  prompt: str

  @property
  def words(self) -> int:
    """Number of words of the prompt, separated by white space."""
    return len(self.prompt.split())

  def columns(self) -> dict[str, Any]:
    """All that annotators are shown, by name."""
    return {
      'prompt_id': self.prompt_id,
      'rank': self.rank,
      'task': self.task,
      'prompt': self.prompt,
      'words': self.words,
      'characters': len(self.prompt),
    }


class Verdict(enum.Enum):
  """What an annotator decided about a prompt."""

  ANSWERED = 'answered'
  # The prompt is unusable: another one takes its place.
  REJECTED = 'rejected'
  # No answer yet: skipped, cancelled, ignored, or a draft.
  SKIPPED = 'skipped'


@dataclasses.dataclass(frozen=True)
class Row:
  """One annotation in a delivered file.

  Attributes:
    place: where it is in the file, for messages.
    id: the prompt's id as written; None if the file has none, and the prompt's
      text has to identify it.
    prompt: the prompt as written; None if it is not in the file.
    response: the answer; '' for none.
    verdict: what the annotator decided; None if the file does not say, and then
      a response is an answer.
    reason: why the prompt was rejected.
    annotator: who answered, '' if unknown.
    others: further columns: annotator, times, costs ...
    problem: why the row cannot be read; '' if it can.
  """

  place: str
  id: str | None = None
  prompt: str | None = None
  response: str = ''
  verdict: Verdict | None = None
  reason: str = ''
  annotator: str = ''
  others: Mapping[str, store.Scalar] = dataclasses.field(default_factory=dict)
  problem: str = ''


@dataclasses.dataclass(frozen=True)
class Format:
  """A row of the table of formats.

  Attributes:
    name: the tool or the kind of file, for messages.
    recognises: whether the records of a delivered file are in this format.
    read: their annotations, and messages for the user.
    write: the todo's text, for tasks; None if no todo is written.
    extension: of the todo: 'csv' for todo.csv.
    companions: further files next to the todo, by name, such as the
      configuration of a tool.
  """

  name: str
  recognises: Callable[[Sequence[readers.Row]], bool]
  read: Callable[[Sequence[readers.Row]], tuple[list[Row], list[str]]]
  write: Callable[[Sequence[Task]], str] | None = None
  extension: str = ''
  companions: Mapping[str, str] = dataclasses.field(default_factory=dict)
