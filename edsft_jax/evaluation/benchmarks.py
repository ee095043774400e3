"""Reads the questions of benchmarks from files, and checks their options."""

from collections.abc import Iterator, Mapping, Sequence
import difflib
import hashlib
import pathlib
from typing import Any

import ml_collections

from edsft_jax import errors, models, store
from edsft_jax.tables import hub_dataset, readers

# Field -> the names it may have in a file, the usual one first.
Fields = Mapping[str, tuple[str, ...]]


def read(
  path: str,
  option: str,
  fields: Fields,
  optional: Fields | None = None,
  not_text: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """The records of a file, or of a split 'hf:NAME/SPLIT', in order.

  Args:
    path: the file; text may be compressed.
    option: the option that names it, for messages.
    fields: the fields that every record must have.
    optional: fields that may be missing; they are None then.
    not_text: those of `fields` that may have any value; the others must be
      text that is not blank.

  Returns:
    The named fields of each record, and its 'id' if it has one.

  Raises:
    InputError: naming the record that cannot be read or lacks a field.
  """
  records = []
  for row in _rows(path, option):
    if row.values is None:
      raise errors.InputError(
        f'{option}: {path}, {row.place}: {row.problem}: fix or remove it'
      )
    place = f'{option}: {path}, {row.place}'
    record = {
      field: _field(row, names, place) for field, names in fields.items()
    }
    require_text(record, sorted(fields.keys() - {*not_text}), place)
    for field, names in (optional or {}).items():
      found = (row.values.get(name) for name in names)
      record[field] = next((x for x in found if x is not None), None)
    if row.values.get('id') is not None:
      record['id'] = str(row.values['id'])
    records.append(record)
  if not records:
    raise errors.InputError(f'{option}: {path} has no records')
  return records


def _rows(path: str, option: str) -> Iterator[readers.Row]:
  if path.startswith(hub_dataset.PREFIX):
    return hub_dataset.Split(path).rows()
  file = pathlib.Path(path)
  readers.check_readable(file, option)
  return readers.read(file, readers.find_format(file, 'auto', option), option)


def _field(row: readers.Row, names: tuple[str, ...], place: str) -> Any:
  assert row.values is not None
  for name in names:
    if row.values.get(name) is not None:
      return row.values[name]
  if any(name in row.values for name in names):
    raise errors.InputError(f'{place} has no {names[0]}: fill it in')
  near = difflib.get_close_matches(names[0], row.values, 1)
  hint = f': did you mean {near[0]!r}?' if near else '.'
  raise errors.InputError(
    f'{place} has no field {names[0]!r}{hint} It has {", ".join(row.values)}'
  )


def require_text(
  record: Mapping[str, Any], fields: Sequence[str], place: str
) -> None:
  """Rejects fields that are blank, not text or not Unicode.

  Raises:
    InputError: naming the place and the field.
  """
  for field in fields:
    if not isinstance(record[field], str) or not record[field].strip():
      raise errors.InputError(
        f'{place} has no text as {field}: fill it in or remove the record'
      )
    if not store.is_unicode(record[field]):
      raise errors.InputError(
        f'{place} has half of a surrogate pair as {field}, which is not '
        'Unicode: fix the text or remove the record'
      )


def check(
  config: ml_collections.ConfigDict, task: str, protocols: Sequence[str]
) -> None:
  """Rejects bad options that all benchmarks share, and missing files.

  Args:
    config: the whole config.
    task: its section in config.evaluation.
    protocols: the protocols that the task has.

  Raises:
    InputError: naming the option.
  """
  c = config.evaluation[task]
  if c.protocol not in protocols:
    raise errors.unknown(
      f'evaluation.{task}.protocol {c.protocol!r}', c.protocol, protocols
    )
  for name in ('shots', 'limit'):
    errors.refuse_below(f'evaluation.{task}.{name}', c[name], 0)
  if not c.path:
    raise errors.InputError(
      f'evaluation.{task}.path is empty: name the file of its questions'
    )
  if c.shots and not c.shots_path:
    raise errors.InputError(
      f'evaluation.{task}.shots is {c.shots}, but '
      f'evaluation.{task}.shots_path is empty: name the file of its worked '
      'examples, or set shots to 0'
    )
  for name in ('path', 'shots_path') if c.shots else ('path',):
    is_local = not c[name].startswith(hub_dataset.PREFIX)
    if is_local and not pathlib.Path(c[name]).exists():
      raise errors.InputError(
        f'evaluation.{task}.{name}={c[name]} does not exist: check the path'
      )
  if c.chat:
    check_template(config, task)


def check_template(config: ml_collections.ConfigDict, task: str) -> None:
  """Rejects a model without a chat template.

  Raises:
    InputError: naming the option.
  """
  prompt_format = models.load_prompt_format(
    models.resolve(config.model.path), **config.prompt
  )
  if not prompt_format.has_template:
    raise errors.InputError(
      f'{task} is asked for in chat form, but the model lacks a chat template: '
      f'set prompt.template, or evaluation.{task}.chat to False, and list the '
      "task without ':chat'"
    )


def about(
  config: ml_collections.ConfigDict, task: str, extractor: str
) -> dict[str, Any]:
  """How a benchmark was asked, for eval.json; see Task.about.

  Args:
    config: the whole config.
    task: its section in config.evaluation.
    extractor: how answers are found in what the model writes.
  """
  c = config.evaluation[task]
  return {
    'protocol': c.protocol,
    'shots': c.shots,
    'template': config.prompt.template if c.chat else None,
    'extractor': extractor,
  }


def fingerprint(
  config: ml_collections.ConfigDict, task: str, options: Sequence[str] = ()
) -> dict[str, Any]:
  """The options that affect a benchmark's results, and hashes of its files."""
  c = config.evaluation[task]
  names = ('protocol', 'shots', 'limit', 'chat', *options)
  result = {f'evaluation.{task}.{name}': c[name] for name in names}
  result[f'evaluation.{task}.path'] = hash_source(c.path)
  if c.shots:
    result[f'evaluation.{task}.shots_path'] = hash_source(c.shots_path)
  return result


def hash_source(path: str) -> str:
  """SHA-256 of a file, of the files in a folder, or of a split, in hex."""
  if path.startswith(hub_dataset.PREFIX):
    return hub_dataset.Split(path).hash()
  source = pathlib.Path(path)
  if not source.is_dir():
    return store.hash_file(source)
  digest = hashlib.sha256()
  for file in sorted(source.rglob('*')):
    if file.is_file():
      name = file.relative_to(source).as_posix()
      digest.update(f'{name} {store.hash_file(file)}\n'.encode())
  return digest.hexdigest()


def first_of_each(
  records: Sequence[dict[str, Any]], field: str, limit: int
) -> list[dict[str, Any]]:
  """The first `limit` records (0: all) of each value of a field, in order."""
  counts: dict[str, int] = {}
  kept = []
  for record in records:
    group = record[field]
    counts[group] = counts.get(group, 0) + 1
    if not limit or counts[group] <= limit:
      kept.append(record)
  return kept


def check_max_new_tokens(
  config: ml_collections.ConfigDict, task: str, default: int
) -> None:
  """Rejects a number of new tokens that leaves no room for a prompt.

  Args:
    config: the whole config.
    task: its section in config.evaluation.
    default: the protocol's number, which an option of 0 stands for; 0 if it
      has none.

  Raises:
    InputError: naming the option.
  """
  option = config.evaluation[task].max_new_tokens
  context = models.check(models.resolve(config.model.path)).context
  if not 1 <= (option or default) < context:
    whose = '' if option or not default else f" (the protocol's own {default})"
    raise errors.InputError(
      f'evaluation.{task}.max_new_tokens is {option}{whose}: give 1 to '
      f"{context - 1}, so that a prompt fits the model's context of {context}"
    )


def refuse_duplicates(records: Sequence[Mapping[str, Any]], place: str) -> None:
  """Rejects two records with the same id.

  Raises:
    InputError: naming the id.
  """
  seen = set()
  for record in records:
    if record['id'] in seen:
      raise errors.InputError(
        f'{place} has two records with the id {record["id"]!r}: rename one'
      )
    seen.add(record['id'])
