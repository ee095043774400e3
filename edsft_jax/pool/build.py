"""Rows become a pool: unusable ones out, duplicates out, answers set apart.

Every row is accounted for: prompts + held out + merged + quarantined + excluded
are the rows that were read.
"""

import collections
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import gc
from typing import Any

from edsft_jax import errors, store
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import (
  conversations,
  duplicates,
  heldout,
  items,
  leaks,
  markers,
  readers,
  values,
)

NO_TASK = 'none'
# From so many prompts on, a task for every one is no task.
_FEW_PROMPTS = 20
# Prompts read to tell in what form they are written.
_LOOKED_AT = 2000


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a person decided.

  Attributes:
    named: the columns.
    named_if_there: whether the usual ones do where the named are not there.
    strict: whether a row that would be quarantined is an error.
    answers_in_prompts: whether prompts may hold their responses.
    heldout_fraction: the share of answered prompts to hold out.
    excluded: ids that are left out.
  """

  named: columns_lib.Named = dataclasses.field(
    default_factory=columns_lib.Named
  )
  named_if_there: bool = False
  strict: bool = False
  answers_in_prompts: bool = False
  heldout_fraction: float = 0.0
  excluded: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Built:
  """What a file gives.

  Attributes:
    columns: which are what.
    num_rows: how many were read.
    pool: the prompts to choose from, with the answers that came with them.
    heldout: those split off to evaluate on.
    with_tasks: whether the task column is one.
    kept: other columns of the pool.
    dropped: columns left out, with the reason.
    quarantine: rows refused: line, id, reason.
    duplicates: rows merged into another, or nearly equal to one: line, id,
      kept_id, merged, and the columns that differ.
    excluded: how many rows were left out by their id.
    notes: what a person should know.
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
    """How many rows were merged into another."""
    return sum(row['merged'] for row in self.duplicates)

  def prompts(self) -> store.Prompts:
    """The pool with its answers."""
    return as_prompts(self.pool, self.with_tasks)

  def heldout_prompts(self) -> store.Prompts:
    """The held-out set."""
    return as_prompts(self.heldout, self.with_tasks)


def build(source: str, rows: Iterable[readers.Row], rules: Rules) -> Built:
  """Sorts rows into pool, held-out set and quarantine.

  Of the same prompt twice one is kept: the first that is answered, or the
  first.

  Raises:
    InputError: no row is usable, a named column is not what it is named for,
      prompts hold their responses, or, if strict, a row would be quarantined
      or merged in spite of what it says.
  """
  with _without_collector():
    return _build(source, rows, rules)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
  """Rows have no cycles, and looking for some takes a fifth of the time."""
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def _build(source: str, rows: Iterable[readers.Row], rules: Rules) -> Built:
  read = list(rows)
  # A file of broken rows has no column; sorting says why.
  names = list(dict.fromkeys(n for row in read for n in row.values or ()))
  columns = columns_lib.Columns(prompts=('prompt',))
  if names:
    columns = columns_lib.find(
      source, names, rules.named, optional=rules.named_if_there
    )
  form = _find_form(source, read, columns, rules.named)
  sorter = _Sorter(source, columns, form, rules)
  for row in read:
    sorter.add(row)
  return sorter.finish()


def as_prompts(rows: Sequence[items.Item], with_tasks: bool) -> store.Prompts:
  """Items as the other stages read them."""
  has_tasks = with_tasks and any(item.task for item in rows)
  return store.Prompts(
    ids=[item.id for item in rows],
    prompts=[item.prompt for item in rows],
    tasks=[item.task or NO_TASK for item in rows] if has_tasks else None,
    responses=[item.response for item in rows],
  )


def _find_form(
  source: str,
  rows: Sequence[readers.Row],
  columns: columns_lib.Columns,
  named: columns_lib.Named,
) -> markers.Form | None:
  """What the prompts are written in.

  Raises:
    InputError: the prompts are a column called text in no known form: it may
      well hold the responses too.
  """
  step = -(-len(rows) // _LOOKED_AT) or 1
  texts = [
    value
    for row in rows[::step]
    for name in columns.prompts
    if isinstance(value := (row.values or {}).get(name), str)
  ]
  form = markers.find_form(texts)
  guessed = columns.prompts[0].casefold() == 'text' and not named.prompt
  if guessed and form is None and not any(map(conversations.looks_like, texts)):
    raise errors.InputError(
      f'{source}: its column {columns.prompts[0]!r} may contain responses too, '
      'in an unknown form: set pool.prompt_column to it if it only contains '
      'prompts'
    )
  return form


class _Sorter:
  """What is known of the rows so far."""

  def __init__(
    self,
    source: str,
    columns: columns_lib.Columns,
    form: markers.Form | None,
    rules: Rules,
  ):
    self._source = source
    self._columns = columns
    self._reader = items.Reader(columns, form)
    self._rules = rules
    self._num_rows = 0
    # Of one prompt after the other, in the order in which they came first.
    self._items: list[items.Item] = []
    self._rows: list[readers.Row] = []
    self._place_of_key: dict[str, int] = {}
    self._row_of_id: dict[str, readers.Row] = {}
    self._quarantine: list[dict[str, Any]] = []
    self._duplicates: list[dict[str, Any]] = []
    self._differing: collections.Counter[str] = collections.Counter()
    self._left_out: collections.Counter[str] = collections.Counter()

  def add(self, row: readers.Row) -> None:
    """Takes a row, merges a duplicate, or puts it into quarantine.

    Raises:
      InputError: being strict.
    """
    self._num_rows += 1
    try:
      self._take(row)
    except values.UnusableRow as e:
      if self._rules.strict:
        raise errors.InputError(
          f'{self._source}, {row.place}: {e}: fix it, or leave such rows out '
          'by pool.strict=False'
        ) from None
      row_id = self._reader.id_of(row.values or {})
      self._quarantine.append({**_place(row), 'id': row_id, 'reason': str(e)})

  def _take(self, row: readers.Row) -> None:
    if row.values is None:
      raise values.UnusableRow(row.problem)
    item = self._reader.item(row.values)
    place = self._place_of_key.get(item.key)
    known = self._row_of_id.get(item.id)
    if known is not None and (place is None or known is not self._rows[place]):
      raise values.UnusableRow(
        f'the id is that of {known.place}, which has another prompt: give it '
        'its own, or switch ids off by pool.id_column=none'
      )
    self._left_out.update(item.left_out)
    if place is None:
      self._place_of_key[item.key] = len(self._items)
      self._row_of_id[item.id] = row
      self._items.append(item)
      self._rows.append(row)
    else:
      self._merge(place, item, row)

  def _merge(self, place: int, item: items.Item, row: readers.Row) -> None:
    """Keeps the one of two equal prompts that is answered."""
    kept, kept_row = self._items[place], self._rows[place]
    differing = self._differing_columns(row, kept_row)
    if differing and self._rules.strict:
      raise errors.InputError(
        f'{self._source}, {row.place}: it has the prompt of {kept_row.place} '
        f'and another {differing[0]}: name that by pool.context_column if it '
        'belongs to the prompt, or merge such rows by pool.strict=False'
      )
    self._differing.update(differing)
    differs = list(differing)
    if item.task != kept.task:
      differs.append('task')
    if item.response and kept.response and item.response != kept.response:
      differs.append('response')
    if item.response and not kept.response:
      self._items[place], self._rows[place] = item, row
      del self._row_of_id[kept.id]
      self._row_of_id[item.id] = row
      kept, item, row = item, kept, kept_row
    self._duplicates.append(
      {
        **_place(row),
        'id': item.id,
        'kept_id': kept.id,
        'merged': True,
        'differs': differs,
      }
    )

  def _differing_columns(
    self, row: readers.Row, other: readers.Row
  ) -> list[str]:
    """Columns of text that differ, and may belong to the prompt."""
    mine, theirs = row.values or {}, other.values or {}
    return [
      name
      for name, value in mine.items()
      if name not in self._columns.used
      and not columns_lib.is_unnamed(name)
      and not columns_lib.may_be_answer(name)
      and _is_prose(value)
      and _is_prose(theirs.get(name))
      and value.split() != theirs[name].split()
    ]

  def finish(self) -> Built:
    """What all rows give.

    Raises:
      InputError: see build.
    """
    self._refuse_merged_away()
    num_excluded = self._exclude()
    notes = self._notes()
    chosen = heldout.split(self._items, self._rules.heldout_fraction)
    pool = [i for i, out in zip(self._items, chosen, strict=True) if not out]
    held = [i for i, out in zip(self._items, chosen, strict=True) if out]
    if not pool:
      raise self._no_usable_row(len(held))
    if not self._rules.answers_in_prompts:
      leaks.refuse_answered_prompts(self._source, pool, self._columns)
    self._list_near()
    rows = [row.values or {} for row in self._rows]
    others = leaks.other_columns(rows, self._items, self._columns.used)
    dropped = dict(others.dropped)
    if problem := self._task_problem():
      dropped[self._columns.task or ''] = problem
    return Built(
      columns=self._columns,
      num_rows=self._num_rows,
      pool=pool,
      heldout=held,
      with_tasks=not problem,
      kept=_only_pool(others.kept, chosen),
      dropped=dropped,
      quarantine=self._quarantine,
      duplicates=self._duplicates,
      excluded=num_excluded,
      notes=notes,
    )

  def _refuse_merged_away(self) -> None:
    """Refuses to lose most of a file to a column that was not read."""
    if self._differing and len(self._duplicates) > len(self._items):
      name, count = self._differing.most_common(1)[0]
      raise errors.InputError(
        f'{self._source}: {len(self._duplicates):,} of {self._num_rows:,} rows '
        f'repeat a prompt, {count:,} of them with another {name}: name that by '
        'pool.context_column if it belongs to the prompt, or remove the column'
      )

  def _exclude(self) -> int:
    """Drops what is excluded, and counts it.

    Raises:
      InputError: an id is not there.
    """
    excluded = self._rules.excluded
    if not excluded:
      return 0
    unknown = sorted(set(excluded) - self._row_of_id.keys())
    if unknown:
      raise errors.InputError(
        f'pool.exclude names {len(unknown):,} ids that are not in '
        f'{self._source}: {", ".join(unknown[:5])}: remove them from the file'
      )
    pairs = zip(self._items, self._rows, strict=True)
    left = [(i, r) for i, r in pairs if i.id not in excluded]
    count = len(self._items) - len(left)
    self._items = [item for item, _ in left]
    self._rows = [row for _, row in left]
    return count

  def _notes(self) -> list[str]:
    notes = []
    form = self._reader.form
    if form is not None:
      count = sum(not isinstance(item.prompt, str) for item in self._items)
      notes.append(
        f'{count:,} prompts are written out as conversations ({form.name}) '
        'and were taken apart'
      )
    marked = [
      item.id
      for item in self._items
      if isinstance(item.prompt, str)
      and any(markers.is_in(item.prompt, form) for form in markers.FORMS)
    ]
    if marked:
      notes.append(
        f'{len(marked):,} prompts have marks of roles in their text and were '
        f'taken as they are, the first of them {marked[0]}'
      )
    notes += [
      f'{count:,} merged rows have another {name}: name it by '
      'pool.context_column if it belongs to the prompt'
      for name, count in self._differing.most_common()
    ]
    notes += [
      f'{count:,} conversations have {name} in their turns, which is left out'
      for name, count in self._left_out.most_common()
    ]
    if self._columns.unnamed:
      notes.append(f'{self._columns.unnamed} unnamed columns are ignored')
    return notes

  def _list_near(self) -> None:
    """Lists prompts that have the words of an earlier one."""
    first: dict[int, str] = {}
    for item, row in zip(self._items, self._rows, strict=True):
      other = first.setdefault(item.near, item.id)
      if other != item.id:
        self._duplicates.append(
          {
            **_place(row),
            'id': item.id,
            'kept_id': other,
            'merged': False,
            'differs': ['prompt'],
          }
        )

  def _task_problem(self) -> str:
    """Why the task column is none, or ''.

    Raises:
      InputError: a person named it.
    """
    answered = [item for item in self._items if item.response]
    num_equal = sum(
      # Nearly all are told apart by their length already.
      len(item.response) < 4 * len(item.task) + 32
      and duplicates.same_words(item.task, item.response)
      for item in answered
      if item.task
    )
    num_tasks = len({item.task for item in self._items})
    if num_equal and num_equal >= leaks.TASK_LEAK_SHARE * len(answered):
      reason = (
        f'it is the response in {num_equal:,} of {len(answered):,} answered '
        'rows'
      )
    elif num_tasks == len(self._items) >= _FEW_PROMPTS:
      reason = f'each of its {num_tasks:,} prompts has a task of its own'
    else:
      return ''
    if self._columns.task_named:
      raise errors.InputError(
        f'pool.task_column={self._columns.task!r} of {self._source} is not a '
        f'task: {reason}: name a column of a few labels that are known before '
        'the answers, or none'
      )
    return reason

  def _no_usable_row(self, num_heldout: int) -> errors.InputError:
    if num_heldout:
      return errors.InputError(
        f'{self._source} has no prompt left to choose from: all {num_heldout} '
        'are held out: lower pool.heldout_fraction'
      )
    if not self._quarantine:
      return errors.InputError(
        f'{self._source} has no rows: give one prompt per row'
      )
    first = self._quarantine[0]
    return errors.InputError(
      f'{self._source} has no usable row: {len(self._quarantine):,} refused, '
      f'the first in line {first["line"]}: {first["reason"]}: fix it, or name '
      'its format by pool.format or its columns by pool.prompt_column and the '
      'like'
    )


def _place(row: readers.Row) -> Mapping[str, Any]:
  """Where a row stands, as quarantine.jsonl and duplicates.jsonl say it."""
  file = {'file': row.file} if row.file else {}
  return {**file, 'line': row.line}


def _only_pool(
  columns: Mapping[str, list[store.Scalar | None]], heldout: Sequence[bool]
) -> dict[str, list[store.Scalar | None]]:
  """Columns of the rows that are not held out, if any has a value there."""
  left = {
    name: [v for v, out in zip(values, heldout, strict=True) if not out]
    for name, values in columns.items()
  }
  return {n: vs for n, vs in left.items() if any(v is not None for v in vs)}


def _is_prose(value: Any) -> bool:
  """Whether a value is text that a person may have to read.

  Addresses, dates and ids differ among equal prompts and say nothing of them.
  """
  if not isinstance(value, str) or not value.strip():
    return False
  text = value.strip()
  return ' ' in text or (text.isalpha() and '://' not in text)
