"""manifest.json: what every stage was made from, and what it counted."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import re
import time
from typing import Any

from edsft_jax import errors
from edsft_jax.store import files
from edsft_jax.store.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class StageRecord:
  """What manifest.json says of a stage.

  Attributes:
    fingerprint: the options and hashes of inputs that it was made from.
    done: whether it finished.
    seconds: wall time so far, over all runs.
    counts: what it counted when it finished.
  """

  fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
  done: bool = False
  seconds: float = 0.0
  counts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Manifest:
  """manifest.json, rewritten whole after each change.

  A stage calls `begin` with its fingerprint (the options that it reads and
  the hashes of its inputs, by name), does its work under `timed`, and calls
  `finish`.
  """

  def __init__(self, workdir: Workdir):
    """Reads the manifest of a workdir, if there is one.

    Raises:
      InputError: it is damaged.
    """
    self._path = workdir.manifest
    self._stages: dict[str, StageRecord] = {}
    self._facts: dict[str, Any] = {}
    if self._path.exists():
      with files.refuse_damaged(
        self._path,
        'put back a copy of it, or remove it and run every stage again: pool '
        'and score then make their files again',
      ):
        contents = files.read_json(self._path)
        self._stages = {
          name: StageRecord(**record)
          for name, record in contents.pop('stages').items()
        }
        self._facts = contents

  @property
  def stages(self) -> Mapping[str, StageRecord]:
    """Every stage that began, by name."""
    return self._stages

  @property
  def facts(self) -> Mapping[str, Any]:
    """What `describe` noted, and the versions."""
    return self._facts

  def is_done(self, stage: str) -> bool:
    """Whether a stage finished, from whatever inputs."""
    return stage in self._stages and self._stages[stage].done

  def counts(self, stage: str) -> dict[str, Any]:
    """What a stage counted; nothing for one that did not finish."""
    return self._stages.get(stage, StageRecord()).counts

  def begin(
    self,
    stage: str,
    fingerprint: Mapping[str, Any],
    remedy: str = 'set it back or use another --workdir',
  ) -> bool:
    """Returns True when the stage is done with this very fingerprint.

    Args:
      stage: its name.
      fingerprint: what it is made from, by name.
      remedy: what a person can do when that has changed.

    Raises:
      InputError: the stage was begun or done with another fingerprint.
    """
    known = self._stages.get(stage)
    if known is not None:
      refuse_change(
        f'{stage} in this workdir', known.fingerprint, fingerprint, remedy
      )
      return known.done
    self._stages[stage] = StageRecord(plain(fingerprint))
    self._write()
    return False

  def restart(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
    """Begins a stage of which nothing is left that could be mixed."""
    self.forget(stage)
    self.begin(stage, fingerprint)

  def forget(self, stage: str) -> None:
    """Drops a stage's fingerprint: it has nothing done that could be mixed."""
    self._stages.pop(stage, None)

  def finish(
    self, stage: str, counts: Mapping[str, Any], seconds: float = 0.0
  ) -> None:
    """Marks a stage as done, with what it counted.

    Args:
      stage: its name.
      counts: what it counted, by name.
      seconds: wall time to be added, where the work was not `timed`.
    """
    total = round(self._stages[stage].seconds + seconds, 3)
    self._change(stage, done=True, counts=plain(counts), seconds=total)

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Adds the block's wall seconds to the stage, also when it is cut short."""
    start = time.monotonic()
    try:
      yield
    finally:
      before = self._stages.get(stage, StageRecord()).seconds
      spent = time.monotonic() - start
      self._change(stage, seconds=round(before + spent, 3))

  def describe(self, **facts: Any) -> None:
    """Notes facts about the whole study besides those of the stages."""
    self._facts |= plain(facts)
    self._write()

  def _change(self, stage: str, **fields: Any) -> None:
    record = self._stages.get(stage, StageRecord())
    self._stages[stage] = dataclasses.replace(record, **fields)
    self._write()

  def _write(self) -> None:
    self._facts['versions'] = versions()
    stages = {n: dataclasses.asdict(r) for n, r in self._stages.items()}
    files.write_json(self._path, {'stages': stages, **self._facts})


def refuse_change(
  what: str, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str
) -> None:
  """Refuses to mix what was made from different inputs.

  Raises:
    InputError: naming what changed between two fingerprints.
  """
  if differences := changed(old, plain(new)):
    raise errors.InputError(
      f'{what} was made with other inputs: {"; ".join(differences)}: {remedy}'
    )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Names whose value differs, each with both values, shortened."""

  def short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):
      return value[:8]  # The beginning of a hash tells as much.
    return text if len(text) <= 60 else f'{text[:57]}...'

  return [
    f'{name} (was {short(old.get(name))}, is {short(new.get(name))})'
    for name in [*new, *(n for n in old if n not in new)]
    if old.get(name) != new.get(name)
  ]


def plain(value: Any) -> Any:
  """The value as it comes back from JSON (tuples are lists there)."""
  return json.loads(json.dumps(value, ensure_ascii=False))


@functools.cache
def versions() -> dict[str, str]:
  """Versions of what the numbers may depend on."""
  import importlib.metadata
  import platform

  names = ('jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
  }
