"""The contents of a file of prompts, and the options for reading them."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any

from edsft_jax import store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import items

NO_TASK = 'none'


@dataclasses.dataclass(frozen=True)
class Rules:
  """The options of the user.

  Attributes:
    named: column names.
    for_heldout: whether all rows are held out. If so, a column is detected if
      the named one does not exist, and each prompt may have its own task.
    strict: whether to fail on a row that would be quarantined, or merged with
      a row that has other text in some column.
    answers_in_prompts: whether prompts may contain their responses.
    heldout_fraction: the share of answered prompts to hold out.
    excluded: ids to leave out.
  """

  named: columns_lib.Named = dataclasses.field(
    default_factory=columns_lib.Named
  )
  for_heldout: bool = False
  strict: bool = False
  answers_in_prompts: bool = False
  heldout_fraction: float = 0.0
  excluded: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Built:
  """The contents of a file.

  Attributes:
    columns: their roles.
    num_rows: how many rows were read.
    pool: the prompts to choose from, with the answers that came with them.
    heldout: the prompts split off for evaluation.
    with_tasks: whether the task column holds tasks.
    kept: other columns of the pool.
    dropped: columns left out, with the reason.
    quarantine: rejected rows: line, id, reason.
    duplicates: rows merged into another, and prompts nearly equal to another:
      line, id, kept_id, merged, and the names of columns that differ.
    excluded: number of rows left out by their id.
    notes: messages for the user.
  """

  columns: columns_lib.Columns
  num_rows: int
  pool: list[items.Item]
  heldout: list[items.Item]
  with_tasks: bool
  kept: dict[str, list[store.Scalar | None]]
  dropped: dict[str, str]
  quarantine: list[dict[str, Any]]
  duplicates: list[dict[str, Any]]
  excluded: int
  notes: list[str]

  @property
  def num_merged(self) -> int:
    """Number of rows merged into another."""
    return sum(row['merged'] for row in self.duplicates)

  def prompts(self) -> store.Prompts:
    """The pool with its answers."""
    return as_prompts(self.pool, self.with_tasks)

  def heldout_prompts(self) -> store.Prompts:
    """The held-out set."""
    return as_prompts(self.heldout, self.with_tasks)


def as_prompts(rows: Sequence[items.Item], with_tasks: bool) -> store.Prompts:
  """Converts items to what other stages read."""
  has_tasks = with_tasks and any(item.task for item in rows)
  return store.Prompts(
    ids=[item.id for item in rows],
    prompts=[item.prompt for item in rows],
    tasks=[item.task or NO_TASK for item in rows] if has_tasks else None,
    responses=[item.response for item in rows],
  )


def of_places(
  columns: Mapping[str, list[store.Scalar | None]], places: Sequence[int]
) -> dict[str, list[store.Scalar | None]]:
  """The rows of columns at these places, without columns left empty."""
  picked = {n: [values[i] for i in places] for n, values in columns.items()}
  return {n: vs for n, vs in picked.items() if any(v is not None for v in vs)}
