"""Writes the todo files of prompts to answer, and records what each lists.

A todo is written in every format that annotators may use. One that an annotator
has edited is never overwritten: the hashes of what was written here show
whether a file was edited. annotations/asked.json records the ids of every
version, so copies of older versions stay valid.
"""

from collections.abc import Sequence
import hashlib
import pathlib
from typing import Any

from edsft_jax import store
from edsft_jax.annotation import formats
from edsft_jax.annotation.formats import Task


class Ledger:
  """The todos written so far, as recorded in annotations/asked.json.

  Attributes:
    versions: every list of ids written, with the number of its todo; the last
      one with a number is the todo's present content.
    hashes: of every todo file written here.
  """

  def __init__(self, workdir: store.Workdir):
    self._workdir = workdir
    self.versions: list[dict[str, Any]] = []
    self.hashes: list[str] = []
    if workdir.asked.exists():
      contents = store.read_json(workdir.asked)
      self.versions = contents['versions']
      self.hashes = contents['hashes']

  def has_asked(self, ids: Sequence[str]) -> bool:
    """Whether every one of these ids was in some todo."""
    asked = {i for version in self.versions for i in version['ids']}
    return asked.issuperset(ids)

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

  def _files(self, number: int) -> list[pathlib.Path]:
    """todo.csv, todo.jsonl ..., todo-2.csv, todo-2.jsonl ..., and so on."""
    name = 'todo' if number == 1 else f'todo-{number}'
    return [
      self._workdir.todo.with_name(f'{name}.{form.extension}')
      for form in formats.written()
    ]

  def _is_edited(self, number: int) -> bool:
    return any(
      path.exists() and store.hash_file(path) not in self.hashes
      for path in self._files(number)
    )

  def _write(self, number: int, pool: store.Prompts, ids: list[str]) -> None:
    rows = tasks(pool, ids)
    contents = {
      path: form.write(rows)
      for path, form in zip(self._files(number), formats.written(), strict=True)
      if form.write
    }
    version = {'number': number, 'ids': ids}
    if version not in self.versions:
      self.versions.append(version)
    for text in contents.values():
      digest = hashlib.sha256(text.encode()).hexdigest()
      if digest not in self.hashes:
        self.hashes.append(digest)
    # The ledger comes first: after an interruption, the next run knows the
    # hashes of whatever was written, and rewrites it.
    store.write_json(
      self._workdir.asked, {'versions': self.versions, 'hashes': self.hashes}
    )
    for form in formats.written():
      for name, text in form.companions.items():
        contents[self._workdir.todo.with_name(name)] = text
    for path, text in contents.items():
      with store.replacing(path) as partial:
        partial.write_bytes(text.encode())


def tasks(pool: store.Prompts, ids: Sequence[str]) -> list[Task]:
  """What annotators are asked, in the order of `ids`."""
  place = {prompt_id: i for i, prompt_id in enumerate(pool.ids)}
  return [
    Task(
      prompt_id,
      rank,
      pool.tasks[place[prompt_id]] or '' if pool.tasks else '',
      readable(pool.prompts[place[prompt_id]]),
    )
    for rank, prompt_id in enumerate(ids, 1)
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
