"""manifest.json: each stage's fingerprint, counts and time."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import re
import sys
import time
from typing import Any

from edsft_jax import errors, processes
from edsft_jax.store import files, hashes
from edsft_jax.store.workdir import Workdir, locked

# The hash of the rest of manifest.json.
_DIGEST = 'sha256'


@dataclasses.dataclass(frozen=True)
class StageRecord:
  """The record of a stage in manifest.json.

  Attributes:
    fingerprint: the options and input hashes that it was made from.
    done: whether it finished.
    seconds: wall time so far, over all runs.
    counts: its counts when it finished.
    made_with: library versions and devices of the commands that worked on it,
      each combination once.
  """

  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
  done: bool = False
  seconds: float = 0.0
  counts: dict[str, Any] = dataclasses.field(default_factory=dict)
  made_with: list[dict[str, str]] = dataclasses.field(default_factory=list)


class Manifest:
  """manifest.json, rewritten after each change.

  A stage calls `begin` with its fingerprint (the options that it reads and
  the hashes of its inputs, by name), does its work under `timed`, and calls
  `finish`.
  """

  def __init__(self, workdir: Workdir):
    """Reads the manifest of a workdir, if there is one.

    Raises:
      InputError: it is damaged.
    """
    self._workdir = workdir
    self._path = workdir.manifest
    self._stages: dict[str, StageRecord] = {}
    self._facts: dict[str, Any] = {}
    self._is_intact = True
    self._read()

  def _read(self) -> None:
    if self._path.exists():
      with files.refuse_damaged(
        self._path,
        'restore it from a copy, or remove it and run every stage again: pool '
        'and score then make their files again',
      ):
        contents = files.read_json(self._path)
        digest = contents.pop(_DIGEST, None)
        self._is_intact = digest in (None, hashes.hash_json(contents))
        self._stages = {
          name: StageRecord(**record)
          for name, record in contents.pop('stages').items()
        }
        self._facts = contents

  @property
  def stages(self) -> Mapping[str, StageRecord]:
    """The records of all stages that began, by name."""
    return self._stages

  @property
  def facts(self) -> Mapping[str, Any]:
    """The facts recorded by `describe`."""
    return self._facts

  @property
  def is_intact(self) -> bool:
    """Whether it was read as we wrote it."""
    return self._is_intact

  def is_done(self, stage: str) -> bool:
    """Whether a stage finished, from whatever inputs."""
    return stage in self._stages and self._stages[stage].done

  def counts(self, stage: str) -> dict[str, Any]:
    """The counts of a stage, or of the parts of it that are done."""
    return self._stages.get(stage, StageRecord()).counts

  def begin(
    self,
    stage: str,
    fingerprint: Mapping[str, Any],
    remedy: str = 'set it back or use another --workdir',
  ) -> bool:
    """Begins a stage; returns True if it is done with this fingerprint.

    Args:
      stage: its name.
      fingerprint: its options and input hashes, by name.
      remedy: what the user can do if they have changed.

    Raises:
      InputError: the stage was begun or done with another fingerprint.
    """
    if stage not in self._stages:
      with self._changing():
        # Unless a command that shares the workdir was faster.
        self._stages.setdefault(stage, StageRecord(plain(fingerprint)))
    known = self._stages[stage]
    refuse_change(
      f'{stage} in this workdir', known.fingerprint, fingerprint, remedy
    )
    return known.done

  def restart(
    self, stage: str, fingerprint: Mapping[str, Any], seconds: float = 0.0
  ) -> None:
    """Begins a stage again, once no result of another fingerprint is left.

    Args:
      stage: its name.
      fingerprint: its options and input hashes, by name.
      seconds: wall time spent on results that stay.
    """
    self.forget(stage)
    self.begin(stage, fingerprint)
    if seconds:
      self._change(stage, seconds)

  def forget(self, stage: str) -> None:
    """Drops a stage's record, if it has no results that could be mixed up."""
    with self._changing():
      self._stages.pop(stage, None)

  def finish(
    self, stage: str, counts: Mapping[str, Any], seconds: float = 0.0
  ) -> None:
    """Marks a stage as done.

    Args:
      stage: its name.
      counts: its counts, by name.
      seconds: wall time to add, if the work was not `timed`.
    """
    self._change(stage, seconds, done=True, counts=plain(counts))

  def update(
    self,
    stage: str,
    fingerprint: Mapping[str, Any],
    counts: Mapping[str, Any],
    seconds: float = 0.0,
  ) -> None:
    """Replaces the record of a done stage whose results were extended.

    Args:
      stage: its name.
      fingerprint: its options and input hashes, by name.
      counts: its counts, by name.
      seconds: wall time to add.
    """
    self._change(
      stage, seconds, fingerprint=plain(fingerprint), counts=plain(counts)
    )

  def add_counts(self, stage: str, counts: Mapping[str, Any]) -> None:
    """Adds the counts of a part of a stage, by name."""
    with self._changing():
      record = self._stages.get(stage, StageRecord())
      self._stages[stage] = dataclasses.replace(
        record, counts={**record.counts, **plain(counts)}
      )

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Adds the block's wall seconds to the stage, even if it fails."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._change(stage, time.monotonic() - start)

  def record_versions(self, stage: str) -> None:
    """Records the versions and devices that the stage runs with."""
    used = made_with()
    with self._changing():
      record = self._stages.get(stage, StageRecord())
      if used not in record.made_with:
        self._stages[stage] = dataclasses.replace(
          record, made_with=[*record.made_with, used]
        )

  def describe(self, **facts: Any) -> None:
    """Records facts about the whole study."""
    with self._changing():
      self._facts |= plain(facts)

  def _change(self, stage: str, seconds: float, **fields: Any) -> None:
    """Adds wall time to a stage's record and sets fields of it."""
    with self._changing():
      record = self._stages.get(stage, StageRecord())
      total = round(record.seconds + seconds, 3)
      self._stages[stage] = dataclasses.replace(record, seconds=total, **fields)

  @contextlib.contextmanager
  def _changing(self) -> Iterator[None]:
    """Writes what the block changes.

    Commands that share the workdir take turns: each reads what the others have
    written before.
    """
    with locked(self._workdir, 'manifest', wait=True):
      self._read()
      yield
      stages = {n: dataclasses.asdict(r) for n, r in self._stages.items()}
      contents = plain({'stages': stages, **self._facts})
      contents[_DIGEST] = hashes.hash_json(contents)
      files.write_json(self._path, contents)


