"""Builds a pool from rows: merges duplicates, quarantines unusable rows.

Every row is counted once: as a prompt, held out, merged, quarantined or
excluded.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import gc
from typing import Any

from edsft_jax import errors
from edsft_jax.pool import columns as columns_lib
from edsft_jax.pool import (
  conversations,
  duplicates,
  heldout,
  items,
  leaks,
  markers,
  numeric,
  values,
)
from edsft_jax.pool.built import Built, Rules, of_places
from edsft_jax.tables import readers

# A pool of at least this many prompts has no tasks if each has its own.
_FEW_PROMPTS = 20
# Number of prompts to detect their form from.
_SAMPLE_SIZE = 2000


def build(source: str, rows: Iterable[readers.Row], rules: Rules) -> Built:
  """Sorts rows into pool, held-out set and quarantine.

  Of duplicate prompts the first answered one is kept, or else the first.

  Raises:
    InputError: no row is usable, a named column does not fit its role, most
      prompts contain their responses, or, if strict, a row would be
      quarantined, or merged with one that has other text.
  """
  with _without_collector():
    return _build(source, rows, rules)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
  """Disables garbage collection: rows have no cycles, it takes 20% longer."""
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def _build(source: str, rows: Iterable[readers.Row], rules: Rules) -> Built:
  read = list(rows)
  # A file of broken rows has no columns; the sorter says why.
  names = columns_lib.names_in(row.values or () for row in read)
  columns = columns_lib.Columns(prompts=('prompt',))
  if names:
    columns = columns_lib.find(
      source, names, rules.named, optional=rules.for_heldout
    )
  form = _find_form(source, read, columns, rules.named)
  notes = numeric.restore(read, columns)
  sorter = _Sorter(source, columns, form, rules, notes)
  for row in read:
    sorter.add(row)
  return sorter.finish()


def _find_form(
  source: str,
  rows: Sequence[readers.Row],
  columns: columns_lib.Columns,
  named: columns_lib.Named,
) -> markers.Form | None:
  """Detects the form in which the prompts are written.

  Raises:
    InputError: the prompts are in a column `text`, which was not named and has
      no known form: it may contain the responses too.
  """
  step = -(-len(rows) // _SAMPLE_SIZE) or 1
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
  """Sorts rows one by one."""

  def __init__(
    self,
    source: str,
    columns: columns_lib.Columns,
    form: markers.Form | None,
    rules: Rules,
    notes: Sequence[str],
  ):
    self._source = source
    self._columns = columns
    self._reader = items.Reader(columns, form)
    self._rules = rules
    self._first_notes = notes
    self._num_rows = 0
    # One entry per distinct prompt, in order of first occurrence.
    self._items: list[items.Item] = []
    self._rows: list[readers.Row] = []
    self._place_of_key: dict[str, int] = {}
    self._row_of_id: dict[str, readers.Row] = {}
    self._quarantine: list[dict[str, Any]] = []
    self._duplicates: list[dict[str, Any]] = []
    self._differing: collections.Counter[str] = collections.Counter()
    self._left_out: collections.Counter[str] = collections.Counter()

  def add(self, row: readers.Row) -> None:
    """Adds, merges or quarantines a row.

    Raises:
      InputError: the row would be quarantined, and the rules are strict.
    """
    self._num_rows += 1
    try:
      self._take(row)
    except values.UnusableRow as e:
      if self._rules.strict:
        raise errors.InputError(
          f'{self._source}, {row.place}: {e}: fix it, or set pool.strict=False '
          'to leave out such rows'
        ) from None
      row_id = self._reader.id_of(row.values or {})
      self._quarantine.append({**_place(row), 'id': row_id, 'reason': str(e)})

  def _take(self, row: readers.Row) -> None:
    if row.values is None:
      raise values.UnusableRow(row.problem)
    item = self._reader.item(row.values)
    self._refuse_answered(item)
    place = self._place_of_key.get(item.key)
    known = self._row_of_id.get(item.id)
    if known is not None and (place is None or known is not self._rows[place]):
      raise values.UnusableRow(
        f'the id is that of {known.place}, which has another prompt: give it '
        'its own id, or set pool.id_column=none'
      )
    if item.left_out:
      self._left_out.update(item.left_out)
    if place is None:
      self._place_of_key[item.key] = len(self._items)
      self._row_of_id[item.id] = row
      self._items.append(item)
      self._rows.append(row)
    else:
      self._merge(place, item, row)

  def _refuse_answered(self, item: items.Item) -> None:
    """Rejects a prompt that ends with an answer after a role marker."""
    if self._rules.answers_in_prompts or not isinstance(item.prompt, str):
      return
    form = markers.answered_form(item.prompt, with_questions=not item.response)
    if form is not None:
      raise values.UnusableRow(
        f'the prompt ends with an answer ({form.name}): remove it, or set '
        'pool.answer_in_prompt=keep if it belongs to the prompt'
      )

  def _merge(self, place: int, item: items.Item, row: readers.Row) -> None:
    """Keeps one of two rows with the same prompt: the answered one."""
    kept, kept_row = self._items[place], self._rows[place]
    differing = self._differing_columns(row, kept_row)
    if differing and self._rules.strict:
      raise errors.InputError(
        f'{self._source}, {row.place}: it has the prompt of {kept_row.place} '
        f'but another {differing[0]}: set pool.context_column to it if it '
        'belongs to the prompt, or pool.strict=False to merge such rows'
      )
    self._differing.update(differing)
    differs = self._other_columns(row, kept_row)
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

  def _other_columns(self, row: readers.Row, other: readers.Row) -> list[str]:
    """Columns without a role that have different values."""
    return [
      name for name, mine, theirs in self._unused(row, other) if mine != theirs
    ]

  def _differing_columns(
    self, row: readers.Row, other: readers.Row
  ) -> list[str]:
    """Columns with different text, which may belong to the prompt."""
    return [
      name
      for name, mine, theirs in self._unused(row, other)
      if not columns_lib.may_be_answer(name)
      and _is_prose(mine)
      and _is_prose(theirs)
      and mine.split() != theirs.split()
    ]

  def _unused(
    self, row: readers.Row, other: readers.Row
  ) -> Iterator[tuple[str, Any, Any]]:
    """The columns without a role, each with the values of both rows."""
    theirs = other.values or {}
    for name, value in (row.values or {}).items():
      if name not in self._columns.used and not columns_lib.is_unnamed(name):
        yield name, value, theirs.get(name)

  def finish(self) -> Built:
    """Returns the result.

    Raises:
      InputError: see `build`.
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
      kept=of_places(
        others.kept, [i for i, out in enumerate(chosen) if not out]
      ),
      dropped=dropped,
      quarantine=self._quarantine,
      duplicates=self._duplicates,
      excluded=num_excluded,
      notes=notes,
    )

  def _refuse_merged_away(self) -> None:
    """Rejects a file of which most rows would be merged for a missed column."""
    if self._differing and len(self._duplicates) > len(self._items):
      name, count = self._differing.most_common(1)[0]
      raise errors.InputError(
        f'{self._source}: {len(self._duplicates):,} of {self._num_rows:,} rows '
        f'repeat a prompt, {count:,} of them with another {name}: set '
        'pool.context_column to it if it belongs to the prompt, or remove it'
      )

  def _exclude(self) -> int:
    """Drops the excluded rows and returns their number.

    Raises:
      InputError: an id does not exist.
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
    notes = [*self._first_notes]
    form = self._reader.form
    if form is not None:
      count = sum(not isinstance(item.prompt, str) for item in self._items)
      notes.append(
        f'conversations written as text ({form.name}) and split into turns: '
        f'{count:,}'
      )
    marked = [
      item.id
      for item in self._items
      if isinstance(item.prompt, str) and markers.is_in_any(item.prompt)
    ]
    if marked:
      notes.append(
        f'prompts with role markers, which were not split into turns: '
        f'{len(marked):,}, the first of them {marked[0]}'
      )
    notes += [
      f'{count:,} merged rows have another {name}: set pool.context_column '
      'to it if it belongs to the prompt'
      for name, count in self._differing.most_common()
    ]
    notes += [
      f'{count:,} conversations have turns with {name}, which is left out'
      for name, count in self._left_out.most_common()
    ]
    if self._columns.unnamed:
      notes.append(f'unnamed columns ignored: {self._columns.unnamed}')
    return notes

  def _list_near(self) -> None:
    """Lists prompts with the same words as an earlier one."""
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
    """Why the task column does not hold tasks, or ''.

    Raises:
      InputError: the user named this column.
    """
    answered = [item for item in self._items if item.response]
    num_equal = sum(
      # Most differ in length already.
      len(item.response) < 4 * len(item.task) + 32
      and duplicates.same_words(item.task, item.response)
      for item in answered
      if item.task
    )
    num_tasks = len({item.task for item in self._items})
    # A held-out file often has one prompt of each task.
    all_differ = num_tasks == len(self._items) and not self._rules.for_heldout
    if num_equal and num_equal >= leaks.TASK_LEAK_SHARE * len(answered):
      reason = (
        f'it equals the response in {num_equal:,} of {len(answered):,} '
        'answered rows'
      )
    elif all_differ and num_tasks >= _FEW_PROMPTS:
      reason = f'each of the {num_tasks:,} prompts has its own task'
    else:
      return ''
    if self._columns.task_named:
      raise errors.InputError(
        f'pool.task_column={self._columns.task!r} of {self._source} is not a '
        f'task: {reason}: name a column with a few labels, known before the '
        'answers, or set it to none'
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
      f'{self._source} has no usable row: {len(self._quarantine):,} rejected, '
      f'the first in line {first["line"]}: {first["reason"]}: fix it, or set '
      'pool.format, pool.prompt_column or another column option'
    )


def _place(row: readers.Row) -> Mapping[str, Any]:
  """The position of a row, for quarantine.jsonl and duplicates.jsonl."""
  file = {'file': row.file} if row.file else {}
  return {**file, 'line': row.line}


def _is_prose(value: Any) -> bool:
  """Whether a value is words, and not an address, date or id.

  Those may differ between rows with equal prompts.
  """
  if not isinstance(value, str) or not value.strip():
    return False
  text = value.strip()
  return ' ' in text or (text.isalpha() and '://' not in text)
