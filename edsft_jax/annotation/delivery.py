"""Matches a delivered file with the pool: all of it, or nothing.

What is missing is a partial delivery. A row that does not fit, since its id,
its prompt or its verdict is wrong, refuses the whole file: if ids have been
shifted by one row, most rows still look right.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
import dataclasses
import pathlib
import unicodedata

from edsft_jax import errors, store
from edsft_jax.annotation.formats import Row, Verdict, cells
from edsft_jax.annotation.ledger import readable

_NAMES_SHOWN = 100

# How to take the answer of one of several annotators.
CHOICES = ('refuse', 'first', 'last', 'longest')


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a delivery may do.

  Attributes:
    duplicates: one of CHOICES.
    amend: whether it may change what earlier ones said.
  """

  duplicates: str = 'refuse'
  amend: bool = False


@dataclasses.dataclass(frozen=True)
class Delivery:
  """What a file adds.

  Attributes:
    answers: id -> row, of answers that are new or amended.
    rejections: id -> row, of prompts that are newly rejected.
    amended: id -> what changed, for answers and rejections known before.
    counts: of prompts about which it says what was `known` before, which were
      `skipped` or are `empty`, and with `several` answers, of which one was
      taken.
  """

  answers: dict[str, Row]
  rejections: dict[str, Row]
  amended: dict[str, str]
  counts: Counter[str]


def take(
  path: pathlib.Path,
  rows: Sequence[Row],
  pool: store.Prompts,
  known: Mapping[str, str],
  rejected: Collection[str],
  rules: Rules,
) -> Delivery:
  """Matches the rows of a file with the prompts of the pool.

  Args:
    path: the file, for messages.
    rows: what it says.
    pool: the prompts.
    known: answers by id, from the pool and earlier files.
    rejected: ids of prompts rejected in earlier files.
    rules: what it may do.

  Raises:
    InputError: naming the rows that do not fit, up to 100 for each fault.
  """
  faults = _Faults(path)
  finder = _Finder(pool, faults)
  by_id: dict[str, list[Row]] = {}
  for row in rows:
    prompt_id = finder.find(row)
    if prompt_id is not None and _fits(row, prompt_id, faults):
      by_id.setdefault(prompt_id, []).append(row)

  taken = Delivery({}, {}, {}, Counter())
  for prompt_id, some in by_id.items():
    decided = [r for r in some if _verdict(r) is not Verdict.SKIPPED]
    if not decided:
      is_skip = any(row.verdict is Verdict.SKIPPED for row in some)
      taken.counts['skipped' if is_skip else 'empty'] += 1
      continue
    row, differ = _choose(decided, rules.duplicates)
    if differ:
      taken.counts['several'] += 1
      if rules.duplicates == 'refuse':
        faults.blame(_SEVERAL, prompt_id)
        continue
    change = _change(row, known.get(prompt_id), prompt_id in rejected)
    if change is None:
      taken.counts['known'] += 1
      continue
    if change and not rules.amend:
      faults.blame(change, prompt_id)
    if change:
      taken.amended[prompt_id] = _CORRECTIONS[change]
    is_rejection = _verdict(row) is Verdict.REJECTED
    (taken.rejections if is_rejection else taken.answers)[prompt_id] = row
  faults.refuse()
  return taken


_UNKNOWN = 'unknown'
_CHANGED_ID = 'with an id that a spreadsheet changed'
_SEVERAL_IDS = 'without a prompt, and with an id that fits several'
_OTHER = 'with another prompt than the pool'
_BLANK = 'without the text of the prompt'
_AMBIGUOUS = 'without an id, and with the text of several prompts'
_DAMAGED = 'damaged by a spreadsheet'
_NOT_UNICODE = 'not Unicode'
_WITHOUT_ANSWER = 'accepted without an answer'
_SEVERAL = 'with several different answers or verdicts'
_DIFFERENT = 'already answered differently'
_ANSWERED = 'already answered, and rejected now'
_REJECTED = 'rejected before, and answered now'

# What the same is called in amended.jsonl.
_CORRECTIONS = {
  _DIFFERENT: 'another answer',
  _ANSWERED: 'rejected instead of answered',
  _REJECTED: 'answered instead of rejected',
}

_AMEND = 'set annotation.amend=True if this delivery is a correction'
_REMEDIES = {
  _SEVERAL: f'set annotation.duplicates to {", ".join(CHOICES[1:])}',
  _DIFFERENT: _AMEND,
  _ANSWERED: _AMEND,
  _REJECTED: _AMEND,
}
_GENERAL_REMEDY = 'compare these rows with the todo and correct them'


