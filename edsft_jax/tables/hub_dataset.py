"""Reads rows of a dataset on the Hugging Face hub, using `datasets`.

  pool.path=hf:NAME[:CONFIG][@REVISION]/SPLIT    hf:owner/prompts/train[:100]

NAME is the path for datasets.load_dataset: owner/name, or a folder.
"""

from collections.abc import Iterator
import re
from typing import Any

from edsft_jax import errors
from edsft_jax.tables import readers

PREFIX = 'hf:'
_PATH = re.compile(
  PREFIX + r'(?P<name>[^:@\[\]]+?)(:(?P<config>[\w.-]+))?'
  r'(@(?P<revision>[\w.-]+))?/(?P<split>[^/]+)'
)


class Split:
  """A split of a dataset, or a slice of one, in its own order."""

  def __init__(self, path: str):
    """Loads the split from the hub or the cache.

    Raises:
      InputError: `datasets` is not installed, or cannot load it.
    """
    match = _PATH.fullmatch(path)
    if match is None:
      raise errors.InputError(
        f'{path} names no split: write hf:NAME/SPLIT, or hf:NAME:CONFIG/SPLIT'
      )
    try:
      import datasets
    except ImportError:
      raise errors.InputError(
        f'{path} needs the package datasets: pip install datasets'
      ) from None
    try:
      self._dataset = datasets.load_dataset(
        match['name'],
        match['config'],
        split=match['split'],
        revision=match['revision'],
      )
    except Exception as e:  # `datasets` raises many kinds of errors.
      reason = ' '.join(str(e).split()) or type(e).__name__
      raise errors.InputError(
        f'{path} cannot be loaded ({reason}): check name, config and split, '
        'or log in with hf auth login'
      ) from None

  def __len__(self) -> int:
    return len(self._dataset)

  def rows(self, limit: int = 0) -> Iterator[readers.Row]:
    """Yields the first `limit` records (0: all), numbered from 1."""
    end = min(limit or len(self), len(self))
    labels = {
      name: feature.int2str
      for name, feature in self._dataset.features.items()
      if hasattr(feature, 'int2str')
    }
    for number, values in enumerate(self._dataset.take(end), 1):
      yield readers.Row(number, _named(values, labels))

  def hash(self) -> str:
    """SHA-256 of the records, in hex."""
    return readers.hash_rows(self.rows())


def _named(values: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
  """The values, with labels replaced by their names."""
  for name, text_of in labels.items():
    if values[name] is not None and values[name] >= 0:
      values[name] = text_of(values[name])
  return values
