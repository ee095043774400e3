"""Refuses arguments that cannot mean anything, before any compilation.

Every function raises ValueError in one line that names the argument.
"""

from collections.abc import Sequence
import operator
from typing import Any

import jax
import numpy as np

from edsft_jax.selection.errors import SelectionError

# Rows looked at in one go: bounds the temporary arrays, not the result.
_ROWS = 8192


def features(values: Any) -> np.ndarray:
  """Returns [N, D] floating-point features, finite, on the host."""
  array = np.asarray(values)
  if array.ndim != 2:
    raise SelectionError(f'features have shape {array.shape}: [N, D] is needed')
  if array.dtype.kind in 'iub':
    array = array.astype(np.float32)
  elif array.dtype.kind != 'f' or array.dtype.itemsize < 4:
    # float16 and bfloat16 (whose kind is 'V') are exact in float32.
    try:
      array = array.astype(np.float32)
    except (TypeError, ValueError):
      raise SelectionError(
        f'features have dtype {array.dtype}: numbers are needed'
      ) from None
  else:
    # In this machine's byte order.
    single = array.dtype.itemsize == 4
    array = array.astype(np.float32 if single else np.float64, copy=False)
  for start in range(0, len(array), _ROWS):
    block = array[start : start + _ROWS]
    finite = np.isfinite(block)
    if not finite.all():
      row = start + int(np.argmin(finite.all(axis=1)))
      raise SelectionError(f'features have NaN or infinity, first in row {row}')
  return array


def integer(name: str, value: Any, least: int = 0) -> int:
  """Returns a whole number of at least `least`."""
  try:
    if isinstance(value, (bool, np.bool_)):
      raise TypeError
    number = operator.index(value)
  except TypeError:
    raise SelectionError(f'{name} {value!r} is not a whole number') from None
  if number < least:
    raise SelectionError(f'{name} {number} is below {least}')
  return number


def budget(value: Any, available: int) -> int:
  """Returns a budget that `available` prompts can fill."""
  number = integer('budget', value)
  if number > available:
    raise SelectionError(
      f'budget {number} exceeds what there is to choose from: {available}'
    )
  return number


def indices(name: str, values: Any, n: int) -> np.ndarray:
  """Returns distinct positions in a pool of n, int64, in the order given."""
  array = np.asarray(values)
  if array.ndim != 1:
    raise SelectionError(
      f'{name} has shape {array.shape}: a sequence is needed'
    )
  if array.size == 0:
    return np.zeros(0, np.int64)
  if array.dtype.kind not in 'iu':
    raise SelectionError(f'{name} has dtype {array.dtype}: integers are needed')
  outside = (array < 0) | (array >= n)
  if outside.any():
    raise SelectionError(
      f'{name} has {array[outside][0]}, outside the pool of {n} prompts'
    )
  distinct, counts = np.unique(array, return_counts=True)
  if len(distinct) < len(array):
    raise SelectionError(f'{name} has {distinct[counts > 1][0]} more than once')
  return array.astype(np.int64)


def choosable(
  n: int, initial: np.ndarray, candidates: Any = None
) -> np.ndarray:
  """Returns the positions that may be picked, ascending, int64."""
  free = np.zeros(n, bool)
  free[slice(None) if candidates is None else candidates] = True
  free[initial] = False
  return np.flatnonzero(free)


def row_values(name: str, values: Any, n: int) -> np.ndarray:
  """Returns one float64 a prompt; NaN is refused."""
  array = np.asarray(values)
  if array.shape != (n,):
    raise SelectionError(f'{name} has shape {array.shape}: ({n},) is needed')
  try:
    array = array.astype(np.float64)
  except (TypeError, ValueError):
    raise SelectionError(
      f'{name} has dtype {array.dtype}: numbers are needed'
    ) from None
  if np.isnan(array).any():
    raise SelectionError(f'{name} has NaN at {int(np.argmax(np.isnan(array)))}')
  return array


def weights(values: Any, n: int) -> np.ndarray:
  """Returns one finite weight of at least 0 a prompt, float64."""
  if values is None:
    return np.ones(n)
  array = row_values('weights', values, n)
  if (array < 0).any():
    raise SelectionError(f'weights has {array.min()}: none may be negative')
  if not np.isfinite(array).all():
    raise SelectionError('weights has infinity')
  return array


def positive(name: str, value: Any) -> float:
  """Returns a finite number above 0."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise SelectionError(f'{name} {value!r} is not a number') from None
  if not (0 < number < np.inf):
    raise SelectionError(f'{name} {value!r} is not above 0 and finite')
  return number


def one_of(name: str, value: Any, options: Sequence[str]) -> str:
  """Returns a value that is among the options."""
  if value not in options:
    raise SelectionError(f'{name} {value!r} is none of {", ".join(options)}')
  return value


def mesh(value: Any) -> jax.sharding.Mesh:
  """Returns a mesh with an axis 'data'; by default of the first device here."""
  if value is None:
    return jax.sharding.Mesh(np.asarray(jax.local_devices()[:1]), ('data',))
  if not isinstance(value, jax.sharding.Mesh) or 'data' not in value.shape:
    raise SelectionError(f"mesh {value!r} is no Mesh with an axis 'data'")
  return value
