"""Converts arrays of other libraries to numpy, without importing them.

A caller with a torch tensor or a pyarrow array has imported torch or pyarrow:
their types are looked up among the modules that are loaded. Sparse matrices,
nulls and rows of unequal length are refused by name.
"""

from collections.abc import Hashable, Iterable, Sequence
import sys
from typing import Protocol, TypeAlias, cast

import numpy as np
from scipy import sparse

from edsft_jax.selection.errors import SelectionError


class SupportsArray(Protocol):
  """An array of numpy, jax, torch or pyarrow, or a pandas column."""

  def __array__(self) -> np.ndarray:
    """Returns the same values as a numpy array."""


# [N, D]: one array, or N vectors of length D: nested lists, a list of arrays, a
# pandas column of vectors, a pyarrow array of (fixed-size) lists.
Features: TypeAlias = SupportsArray | Sequence[SupportsArray | Sequence[float]]
# [N]: one number per prompt.
Values: TypeAlias = SupportsArray | Sequence[float]
# Positions in the pool, counted from 0.
Positions: TypeAlias = SupportsArray | Sequence[int]


def array(name: str, values: object) -> np.ndarray:
  """Returns the values as a numpy array of any shape and dtype.

  Args:
    name: the argument's name, for error messages.
    values: an array, or anything that numpy can convert to one.
  """
  _refuse_sparse(name, values)
  if _is_instance(values, 'torch', 'Tensor'):
    return _from_torch(name, cast(_Tensor, values))
  if _is_instance(values, 'pyarrow', 'Array', 'ChunkedArray'):
    return _from_arrow(name, cast(_Arrow, values))
  if np.ma.is_masked(values):
    raise SelectionError(f'{name}: masked values cannot be used')
  try:
    return np.asarray(values)
  except (TypeError, ValueError, RuntimeError) as error:
    raise SelectionError(
      f'{name}: {type(values).__name__} cannot be converted to an array: '
      f'{error}'
    ) from error


def matrix(name: str, values: object) -> np.ndarray:
  """Returns the values as `array` does, and stacks a sequence of vectors."""
  if isinstance(values, list | tuple) and values:
    if hasattr(values[0], '__array__'):
      return _stack(name, values)
    try:
      whole = np.asarray(values)
    except (TypeError, ValueError):
      # Row by row, to name the one that is wrong.
      return _stack(name, values)
  else:
    whole = array(name, values)
  if whole.ndim == 1 and whole.dtype == object:
    return _stack(name, whole)
  return whole


def labels(name: str, values: object) -> list[Hashable]:
  """Returns one label per prompt; equal labels mean the same task."""
  listed = _listed(values)
  if listed is None:
    raise SelectionError(f'{name} {values!r} is not a sequence of labels')
  for position, label in enumerate(listed):
    if not isinstance(label, Hashable):
      raise SelectionError(
        f'{name} has a {type(label).__name__} at {position}: '
        'a label must be hashable'
      )
    if isinstance(label, float) and label != label:
      raise SelectionError(f'{name} has NaN at {position}')
  return listed


def _listed(values: object) -> list[object] | None:
  """Returns a list of Python objects: equal tensors have unequal hashes."""
  for method in ('tolist', 'to_pylist'):
    if hasattr(values, method):
      listed = getattr(values, method)()
      return listed if isinstance(listed, list) else None
  return list(values) if isinstance(values, Iterable) else None


def _stack(name: str, rows: Iterable[object]) -> np.ndarray:
  """Stacks N vectors, which must be of equal length, to [N, D]."""
  row_N = [array(f'{name}: row {i}', row) for i, row in enumerate(rows)]
  for i, row_D in enumerate(row_N):
    if row_D.ndim != 1:
      what = f'has shape {row_D.shape}' if row_D.ndim else f'is {row_D}'
      raise SelectionError(f'{name}: row {i} {what}, not a vector of numbers')
    if len(row_D) != len(row_N[0]):
      raise SelectionError(
        f'{name}: row {i} has {len(row_D)} numbers, row 0 has {len(row_N[0])}'
      )
  return np.stack(row_N) if row_N else np.zeros((0, 0))


def _is_instance(values: object, module: str, *names: str) -> bool:
  """Whether the values have one of a module's types; no if it is not loaded."""
  loaded = sys.modules.get(module)
  types = [getattr(loaded, name, None) for name in names]
  return isinstance(values, tuple(t for t in types if isinstance(t, type)))


def _refuse_sparse(name: str, values: object) -> None:
  if sparse.issparse(values):
    raise SelectionError(
      f'{name}: a scipy sparse matrix cannot be used, pass its .toarray()'
    )
  if hasattr(values, 'todense') and not hasattr(values, '__array__'):
    raise SelectionError(
      f'{name}: a sparse {type(values).__name__} cannot be used, '
      'pass its .todense()'
    )


class _Tensor(Protocol):
  """The part of torch.Tensor that is used here."""

  layout: object

  def is_floating_point(self) -> bool: ...
  def element_size(self) -> int: ...
  def float(self) -> '_Tensor': ...
  def numpy(self, *, force: bool) -> np.ndarray: ...


def _from_torch(name: str, tensor: _Tensor) -> np.ndarray:
  """Moves a tensor to the host and detaches it from its graph."""
  torch = sys.modules['torch']
  if tensor.layout != torch.strided:
    raise SelectionError(
      f'{name}: a sparse torch tensor cannot be used, pass its .to_dense()'
    )
  if tensor.is_floating_point() and tensor.element_size() < 4:
    # numpy has no bfloat16; float32 holds its values exactly.
    tensor = tensor.float()
  return tensor.numpy(force=True)


class _Arrow(SupportsArray, Protocol):
  """The part of pyarrow.Array that is used; the last two are for lists."""

  null_count: int

  def is_null(self) -> SupportsArray: ...
  def value_lengths(self) -> SupportsArray: ...
  def flatten(self) -> '_Arrow': ...


def _from_arrow(name: str, values: _Arrow) -> np.ndarray:
  """Converts N numbers to [N], or N lists to [N, D], chunk by chunk."""
  if values.null_count:
    row = int(np.argmax(np.asarray(values.is_null())))
    raise SelectionError(f'{name}: null in row {row}')
  # An extension type, such as a tensor of fixed shape, is stored as lists.
  chunks: list[_Arrow] = [
    getattr(chunk, 'storage', chunk)
    for chunk in getattr(values, 'chunks', [values])
  ]
  if not chunks:
    return np.zeros((0, 0))
  if not hasattr(chunks[0], 'value_lengths'):
    return np.concatenate([np.asarray(chunk) for chunk in chunks])
  length_N = np.concatenate([np.asarray(c.value_lengths()) for c in chunks])
  other = np.flatnonzero(length_N != length_N[:1])
  if len(other):
    raise SelectionError(
      f'{name}: row {other[0]} has {length_N[other[0]]} numbers, '
      f'row 0 has {length_N[0]}'
    )
  d = int(length_N[0]) if len(length_N) else 0
  flat = [chunk.flatten() for chunk in chunks]
  if any(part.null_count for part in flat):
    null = np.concatenate([np.asarray(part.is_null()) for part in flat])
    raise SelectionError(f'{name}: null in row {int(np.argmax(null)) // d}')
  parts = [np.asarray(part) for part in flat]
  # One chunk is not copied.
  value = parts[0] if len(parts) == 1 else np.concatenate(parts)
  return value.reshape(len(length_N), d)
