"""The hash of every file of a workdir, kept in manifest.json.

`edsft-jax verify` compares the files with them. A file is only hashed again if
its size or time has changed.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any

from edsft_jax.store import hashes
from edsft_jax.store.manifest import Manifest
from edsft_jax.store.workdir import Workdir

# The name of the record in manifest.json.
FILES = 'files'
# Folders of files that are removed again; see `store.Workdir`.
_TEMPORARY = ('checkpoints', 'best_checkpoint', 'shards', '.locks')
# What is being written; see `store.replacing`.
_PARTIAL = '.partial'


def record_checksums(workdir: Workdir) -> None:
  """Records the hash of every file, after a command."""
  manifest = Manifest(workdir)
  if not manifest.stages:
    return
  known = manifest.facts.get(FILES, {})
  found: dict[str, Any] = {}
  for name, path in _recorded_files(workdir):
    try:
      found[name] = _entry(path, known.get(name, {}))
    except FileNotFoundError:
      # With --cells, another command may have removed it since it was listed.
      continue
  if found != known:
    manifest.describe(**{FILES: found})


def _entry(path: pathlib.Path, before: Mapping[str, Any]) -> Mapping[str, Any]:
  """Size, time and hash of a file; `before` if the first two are the same."""
  stat = path.stat()
  identity = {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
  if {key: before.get(key) for key in identity} == identity:
    return before
  return {**identity, 'sha256': hashes.hash_file(path)}


def _recorded_files(workdir: Workdir) -> Iterator[tuple[str, pathlib.Path]]:
  """Yields names and paths of the files that no one but us should change.

  Todos are filled in by annotators, locks come and go, and manifest.json has a
  hash of its own.
  """
  for path in sorted(_lasting_files(workdir.root)):
    is_todo = path.parent == workdir.todo.parent and path.name.startswith(
      'todo'
    )
    if is_todo or path in (workdir.manifest, workdir.root / '.lock'):
      continue
    if path.is_file():
      yield path.relative_to(workdir.root).as_posix(), path


def _lasting_files(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the files that are not temporary."""
  for folder, folders, files in os.walk(root):
    # Not entered: other commands rename and remove folders within them.
    folders[:] = [
      name
      for name in folders
      if name not in _TEMPORARY and not name.endswith(_PARTIAL)
    ]
    for name in files:
      if not name.endswith(_PARTIAL):
        yield pathlib.Path(folder, name)


def checksum_differences(workdir: Workdir) -> list[str]:
  """What differs from the hashes in manifest.json, one line per file."""
  manifest = Manifest(workdir)
  found = []
  if not manifest.is_intact:
    found.append(f'{workdir.manifest} was changed by something else')
  known = manifest.facts.get(FILES)
  if known is None:
    return [*found, f'{workdir.manifest} has no hashes of files']
  for name, entry in known.items():
    path = workdir.root / name
    if not path.exists():
      found.append(f'{path} is missing')
    elif hashes.hash_file(path) != entry['sha256']:
      found.append(f'{path} has other bytes than manifest.json says')
  return found


def unknown_files(workdir: Workdir) -> list[str]:
  """Names of files that manifest.json does not know."""
  known = Manifest(workdir).facts.get(FILES, {})
  return [name for name, _ in _recorded_files(workdir) if name not in known]
