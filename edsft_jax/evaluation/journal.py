"""The responses of a shard so far, kept in case the command is killed."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

from edsft_jax import errors, store
from edsft_jax.evaluation.requests import Place
from edsft_jax.evaluation.task import Generated, Response, Scored

# A shard that takes less time leaves no file: small models finish thousands of
# responses per second.
WRITE_SECONDS = 1.0

_KINDS: dict[str, type[Response]] = {'scored': Scored, 'generated': Generated}


def parse(lines: Sequence[Mapping[str, Any]]) -> dict[Place, Response]:
  """The responses in lines of a journal, without those in damaged ones."""
  responses: dict[Place, Response] = {}
  for line in lines:
    with contextlib.suppress(ValueError, KeyError, TypeError):
      response = _KINDS[line['kind']](**line['response'])
      fields = dataclasses.fields(response)
      if all(type(getattr(response, f.name)) is f.type for f in fields):
        responses[Place(*line['place'])] = response
  return responses


class Journal:
  """A file with a line for each response, in the order they were computed.

  A block that uses it keeps what it has when it is interrupted.
  """

  def __init__(self, path: pathlib.Path):
    """Reads and writes nothing yet."""
    self._path = path
    self._waiting: dict[Place, Response] = {}
    self._last_write = time.monotonic()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, exception: type[BaseException] | None, *_: Any) -> None:
    # Another error, such as a full disk, would hide the first one.
    with contextlib.suppress(errors.InputError):
      self._write()

  def read(self) -> list[dict[str, Any]]:
    """The lines of the file, for `parse`."""
    return store.read_appended(self._path)

  def add(self, responses: Mapping[Place, Response]) -> None:
    """Appends responses, at most once in WRITE_SECONDS.

    Raises:
      InputError: the disk is full.
    """
    self._waiting.update(responses)
    if time.monotonic() >= self._last_write + WRITE_SECONDS:
      self._write()

  def _write(self) -> None:
    responses, self._waiting = self._waiting, {}
    self._last_write = time.monotonic()
    if not responses:
      return
    names = {kind: name for name, kind in _KINDS.items()}
    store.append_jsonl(
      self._path,
      [
        {
          'place': place,
          'kind': names[type(response)],
          'response': dataclasses.asdict(response),
        }
        for place, response in responses.items()
      ],
    )

  def remove(self) -> None:
    """Removes the file, if there is one; nothing more will be written."""
    self._waiting = {}
    self._path.unlink(missing_ok=True)
