"""Prompts and answers, and the tables that stages exchange."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, TypeVar

import pyarrow as pa

from edsft_jax.store import files
from edsft_jax.store.workdir import Workdir

# A prompt is text, or a conversation that ends with the turn to answer.
Message = dict[str, str]
Prompt = str | list[Message]
Scalar = str | int | float | bool

T = TypeVar('T')

# Rows per arrow batch, whose text must stay below 2 GiB.
BATCH_ROWS = 16384


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Prompts in file order; scoring and selection get them without answers.

  Attributes:
    ids: unique ids.
    prompts: text, or a list of {'role', 'content'} turns; some have a 'name'.
    tasks: a label for each prompt, or None.
    responses: an answer for each prompt, '' if unknown; None if the answers are
      stored separately, as for the pool.
  """

  ids: list[str]
  prompts: list[Prompt]
  tasks: list[str] | None
  responses: list[str] | None = None

  def __len__(self) -> int:
    return len(self.ids)

  def texts(self) -> list[str]:
    """The text of each prompt, without the roles of its turns."""
    return [_text(prompt) for prompt in self.prompts]

  def num_words(self) -> list[int]:
    """Words of each prompt, separated by white space."""
    return [len(text.split()) for text in self.texts()]

  def where(self, chosen: Sequence[bool]) -> 'Prompts':
    """The prompts for which `chosen` is true, in the same order."""

    def pick(values: list[T]) -> list[T]:
      return [v for v, keep in zip(values, chosen, strict=True) if keep]

    return Prompts(
      ids=pick(self.ids),
      prompts=pick(self.prompts),
      tasks=None if self.tasks is None else pick(self.tasks),
      responses=None if self.responses is None else pick(self.responses),
    )

  def first(self, count: int) -> 'Prompts':
    """The first `count` prompts, or all if there are fewer."""
    return self.where([i < count for i in range(len(self))])

  def after(self, count: int) -> 'Prompts':
    """All but the first `count` prompts."""
    return self.where([i >= count for i in range(len(self))])

  def answered(self) -> 'Prompts':
    """The prompts that have a response."""
    if self.responses is None:
      return self.where([False] * len(self))
    return self.where([bool(text) for text in self.responses])


def read_prompts(path: pathlib.Path) -> Prompts:
  """Reads pool.parquet or heldout.parquet.

  Raises:
    InputError: the file is damaged.
  """
  table = files.read_parquet(path)
  names = set(table.column_names)
  if 'messages' in names:
    prompts = [
      text if turns is None else [_without_none(turn) for turn in turns]
      for turns, text in zip(
        table['messages'].to_pylist(),
        table['prompt'].to_pylist()
        if 'prompt' in names
        else [None] * len(table),
        strict=True,
      )
    ]
  else:
    prompts = table['prompt'].to_pylist()
  return Prompts(
    ids=table['id'].to_pylist(),
    prompts=prompts,
    tasks=table['task'].to_pylist() if 'task' in names else None,
    responses=table['response'].to_pylist() if 'response' in names else None,
  )


def _text(prompt: Prompt) -> str:
  if isinstance(prompt, str):
    return prompt
  return '\n'.join(turn.get('content') or '' for turn in prompt)


def _without_none(turn: dict[str, str | None]) -> Message:
  """A turn without the fields that only others have."""
  return {name: value for name, value in turn.items() if value is not None}


def read_responses(path: pathlib.Path) -> dict[str, str]:
  """Reads a table of id and response; {} if the file does not exist.

  Raises:
    InputError: the file is damaged.
  """
  if not path.exists():
    return {}
  table = files.read_parquet(path, columns=['id', 'response'])
  return dict(
    zip(table['id'].to_pylist(), table['response'].to_pylist(), strict=True)
  )


def known_answers(workdir: Workdir) -> dict[str, str]:
  """Answers by id: those that came with the pool, and those of annotators.

  Raises:
    InputError: a file is damaged.
  """
  return {
    **read_responses(workdir.pool_responses),
    **read_responses(workdir.responses),
  }


def prompt_table(
  prompts: Prompts, others: Mapping[str, list[Scalar | None]] | None = None
) -> pa.Table:
  """Makes a table for `read_prompts`.

  Its columns are id, prompt or messages or both, task if there are any, other
  columns, and response if there are any.

  Args:
    prompts: the rows.
    others: further columns, with a value per prompt.
  """
  columns: dict[str, _Column] = {'id': (prompts.ids, pa.string())}
  texts = [p if isinstance(p, str) else None for p in prompts.prompts]
  turns = [p if isinstance(p, list) else None for p in prompts.prompts]
  if any(text is not None for text in texts):
    columns['prompt'] = (texts, pa.string())
  if any(turn is not None for turn in turns):
    columns['messages'] = (turns, _messages_type(turns))
  if prompts.tasks is not None:
    columns['task'] = (prompts.tasks, pa.string())
  columns |= _other_columns(others or {})
  if prompts.responses is not None:
    columns['response'] = (prompts.responses, pa.string())
  return _table(columns)


def response_table(
  responses: Mapping[str, str],
  others: Mapping[str, list[Scalar | None]] | None = None,
) -> pa.Table:
  """Makes a table of answers by id, for `read_responses`.

  Args:
    responses: the answers.
    others: further columns, with a value per answer.
  """
  return _table(
    {
      'id': (list(responses), pa.string()),
      'response': (list(responses.values()), pa.string()),
      **_other_columns(others or {}),
    }
  )


_Column = tuple[list[Any], pa.DataType]


def _messages_type(
  conversations: Sequence[list[Message] | None],
) -> pa.DataType:
  """Lists of role and content, with a name if any turn has one."""
  names = ['role', 'content']
  if any('name' in turn for turns in conversations for turn in turns or ()):
    names.append('name')
  return pa.list_(pa.struct([(name, pa.string()) for name in names]))


def _other_columns(
  others: Mapping[str, list[Scalar | None]],
) -> dict[str, _Column]:
  """Columns with the narrowest type for their values; text if mixed."""
  columns: dict[str, _Column] = {}
  for name, values in others.items():
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
      columns[name] = (values, pa.bool_())
    elif types == {int} and all(abs(int(v or 0)) < 2**63 for v in values):
      columns[name] = (values, pa.int64())
    elif types == {float}:
      columns[name] = (values, pa.float64())
    else:
      texts = [None if value is None else str(value) for value in values]
      columns[name] = (texts, pa.string())
  return columns


def _table(columns: dict[str, _Column]) -> pa.Table:
  schema = pa.schema([(name, type_) for name, (_, type_) in columns.items()])
  lists = [values for values, _ in columns.values()]
  num_rows = len(lists[0])
  return pa.Table.from_batches(
    [
      pa.record_batch(
        [
          pa.array(values[start : start + BATCH_ROWS], field.type)
          for values, field in zip(lists, schema, strict=True)
        ],
        schema=schema,
      )
      for start in range(0, num_rows, BATCH_ROWS)
    ],
    schema=schema,
  )
