"""The responses of a shard so far, kept as soon as they are computed."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

from edsft_jax import store
from edsft_jax.evaluation.requests import Place
from edsft_jax.evaluation.task import Generated, Response, Scored

_KINDS: dict[str, type[Response]] = {'scored': Scored, 'generated': Generated}


def parse(lines: Sequence[Mapping[str, Any]]) -> dict[Place, Response]:
  """The responses in lines of a journal, without those in damaged ones."""
  responses: dict[Place, Response] = {}
  for line in lines:
    with contextlib.suppress(ValueError, KeyError, TypeError):
      kind = _KINDS[line['kind']]
      responses[Place(*line['place'])] = kind(**line['response'])
  return responses


class Journal:
  """A file with a line for each response, in the order they were computed."""

  def __init__(self, path: pathlib.Path):
    """Reads and writes nothing yet."""
    self._path = path

  def read(self) -> list[dict[str, Any]]:
    """The lines of the file, for `parse`."""
    return store.read_appended(self._path)

  def add(self, responses: Mapping[Place, Response]) -> None:
    """Appends responses.

    Raises:
      InputError: the disk is full.
    """
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
    """Removes the file, if there is one."""
    self._path.unlink(missing_ok=True)
