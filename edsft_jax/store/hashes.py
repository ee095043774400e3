"""SHA-256 of files and values, to detect changed inputs."""

from collections.abc import Sequence
import functools
import hashlib
import json
import pathlib
from typing import Any


def hash_file(path: pathlib.Path) -> str:
  """SHA-256 of a file's bytes, in hex; cached while the file is unchanged."""
  stat = path.stat()
  return _hash_file(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_file(path: pathlib.Path, *identity: int) -> str:
  del identity  # Part of the cache key, to detect changed files.
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def hash_files(paths: Sequence[pathlib.Path]) -> str:
  """One SHA-256 over several files' names and bytes, order-independent."""
  lines = sorted((path.name, hash_file(path)) for path in paths)
  text = ''.join(f'{name}\0{digest}\n' for name, digest in lines)
  return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: Any) -> str:
  """SHA-256 of a value's canonical JSON."""
  return hashlib.sha256(
    json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
  ).hexdigest()