def refuse_change(
  what: str, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str
) -> None:
  """Rejects changed inputs, so that results of different inputs never mix.

  Raises:
    InputError: naming the differences between the two fingerprints.
  """
  if differences := changed(old, plain(new)):
    raise errors.InputError(
      f'{what} was made with other inputs: {"; ".join(differences)}: {remedy}'
    )


def refuse_other_inputs(inputs: Mapping[str, Any]) -> None:
  """Requires that all processes of a command have the same inputs.

  Args:
    inputs: options and hashes of inputs, by name.

  Raises:
    InputError: naming what differs from the first process's.
  """
  refuse_change(
    'the work of process 0',
    processes.from_first('inputs', lambda: plain(inputs)),
    inputs,
    'every process needs the same command and the same files, and --workdir on '
    'a file system that all of them share',
  )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Names whose values differ, each with both values, shortened.

  Older versions did not record all that newer ones do.
  """

  def short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
      return 'not recorded'
    value = values[name]
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):
      return value[:8]  # A prefix of the hash is enough.
    return text if len(text) <= 60 else f'{text[:57]}...'

  return [
    f'{name} (was {short(old, name)}, is {short(new, name)})'
    for name in [*new, *(n for n in old if n not in new)]
    if old.get(name) != new.get(name)
  ]


def plain(value: Any) -> Any:
  """The value after a JSON round trip, which turns tuples into lists."""
  return json.loads(json.dumps(value, ensure_ascii=False))


def made_with() -> dict[str, str]:
  """Versions of libraries, and the devices if jax is in use."""
  jax = sys.modules.get('jax')
  if jax is None:
    return versions()
  kinds = collections.Counter(device.device_kind for device in jax.devices())
  devices = ', '.join(f'{count} x {kind}' for kind, count in kinds.items())
  return {**versions(), 'devices': devices}


@functools.cache
def versions() -> dict[str, str]:
  """Versions of the libraries that results may depend on."""
  import importlib.metadata
  import platform

  names = ('jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }
