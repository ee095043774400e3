"""Reads files of answers and matches them by id; nothing is dropped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
import dataclasses
import json
import pathlib

from edsft_jax import errors, store

_NAMES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Answer:
  """One row of a file of answers."""

  line: int
  id: str
  response: str


def check(path: pathlib.Path) -> None:
  """Rejects a file that is missing or has an unknown extension.

  Raises:
    InputError: naming the file.
  """
  option = f'annotation.answers_path={path}'
  if not path.is_file():
    raise errors.InputError(f'{option} is not a file: check the path')
  if path.suffix.lower() not in ('.csv', '.jsonl'):
    raise errors.InputError(
      f'{option} is neither .csv nor .jsonl: save it as one of them'
    )


def read(path: pathlib.Path) -> list[Answer]:
  """Reads the columns id and response of a .csv or .jsonl file.

  Raises:
    InputError: the file cannot be read, or a column is missing.
  """
  read_rows = _read_csv if path.suffix.lower() == '.csv' else _read_jsonl
  try:
    # Spreadsheets may write a byte order mark, and their own newlines.
    with path.open(encoding='utf-8-sig', newline='') as f:
      return read_rows(path, f)
  except UnicodeDecodeError:
    raise errors.InputError(
      f'{path} is not text: save it as UTF-8 (CSV UTF-8 in a spreadsheet)'
    ) from None
  except OSError as e:
    raise errors.InputError(
      f'{path} cannot be read ({e.strerror}): change its permissions'
    ) from None


def _read_csv(path: pathlib.Path, file: Iterator[str]) -> list[Answer]:
  records = store.csv_records(path, file)
  _, header = next(records, (1, []))
  columns = [name.strip() for name in header]
  for name in ('id', 'response'):
    if isinstance(header, str) or columns.count(name) != 1:
      raise errors.InputError(
        f'{path} needs exactly one column {name}: it has {", ".join(columns)}'
      )
  answers = []
  for line, fields in records:
    if isinstance(fields, str):
      raise errors.InputError(
        f'{path}, line {line}: broken CSV ({fields}): fix its quotes'
      )
    if len(fields) > len(columns):
      raise errors.InputError(
        f'{path}, line {line}: more fields than columns: quote the response'
      )
    row = dict(zip(columns, fields, strict=False))
    answers.append(Answer(line, row.get('id', ''), row.get('response', '')))
  return answers


def _read_jsonl(path: pathlib.Path, file: Iterable[str]) -> list[Answer]:
  answers = []
  for line, text in enumerate(file, 1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except (ValueError, RecursionError):
      raise errors.InputError(
        f'{path}, line {line}: broken JSON: fix it'
      ) from None
    if not isinstance(row, dict) or not isinstance(row.get('id'), str):
      raise errors.InputError(
        f'{path}, line {line}: not an object with a text id: copy the id from '
        'the todo'
      )
    response = row.get('response')
    if not isinstance(response, str | None):
      raise errors.InputError(
        f'{path}, line {line}: the response is not text: put it in quotes'
      )
    answers.append(Answer(line, row['id'], response or ''))
  return answers


def take(
  path: pathlib.Path,
  given: Sequence[Answer],
  pool_ids: Set[str],
  known: Mapping[str, str],
  unanswered: Sequence[str],
  asked: Sequence[Sequence[str]],
) -> dict[str, str]:
  """Matches a file of answers with the todos; returns the new answers.

  The file may repeat known answers. A todo must be answered completely: a new
  answer is only taken with all the others of a todo that lists it (with all of
  `unanswered`, if no todo does).

  Args:
    path: the file, for messages.
    given: its rows.
    pool_ids: every id of the pool.
    known: answers from the pool and from earlier files.
    unanswered: ids that cells need and that have no answer.
    asked: the ids of every todo that was written.

  Raises:
    InputError: some ids are unknown, duplicate or missing, have no answer or
      another one already, or have text that is not Unicode; names the ids.
  """
  seen: dict[str, str] = {}
  faults: dict[str, dict[str, None]] = {}

  def blame(fault: str, answer_id: str) -> None:
    faults.setdefault(fault, {})[answer_id] = None

  for answer in given:
    if answer.id not in pool_ids:
      blame('unknown', answer.id or f'(line {answer.line}: no id)')
    elif answer.id in seen:
      blame('duplicate', answer.id)
    elif not answer.response.strip():
      blame('empty', answer.id)
    elif store.damage(answer.response):
      blame('not Unicode', answer.id)
    elif known.get(answer.id, answer.response) != answer.response:
      blame('already answered differently', answer.id)
    seen.setdefault(answer.id, answer.response)

  for missing in _missing(seen, known, unanswered, asked):
    blame('missing', missing)
  if faults:
    listed = '; '.join(_list(fault, ids) for fault, ids in faults.items())
    raise errors.InputError(
      f'{path} does not match the prompts to be answered: {listed}: give each '
      'id of the todo exactly one answer'
    )
  return {i: text for i, text in seen.items() if i not in known}


def _missing(
  seen: Mapping[str, str],
  known: Mapping[str, str],
  unanswered: Sequence[str],
  asked: Sequence[Sequence[str]],
) -> list[str]:
  """Ids that the file should answer, but does not."""
  if seen and all(i in known for i in seen):
    return []  # A file from an earlier round.
  wanted = set(unanswered)
  gaps: list[tuple[set[str], list[str]]] = [
    (set(ids), [i for i in ids if i in wanted and i not in seen])
    for ids in (asked or [unanswered])
  ]
  open_seen = wanted.intersection(seen)
  if not open_seen:
    return list(unanswered)
  missing: dict[str, None] = {}
  for answer_id in seen:
    if answer_id not in open_seen:
      continue
    # Assumes that the file answers the todo of which the fewest are missing.
    its_gaps = [gap for ids, gap in gaps if answer_id in ids]
    if its_gaps:
      smallest: list[str] = min(its_gaps, key=len)
      missing.update(dict.fromkeys(smallest))
  return list(missing)


def _list(fault: str, ids: Mapping[str, None]) -> str:
  shown = ', '.join(list(ids)[:_NAMES_SHOWN])
  more = len(ids) - _NAMES_SHOWN
  tail = f' and {more:,} more' if more > 0 else ''
  return f'{len(ids):,} {fault} ({shown}{tail})'
