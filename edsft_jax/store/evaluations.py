"""Reads eval.json, the result of a cell on an evaluation task."""

import math
import pathlib
from typing import Any

from edsft_jax import errors
from edsft_jax.store import files

_FIELDS = ('strategy', 'budget', 'seed', 'task', 'version', 'fingerprint')
_OF_METRIC = ('n', 'label', 'larger_is_better')


def read_evaluation(path: pathlib.Path) -> dict[str, Any]:
  """Reads an eval.json and checks that it is complete.

  Raises:
    InputError: it is damaged, lacks a field, or has no metric or one that is
      not a number.
  """
  remedy = 'delete it and run the evaluate stage again'
  try:
    contents = files.read_json(path)
    for field in _FIELDS:
      contents[field]
    metrics = contents['metrics']
    for metric in metrics.values():
      for field in _OF_METRIC:
        metric[field]
    values = [
      metrics_of_group[name]['value']
      for metrics_of_group in (metrics, *contents['by_task'].values())
      for name in metrics
    ]
    finite = all(map(math.isfinite, values))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f'{path} is not a complete evaluation ({error!r}): {remedy}'
    ) from error
  if not finite:
    raise errors.InputError(
      f'{path} has a metric that is not a number: {remedy}'
    )
  if not metrics:
    raise errors.InputError(f'{path} has no metric: {remedy}')
  return contents
