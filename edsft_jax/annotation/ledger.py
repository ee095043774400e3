"""Writes the todo files of prompts to answer, and records what each lists.

A todo that an annotator has edited is never overwritten: the hashes of what was
written here show whether a file was edited. annotations/asked.json records the
ids of every version, so copies of older versions stay valid.
"""

from collections.abc import Sequence
import csv
import hashlib
import io
import json
import pathlib
from typing import Any

from edsft_jax import store

_COLUMNS = ('id', 'task', 'prompt', 'response')


class Ledger:
  """The todos written so far, as recorded in annotations/asked.json.

  Attributes:
    versions: every list of ids written, with the number of its todo; the last
      one with a number is the todo's present content.
    hashes: of every todo file written here.
  """

  def __init__(self, workdir: store.Workdir):
    self._workdir = workdir
    self._path = workdir.todo.with_name('asked.json')
    self.versions: list[dict[str, Any]] = []
    self.hashes: list[str] = []
    if self._path.exists():
      contents = store.read_json(self._path)
      self.versions = contents['versions']
      self.hashes = contents['hashes']

  def ask(
    self, pool: store.Prompts, missing: Sequence[str]
  ) -> list[pathlib.Path]:
    """Writes the missing prompts; returns the todo.csv files that list them.

    The last todo is rewritten, or removed, unless it was edited. If it was, the
    prompts that no todo lists yet go into a new one next to it.
    """
    current = {v['number']: v['ids'] for v in self.versions}
    number = max(current, default=1)
    if self._is_edited(number):
      number += 1
    current.pop(number, None)
    elsewhere = {i for ids in current.values() for i in ids}
    if new := [i for i in missing if i not in elsewhere]:
      self._write(number, pool, new)
      current[number] = new
    else:
      for path in self._files(number):
        path.unlink(missing_ok=True)
    still_open = set(missing)
    return [
      self._files(n)[0]
      for n, ids in current.items()
      if not still_open.isdisjoint(ids)
    ]

  def _files(self, number: int) -> tuple[pathlib.Path, pathlib.Path]:
    """todo.csv and todo.jsonl, todo-2.csv and todo-2.jsonl, ..."""
    name = 'todo' if number == 1 else f'todo-{number}'
    jsonl = self._workdir.todo.with_name(f'{name}.jsonl')
    return jsonl.with_suffix('.csv'), jsonl

  def _is_edited(self, number: int) -> bool:
    return any(
      path.exists() and store.hash_file(path) not in self.hashes
      for path in self._files(number)
    )

  def _write(self, number: int, pool: store.Prompts, ids: list[str]) -> None:
    rows = _rows(pool, ids)
    contents = (_csv_text(rows), _jsonl_text(rows))
    version = {'number': number, 'ids': ids}
    if version not in self.versions:
      self.versions.append(version)
    for text in contents:
      digest = hashlib.sha256(text.encode()).hexdigest()
      if digest not in self.hashes:
        self.hashes.append(digest)
    # The ledger comes first: after an interruption, the next run knows the
    # hashes of whatever was written, and rewrites it.
    store.write_json(
      self._path, {'versions': self.versions, 'hashes': self.hashes}
    )
    for path, text in zip(self._files(number), contents, strict=True):
      with store.replacing(path) as partial:
        partial.write_bytes(text.encode())


def _rows(pool: store.Prompts, ids: Sequence[str]) -> list[dict[str, str]]:
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  return [
    {
      'id': prompt_id,
      'task': pool.tasks[place[prompt_id]] if pool.tasks else '',
      'prompt': readable(pool.prompts[place[prompt_id]]),
      'response': '',
    }
    for prompt_id in ids
  ]


def readable(prompt: store.Prompt) -> str:
  """The prompt as text; several turns are labelled with their roles."""
  if isinstance(prompt, str):
    return prompt
  if len(prompt) == 1:
    return prompt[0]['content']
  return '\n\n'.join(
    f'{turn["role"].capitalize()}: {turn["content"]}' for turn in prompt
  )


def _csv_text(rows: Sequence[dict[str, str]]) -> str:
  file = io.StringIO(newline='')
  writer = csv.DictWriter(file, _COLUMNS)
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def _jsonl_text(rows: Sequence[dict[str, str]]) -> str:
  return ''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows)
