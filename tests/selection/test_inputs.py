"""Arrays of other libraries: the same picks, or a refusal by name."""

import jax.numpy as jnp
import numpy as np
from places import python_output
import pyarrow as pa
import pytest

from edsft_jax import selection
from edsft_jax.selection import inputs

# Numbers that bfloat16 and float16 have.
VECTORS = np.random.default_rng(0).integers(-8, 9, size=(30, 4)) / 4
NUMBERS = VECTORS[:, 0]
LISTS = [
  pa.list_(pa.float32(), 4),
  pa.list_(pa.float16(), 4),
  pa.list_(pa.float64()),
  pa.large_list(pa.float32()),
  pa.list_view(pa.float64()),
]


def refused(message, function, *args, **kwargs):
  with pytest.raises(selection.SelectionError, match=message):
    function(*args, **kwargs)


def assert_same_picks(features):
  expected = selection.facility_location(VECTORS, 9)
  result = selection.facility_location(features, 9)
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)


@pytest.mark.parametrize(
  'features',
  [
    VECTORS.tolist(),
    list(VECTORS),
    tuple(jnp.asarray(v, jnp.bfloat16) for v in VECTORS),
    VECTORS.astype('>f8'),
    VECTORS.astype(object),
    VECTORS.astype(np.longdouble),
    np.asfortranarray(VECTORS),
  ],
  ids=[
    'lists',
    'arrays',
    'bfloat16',
    'big endian',
    'object',
    'long',
    'fortran',
  ],
)
def test_features_of_numpy_and_jax(features):
  assert_same_picks(features)


@pytest.mark.parametrize('kind', LISTS, ids=str)
def test_features_of_pyarrow(kind):
  whole = pa.array([[9.0] * 4, *VECTORS.tolist(), [9.0] * 4], kind)
  # As parquet has them: in chunks, which may be slices of something longer.
  assert_same_picks(whole[1:-1])
  assert_same_picks(pa.chunked_array([whole[1:8], whole[8:8], whole[8:-1]]))


def test_features_of_pyarrow_tensors_of_fixed_shape():
  tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS)
  assert_same_picks(tensors)
  assert_same_picks(pa.chunked_array([tensors, tensors[:0]]))
  assert np.shares_memory(
    inputs.matrix('features', tensors), tensors.storage.flatten().to_numpy()
  )


@pytest.mark.parametrize('kind', [pa.list_(pa.float32(), 4), LISTS[2]], ids=str)
def test_one_chunk_of_pyarrow_is_not_copied(kind):
  array = pa.array(VECTORS.tolist(), kind)
  assert np.shares_memory(
    inputs.matrix('features', array), array.flatten().to_numpy()
  )


@pytest.mark.parametrize('kind', LISTS, ids=str)
def test_an_empty_column_of_pyarrow_is_an_empty_pool(kind):
  for column in (pa.array([], kind), pa.chunked_array([], kind)):
    result = selection.facility_location(column, 0)
    assert result.indices.tolist() == []


@pytest.mark.parametrize(
  ('values', 'kind', 'message'),
  [
    ([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2), 'null in row 1'),
    ([[1, 2], [3, None]], pa.list_(pa.float32(), 2), 'null in row 1'),
    ([[1, 2], [3, 4], None], pa.list_(pa.float32()), 'null in row 2'),
    ([[1, 2], [3, 4], [5, None]], pa.list_(pa.float32()), 'null in row 2'),
    (
      [[1, 2], [3], [4]],
      pa.list_(pa.float32()),
      'row 1 has 1 numbers, row 0 has 2',
    ),
    ([1.0, 2.0], pa.float32(), r'have shape \(2,\)'),
    ([['a'], ['b']], pa.list_(pa.string()), 'have dtype object'),
    ([[[1.0]], [[2.0]]], pa.list_(pa.list_(pa.float32())), 'have dtype object'),
  ],
)
def test_refuses_of_pyarrow(values, kind, message):
  array = pa.array(values, kind)
  both = pa.chunked_array([array[:1], array[1:]])
  for features in (array, both):
    refused(f'features.*{message}', selection.k_center, features, 1)


