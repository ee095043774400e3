"""Validates arguments, before anything is compiled.

Every function raises SelectionError in one line that names the argument.
"""

from collections.abc import Sequence
import operator
from typing import SupportsFloat, SupportsIndex

import jax
import numpy as np

from edsft_jax.selection import inputs
from edsft_jax.selection.errors import SelectionError

# Rows checked at once: limits temporary arrays, with no effect on the result.
_ROWS = 8192
# Similarities and distances are computed in float32 on devices; in float64, the
# squares of float32 numbers do not overflow.
_LARGEST = float(np.finfo(np.float32).max)
# The mean of squares below it has lost digits: some of them are subnormal.
_SMALLEST_SQUARE = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)


def features(values: object) -> np.ndarray:
  """Returns [N, D] float32 or float64 features on the host.

  All are finite and within float32's range.
  """
  array = inputs.matrix('features', values)
  if array.ndim != 2:
    raise SelectionError(f'features have shape {array.shape}: [N, D] is needed')
  if not _may_be_numbers(array):
    raise SelectionError(
      f'features have dtype {array.dtype}: numbers are needed'
    )
  if array.dtype.kind == 'O':
    # Python's integers have no limit: they could become infinite in float32.
    array = _as_floats('features have', array)
    _check_range(array)
    return array.astype(np.float32)
  if array.dtype.kind == 'f' and array.dtype.itemsize >= 4:
    _check_range(array)
    # In this machine's byte order.
    single = array.dtype.itemsize == 4
    return array.astype(np.float32 if single else np.float64, copy=False)
  # float16 and bfloat16 are exact in float32.
  array = array.astype(np.float32)
  _check_range(array)
  return array


def _may_be_numbers(array: np.ndarray) -> bool:
  """Whether it is not text, complex or dates, which numpy would convert."""
  # bfloat16 and similar types have kind 'V', but no field names.
  return array.dtype.kind in 'biufOV' and array.dtype.names is None


def _as_floats(name: str, array: np.ndarray) -> np.ndarray:
  """Returns float64; `name` includes a verb, as in 'weights has'."""
  if _may_be_numbers(array):
    try:
      return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
      pass
  raise SelectionError(f'{name} dtype {array.dtype}: numbers are needed')


def _check_range(array: np.ndarray) -> None:
  """Refuses what is not finite, or overflows float32."""
  for start in range(0, len(array), _ROWS):
    block = array[start : start + _ROWS]
    # NaN is neither above nor below.
    if block.min(initial=0) >= -_LARGEST and block.max(initial=0) <= _LARGEST:
      continue
    for what, good in (
      ('have NaN or infinity', np.isfinite(block)),
      ('overflow float32', np.abs(block) <= _LARGEST),
    ):
      if not good.all():
        row = start + int(np.argmin(good.all(axis=1)))
        raise SelectionError(f'features {what}, first in row {row}')


def rows_differ(feature_NxD: np.ndarray, mean_square: float) -> bool:
  """Returns whether any two rows differ.

  Args:
    feature_NxD: checked features.
    mean_square: their mean squared distance, from the mean or among pairs. The
      rows are compared only if it is tiny.

  Raises:
    SelectionError: rows differ, but their squared distances underflow.
  """
  if mean_square >= _SMALLEST_SQUARE:
    return True
  if (feature_NxD == feature_NxD[:1]).all():
    return False
  raise SelectionError(
    'features differ by so little that squared distances underflow float64: '
    'multiply them by a large number'
  )


def integer(name: str, value: object, least: int = 0) -> int:
  """Returns a whole number of at least `least`."""
  if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
    raise SelectionError(f'{name} {value!r} is not a whole number')
  try:
    number = operator.index(value)
  except TypeError:
    # An array of several numbers has __index__, too.
    raise SelectionError(f'{name} {value!r} is not a whole number') from None
  if number < least:
    raise SelectionError(f'{name} {number} is below {least}')
  return number


def budget(value: object, available: int) -> int:
  """Returns a budget of at most `available`."""
  number = integer('budget', value)
  if number > available:
    raise SelectionError(
      f'budget {number} exceeds what there is to choose from: {available}'
    )
  return number


def indices(name: str, values: object, n: int) -> np.ndarray:
  """Returns distinct positions in a pool of n, int64, in the order given."""
  array = inputs.array(name, values)
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
  n: int, initial: np.ndarray, candidates: np.ndarray | None = None
) -> np.ndarray:
  """Returns the positions that may be picked, ascending, int64."""
  free = np.zeros(n, bool)
  free[slice(None) if candidates is None else candidates] = True
  free[initial] = False
  return np.flatnonzero(free)


def row_values(name: str, values: object, n: int) -> np.ndarray:
  """Returns one float64 per prompt; NaN is refused."""
  array = inputs.array(name, values)
  if array.shape != (n,):
    raise SelectionError(f'{name} has shape {array.shape}: ({n},) is needed')
  array = _as_floats(f'{name} has', array)
  if np.isnan(array).any():
    raise SelectionError(f'{name} has NaN at {int(np.argmax(np.isnan(array)))}')
  return array


def weights(values: object, n: int) -> np.ndarray:
  """Returns one finite weight of at least 0 per prompt, float64."""
  if values is None:
    return np.ones(n)
  array = row_values('weights', values, n)
  if (array < 0).any():
    raise SelectionError(f'weights has {array.min()}: none may be negative')
  if not np.isfinite(array).all():
    raise SelectionError('weights has infinity')
  with np.errstate(over='ignore'):
    if not np.isfinite(array.sum()):
      raise SelectionError('weights overflow float64 when they are summed')
  return array


def positive(name: str, value: object) -> float:
  """Returns a finite number above 0."""
  if not isinstance(value, SupportsFloat | SupportsIndex):
    raise SelectionError(f'{name} {value!r} is not a number')
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError):
    raise SelectionError(f'{name} {value!r} is not a number') from None
  if not (0 < number < np.inf):
    raise SelectionError(f'{name} {value!r} is not above 0 and finite')
  return number


def one_of(name: str, value: object, options: Sequence[str]) -> str:
  """Returns a value that is among the options."""
  if not isinstance(value, str) or value not in options:
    raise SelectionError(f'{name} {value!r} is not one of {", ".join(options)}')
  return value


def mesh(value: object) -> jax.sharding.Mesh:
  """Returns a mesh with an axis 'data'; by default the first local device."""
  if value is None:
    return jax.sharding.Mesh(np.asarray(jax.local_devices()[:1]), ('data',))
  if not isinstance(value, jax.sharding.Mesh) or 'data' not in value.shape:
    raise SelectionError(f"mesh {value!r} is not a Mesh with an axis 'data'")
  return value
