"""The hash of every file of a workdir, kept in manifest.json.

`edsft-jax verify` compares the files with them. A file is only hashed again if
its size or time has changed.
"""

from collections.abc import Iterator
import pathlib
from typing import Any

from edsft_jax.store import hashes
from edsft_jax.store.manifest import Manifest
from edsft_jax.store.workdir import Workdir

# The name of the record in manifest.json.
FILES = 'files'


def record_checksums(workdir: Workdir) -> None:
  """Records the hash of every file, after a command."""
  manifest = Manifest(workdir)
  if not manifest.stages:
    return
  known = manifest.facts.get(FILES, {})
  found: dict[str, Any] = {}
  for name, path in _recorded_files(workdir):
    stat = path.stat()
    identity = {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
    before = known.get(name, {})
    if {key: before.get(key) for key in identity} == identity:
      found[name] = before
    else:
      found[name] = {**identity, 'sha256': hashes.hash_file(path)}
  if found != known:
    manifest.describe(**{FILES: found})


def _recorded_files(workdir: Workdir) -> Iterator[tuple[str, pathlib.Path]]:
  """Yields names and paths of the files that no one but us should change.

  Todos are filled in by annotators, locks come and go, and manifest.json has a
  hash of its own.
  """
  for path in sorted(workdir.root.rglob('*')):
    name = path.relative_to(workdir.root).as_posix()
    is_todo = path.parent == workdir.todo.parent and path.name.startswith(
      'todo'
    )
    temporary = {'checkpoints', 'shards'} & {*path.parts}
    hidden = path == workdir.root / '.lock' or workdir.locks in path.parents
    if path == workdir.manifest or is_todo or temporary or hidden:
      continue
    if path.is_file():
      yield name, path


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