class _Faults:
  """Collects what is wrong with the rows of a file."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    # Fault -> ids, as an ordered set.
    self._found: dict[str, dict[str, None]] = {}

  def blame(self, fault: str, row: str) -> None:
    self._found.setdefault(fault, {})[row] = None

  def refuse(self) -> None:
    """Raises an InputError if there is any fault."""
    if not self._found:
      return
    listed = '; '.join(_list(fault, ids) for fault, ids in self._found.items())
    remedies = [_REMEDIES.get(f, _GENERAL_REMEDY) for f in self._found]
    raise errors.InputError(
      f'{self._path} does not match the prompts to be answered: {listed}: '
      f'no row is accepted; {", and ".join(dict.fromkeys(remedies))}'
    )


def _list(fault: str, ids: Mapping[str, None]) -> str:
  shown = ', '.join(list(ids)[:_NAMES_SHOWN])
  more = len(ids) - _NAMES_SHOWN
  tail = f' and {more:,} more' if more > 0 else ''
  return f'{len(ids):,} {fault} ({shown}{tail})'


class _Finder:
  """Finds the prompt that a row is about."""

  def __init__(self, pool: store.Prompts, faults: _Faults):
    self._pool = pool
    self._place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
    self._faults = faults
    self._by_text: dict[str, list[str]] | None = None
    self._shortened: dict[str, str] | None = None

  def find(self, row: Row) -> str | None:
    """The id; None if there is none, and then a fault has been noted."""
    name = row.id or f'({row.place}: no id)'
    if row.id is None:
      prompt_id = self._by_prompt(row, name) if row.prompt else None
      if prompt_id is None and row.problem:
        self._faults.blame(row.problem, f'({row.place})')
      elif prompt_id is None and not row.prompt:
        self._faults.blame(_UNKNOWN, name)
      return prompt_id
    found = [i for i in cells.possible_ids(row.id) if i in self._place]
    if not found:
      self._blame_id(row.id, name)
      return None
    if row.prompt is None:
      # One may be another one as todo.csv writes it.
      if len(set(found)) > 1:
        self._faults.blame(_SEVERAL_IDS, f'{name}: {" or ".join(found)}')
        return None
      return found[0]
    fitting = [i for i in found if self._is_prompt(row.prompt, i)]
    if not fitting:
      fault = _OTHER if row.prompt.strip() else _BLANK
      if damage := cells.damage(row.prompt):
        fault, name = _DAMAGED, f'{name}: {damage} as the prompt'
      self._faults.blame(fault, name)
      return None
    return fitting[0]

  def _is_prompt(self, cell: str, prompt_id: str) -> bool:
    prompt = _normalise(readable(self._pool.prompts[self._place[prompt_id]]))
    return prompt in (_normalise(cell), _normalise(cells.restore(cell)))

  def _by_prompt(self, row: Row, name: str) -> str | None:
    if self._by_text is None:
      self._by_text = {}
      for prompt_id, prompt in zip(
        self._pool.ids, self._pool.prompts, strict=True
      ):
        text = _normalise(readable(prompt))
        self._by_text.setdefault(text, []).append(prompt_id)
    cell = row.prompt or ''
    for text in dict.fromkeys((cell, cells.restore(cell))):
      found = self._by_text.get(_normalise(text), [])
      if len(found) == 1:
        return found[0]
      if found:
        self._faults.blame(_AMBIGUOUS, name)
        return None
    self._faults.blame(_OTHER, name)
    return None

  def _blame_id(self, given: str, name: str) -> None:
    if self._shortened is None:
      self._shortened = {
        form: prompt_id
        for prompt_id in self._pool.ids
        for form in cells.shortened_forms(prompt_id)
      }
    if damage := cells.damage(given):
      self._faults.blame(_CHANGED_ID, damage)
    elif original := self._shortened.get(given.strip()):
      self._faults.blame(_CHANGED_ID, f'{given}, maybe {original}')
    else:
      self._faults.blame(_UNKNOWN, name)


def _normalise(text: str) -> str:
  """The text without differences that tools make: white space, composition."""
  return ' '.join(unicodedata.normalize('NFC', text).split())


def _verdict(row: Row) -> Verdict:
  """The verdict; an answer speaks for itself."""
  if row.verdict:
    return row.verdict
  return Verdict.ANSWERED if row.response.strip() else Verdict.SKIPPED


def _fits(row: Row, prompt_id: str, faults: _Faults) -> bool:
  """Whether what a row says can be used; notes a fault if not."""
  if row.problem:
    faults.blame(row.problem, prompt_id)
  elif any(map(store.damage, _kept_texts(row))):
    faults.blame(_NOT_UNICODE, prompt_id)
  elif _verdict(row) is not Verdict.ANSWERED:
    return True
  elif not row.response.strip():
    faults.blame(_WITHOUT_ANSWER, prompt_id)
  elif damage := cells.damage(row.response):
    faults.blame(_DAMAGED, f'{prompt_id}: {damage} as the answer')
  elif store.damage(row.response):
    faults.blame(_NOT_UNICODE, prompt_id)
  else:
    return True
  return False


def _kept_texts(row: Row) -> list[str]:
  """All texts of a row that are kept, besides the answer."""
  values = (v for v in row.others.values() if isinstance(v, str))
  return [row.reason, row.annotator, *row.others, *values]


def _choose(rows: Sequence[Row], duplicates: str) -> tuple[Row, bool]:
  """The row that counts, and whether others say something else."""
  said = {_content(row) for row in rows}
  chosen = rows[-1] if duplicates == 'last' else rows[0]
  if duplicates == 'longest':
    chosen = max(rows, key=lambda row: len(_content(row) or ''))
  return chosen, len(said) > 1


def _content(row: Row) -> str | None:
  """The answer; None for a rejection. White space at its ends is ignored."""
  return None if _verdict(row) is Verdict.REJECTED else row.response.strip()


def _change(row: Row, answer: str | None, was_rejected: bool) -> str | None:
  """What a row changes: '' if nothing was known, None if it says the same."""
  content = _content(row)
  if was_rejected:
    return None if content is None else _REJECTED
  if answer is None:
    return ''
  if content is None:
    return _ANSWERED
  return None if content == answer.strip() else _DIFFERENT