def test_numbers_of_pyarrow():
  scores = pa.array(NUMBERS)
  expected = selection.top(NUMBERS, 9, initial=[2])
  result = selection.top(scores, 9, initial=pa.array([2]))
  np.testing.assert_array_equal(result.indices, expected.indices)
  refused(
    'scores: null in row 1', selection.top, pa.array([1.0, None, None]), 1
  )
  labels = pa.chunked_array([['a', 'b'], ['a']])
  picks = selection.task_diversity(labels, 2).indices.tolist()
  assert 1 in picks


VECTOR_COLUMNS = {
  'object array': lambda rows: np.array([*rows, None], object)[:-1],
  'pandas': lambda rows: pytest.importorskip('pandas').Series(
    rows, index=range(7, 7 + len(rows))
  ),
}


@pytest.mark.parametrize('column', VECTOR_COLUMNS.values(), ids=VECTOR_COLUMNS)
def test_columns_of_vectors(column):
  assert_same_picks(column(list(VECTORS)))
  assert_same_picks(column(VECTORS.tolist()))
  assert_same_picks(column([v.astype(np.float16) for v in VECTORS]))
  for bad, what in [
    (VECTORS[0, :3], 'has 3 numbers, row 0 has 4'),
    (VECTORS[:2], r'has shape \(2, 4\)'),
    (None, 'is None'),
    (np.nan, 'is nan'),
  ]:
    rows = list(VECTORS)
    rows[5] = bad
    refused(
      f'features: row 5 {what}', selection.facility_location, column(rows), 1
    )
  assert len(selection.facility_location(column([]), 0).indices) == 0


def test_pandas():
  pandas = pytest.importorskip('pandas')
  assert_same_picks(pandas.DataFrame(VECTORS))
  arrow = pandas.ArrowDtype(pa.list_(pa.float64()))
  assert_same_picks(pandas.Series(VECTORS.tolist(), dtype=arrow))
  scores = pandas.Series(NUMBERS, index=range(5, 35))
  expected = selection.top(NUMBERS, 9)
  np.testing.assert_array_equal(
    selection.top(scores, 9).indices, expected.indices
  )
  labels = pandas.Series(['a', 'b', 'b', 'b'], index=[3, 2, 1, 0])
  assert 0 in selection.task_diversity(labels, 2).indices
  labels[3] = np.nan
  refused('tasks has NaN at 0', selection.task_diversity, labels, 2)


def test_torch():
  torch = pytest.importorskip('torch')
  tensor = torch.tensor(VECTORS, dtype=torch.bfloat16, requires_grad=True)
  for features in (
    tensor,
    tensor.double(),
    tensor.half(),
    list(tensor),
    torch.tensor(VECTORS.T).T,
  ):
    assert_same_picks(features)
  assert tensor.requires_grad
  expected = selection.top(NUMBERS, 9, initial=[2])
  result = selection.top(tensor[:, 0], 9, initial=torch.tensor([2]))
  np.testing.assert_array_equal(result.indices, expected.indices)
  # Tensors of equal value have different hashes.
  picks = selection.task_diversity(torch.tensor([4, 4, 4, 7]), 2).indices
  assert 3 in picks
  for sparse in (tensor.detach().to_sparse(), tensor.detach().to_sparse_csr()):
    refused(r'features.*\.to_dense\(\)', selection.facility_location, sparse, 1)
  refused(
    'features have dtype complex64',
    selection.facility_location,
    torch.ones((3, 2), dtype=torch.complex64),
    1,
  )


def test_other_libraries_are_not_imported():
  code = (
    'import sys; from edsft_jax import selection; '
    'selection.facility_location([[1.0], [2.0]], 1, weights=[1, 2]); '
    "selection.task_diversity(['a', 'b'], 1); "
    "print([m for m in ('pyarrow', 'pandas', 'torch') if m in sys.modules])"
  )
  assert python_output('-c', code).strip() == '[]'


@pytest.mark.parametrize(
  ('tasks', 'message'),
  [
    ([['a'], ['b']], 'tasks has a list at 0'),
    (['a', 'b', {}], 'tasks has a dict at 2'),
    (['a', np.nan], 'tasks has NaN at 1'),
    (3, 'tasks 3 is not a sequence'),
    (np.array('a'), 'is not a sequence'),
  ],
)
def test_refuses_labels(tasks, message):
  refused(message, selection.task_diversity, tasks, 1)
