"""What annotators have said so far, in annotations/.

responses.parquet   id, response, and what is known about it: annotator,
                    times, costs ...
rejected.jsonl      id, reason, source, annotator
amended.jsonl       id, source, what: corrections of the two
"""

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
from typing import Any

import pyarrow as pa

from edsft_jax import store
from edsft_jax.annotation.delivery import Delivery
from edsft_jax.annotation.formats import Row

_RESPONSE = ('id', 'response')


@dataclasses.dataclass(frozen=True)
class Records:
  """Answers and rejections.

  Attributes:
    responses: id -> answer.
    others: id -> further columns.
    rejected: id -> row of rejected.jsonl.
    amended: rows of amended.jsonl.
  """

  responses: dict[str, str]
  others: dict[str, dict[str, store.Scalar]]
  rejected: dict[str, dict[str, Any]]
  amended: list[dict[str, Any]]

  @classmethod
  def read(cls, workdir: store.Workdir) -> 'Records':
    """Reads those of a workdir.

    Raises:
      InputError: a file is damaged.
    """
    responses = store.read_responses(workdir.responses)
    others: dict[str, dict[str, store.Scalar]] = {}
    if workdir.responses.exists():
      table = store.read_parquet(workdir.responses)
      names = [n for n in table.column_names if n not in _RESPONSE]
      for row in table.select(['id', *names]).to_pylist() if names else ():
        others[row['id']] = {n: row[n] for n in names if row[n] is not None}
    return cls(
      responses,
      others,
      {row['id']: row for row in _read_jsonl(workdir.rejected)},
      _read_jsonl(workdir.amended),
    )

  def updated(self, delivery: Delivery, source: str) -> 'Records':
    """These, and those of a delivery.

    Args:
      delivery: it fits these.
      source: the name of its file.
    """
    responses, others = {**self.responses}, {**self.others}
    rejected, amended = {**self.rejected}, [*self.amended]
    for prompt_id, row in delivery.answers.items():
      rejected.pop(prompt_id, None)
      responses[prompt_id] = row.response
      others[prompt_id] = _columns(row)
    for prompt_id, row in delivery.rejections.items():
      responses.pop(prompt_id, None)
      others.pop(prompt_id, None)
      rejected[prompt_id] = {
        'id': prompt_id,
        'reason': row.reason,
        'source': source,
        'annotator': row.annotator,
      }
    for prompt_id, what in delivery.amended.items():
      amended.append({'id': prompt_id, 'source': source, 'what': what})
    return Records(responses, others, rejected, amended)

  def with_responses(self, known: Mapping[str, str]) -> 'Records':
    """These, and answers that came with the pool."""
    return dataclasses.replace(
      self, responses={**self.responses, **known, **self.responses}
    )

  def write(self, workdir: store.Workdir, before: 'Records') -> None:
    """Writes what differs from `before`."""
    table = self._table()  # Before anything is written: it may fail.
    # Corrections first: after an interruption, cells made from the old answers
    # can still be told.
    if self.amended != before.amended:
      store.write_jsonl(workdir.amended, self.amended)
    if self.rejected != before.rejected:
      store.write_jsonl(workdir.rejected, self.rejected.values())
    answers = (self.responses, self.others)
    is_new = answers != (before.responses, before.others)
    if is_new or not workdir.responses.exists():
      store.write_parquet(workdir.responses, table)

  def _table(self) -> pa.Table:
    rows = [self.others.get(i, {}) for i in self.responses]
    names = dict.fromkeys(name for row in rows for name in row)
    return store.response_table(
      self.responses,
      {name: _uniform(row.get(name) for row in rows) for name in names},
    )


def _read_jsonl(path: Any) -> list[dict[str, Any]]:
  return store.read_jsonl(path) if path.exists() else []


def _columns(row: Row) -> dict[str, store.Scalar]:
  """What is known about an answer."""
  columns: dict[str, store.Scalar] = {}
  if row.annotator:
    columns['annotator'] = row.annotator
  return columns | {
    name: value
    for name, value in row.others.items()
    if name not in (*_RESPONSE, 'annotator')
  }


def _uniform(
  values: Iterable[store.Scalar | None],
) -> list[store.Scalar | None]:
  """The values; as floats if some are numbers, and the others look like some.

  Text files have no numbers, so deliveries of several kinds differ.
  """
  values = list(values)
  types = {type(value) for value in values if value is not None}
  if len(types) > 1 and types <= {int, float, str} and types & {int, float}:
    with contextlib.suppress(ValueError):
      return [None if v is None else float(v) for v in values]
  return values
