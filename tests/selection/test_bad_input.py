"""Every refusal names its argument and comes before anything compiles."""

import jax
import jax.experimental.sparse
import numpy as np
import pytest
from scipy import sparse

from edsft_jax import selection

GOOD = np.arange(12.0).reshape(6, 2)
with_nan = GOOD.copy()
with_nan[4, 1] = np.nan
with_infinity = GOOD.copy()
with_infinity[2, 0] = -np.inf
too_large = GOOD.copy()
too_large[3, 0] = -1e39

EVERYWHERE = [
  (dict(features=with_nan), 'features.*row 4'),
  (dict(features=with_infinity), 'features.*row 2'),
  (dict(features=np.ones(6)), r'features have shape \(6,\)'),
  (dict(features=np.ones((2, 3, 4))), 'features have shape'),
  (dict(features=[['a', 'b']]), 'features have dtype'),
  (dict(features=[['1', '2']]), 'features have dtype'),
  (dict(features=GOOD + 1j), 'features have dtype complex'),
  (dict(features=GOOD.astype('datetime64[s]')), 'features have dtype datetime'),
  (dict(features=[[1.0, 2.0], [None, 1.0]]), 'features have NaN.*row 1'),
  (dict(features=too_large), 'features overflow float32, first in row 3'),
  (dict(features=[[1], [10**39]]), 'features overflow float32.*row 1'),
  (dict(features=[[1], [10**400]]), 'features have dtype object'),
  (
    dict(features=np.full((3, 1), 1e30, np.longdouble) ** 100),
    'features overflow float32, first in row 0',
  ),
  (dict(features=[[1, 2], [3, 4], [5]]), 'row 2 has 1 numbers, row 0 has 2'),
  (dict(features=[GOOD[0], GOOD[1, :1]]), 'row 1 has 1 numbers, row 0 has 2'),
  (dict(features=[GOOD, GOOD[:1]]), r'features: row 0 has shape \(6, 2\)'),
  (dict(features=np.ma.masked_less(GOOD, 3)), 'features: masked'),
  (dict(features=sparse.csr_matrix(GOOD)), r'features.*\.toarray\(\)'),
  (dict(features=sparse.coo_array(GOOD)), r'features.*\.toarray\(\)'),
  *(
    (dict(features=list(rows)), r'features: row 0: a scipy.*\.toarray\(\)')
    for rows in (sparse.csr_matrix(GOOD), sparse.csr_array(GOOD))
  ),
  (
    dict(features=[GOOD[0].tolist(), sparse.coo_array(GOOD[1])]),
    r'features: row 1: a scipy.*\.toarray\(\)',
  ),
  (
    dict(features=jax.experimental.sparse.BCOO.fromdense(GOOD)),
    r'features.*\.todense\(\)',
  ),
  # From where squares lose digits to where they are 0.
  *(
    (dict(features=GOOD * scale), 'features differ by so little')
    for scale in (1e-148, 1e-155, 1e-161, 1e-200, 5e-324)
  ),
  (dict(features=np.eye(6)[:, :1] * 1e-200), 'features differ by so little'),
  (dict(progress=3), 'progress 3'),
  (dict(budget=-1), 'budget -1'),
  (dict(budget=7), 'budget 7 exceeds'),
  (dict(budget=2.0), 'budget 2.0'),
  (dict(budget=True), 'budget True'),
  (dict(budget=4, initial=[0, 1, 2]), 'choose from: 3'),
  (dict(initial=[6]), 'initial has 6'),
  (dict(initial=[-1]), 'initial has -1'),
  (dict(initial=[3, 1, 3]), 'initial has 3 more than once'),
  (dict(initial=[0.5]), 'initial has dtype'),
  (dict(initial=[[1], [2, 3]]), 'initial: list cannot be converted'),
  (dict(initial=[[1]]), 'initial has shape'),
]
FAR = [[0.0], [0.0], [2e19]]
KERNEL = [
  (dict(similarity='rbf'), "similarity 'rbf'"),
  (
    dict(features=FAR, similarity=selection.Rbf(gamma=1.0)),
    'features: row 2 is so far',
  ),
  (
    dict(similarity=selection.Rbf(gamma=1e300)),
    'features: row 0 is so far',
  ),
  (dict(similarity=selection.Rbf(width=1e-320)), 'features: row 0 is so far'),
]
FACILITY_LOCATION = [
  (dict(candidates=[0, 6]), 'candidates has 6'),
  (dict(candidates=[1, 1]), 'candidates has 1 more than once'),
  (dict(candidates=[1], budget=2), 'budget 2 exceeds'),
  (dict(weights=[1, 1, 1, 1, 1, -1]), 'weights has -1'),
  (dict(weights=[1, 1]), 'weights has shape'),
  (dict(weights=[np.nan] * 6), 'weights has NaN'),
  (dict(weights=[np.inf] * 6), 'weights has infinity'),
  (dict(weights=[1e308] * 6), 'weights overflow float64'),
  (dict(weights=['1'] * 6), 'weights has dtype'),
  (dict(method='lazy'), "method 'lazy'"),
  (dict(epsilon=0.0), 'epsilon 0.0'),
  (dict(epsilon=1.0), 'epsilon 1.0'),
  (dict(memory_limit=-1), 'memory_limit -1'),
  (dict(mesh='data'), "mesh 'data'"),
]


@pytest.fixture
def no_compilation(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError('something was put on a device')

  monkeypatch.setattr(jax, 'make_array_from_callback', refuse)
  monkeypatch.setattr(jax, 'enable_x64', refuse)


@pytest.mark.usefixtures('no_compilation')
@pytest.mark.parametrize(
  ('function', 'kwargs', 'message'),
  [
    (function, *case)
    for function, cases in [
      (selection.facility_location, EVERYWHERE + KERNEL + FACILITY_LOCATION),
      (selection.log_determinant, EVERYWHERE + KERNEL),
      (selection.log_determinant, [(dict(jitter=0.0), 'jitter 0.0')]),
      (selection.k_center, EVERYWHERE),
      (selection.k_center, [(dict(first=6), 'first has 6')]),
    ]
    for case in cases
  ],
)
def test_refuses(function, kwargs, message):
  with pytest.raises(selection.SelectionError, match=message):
    function(**(dict(features=GOOD, budget=1) | kwargs))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: selection.Rbf(width=0.0), 'width 0.0'),
    (lambda: selection.Rbf(width=-1), 'width -1'),
    (lambda: selection.Rbf(gamma=0.0), 'gamma 0.0'),
    (lambda: selection.Rbf(width=float('nan')), 'width nan'),
    (lambda: selection.Rbf(width='1'), "width '1' is not a number"),
    (lambda: selection.Rbf(gamma=10**400), 'gamma 1000'),
    (lambda: selection.Rbf(), 'either width or gamma'),
    (lambda: selection.Rbf(width=1.0, gamma=1.0), 'either width or gamma'),
    (lambda: selection.Cosine('square'), "transform 'square'"),
  ],
)
def test_similarities_refuse(make, message):
  with pytest.raises(selection.SelectionError, match=message):
    make()


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('scale', [1e-140, 1e-30, 1e18, 3e38])
@pytest.mark.parametrize(
  'similarity', [selection.Rbf(width=1.0), selection.Cosine()]
)
def test_what_does_not_overflow_is_taken(scale, similarity):
  features = np.random.default_rng(0).uniform(-1, 1, size=(20, 3))
  for function in (selection.facility_location, selection.log_determinant):
    expected = function(features, 5, similarity)
    result = function(features * scale, 5, similarity)
    np.testing.assert_array_equal(result.indices, expected.indices)
  expected = selection.k_center(features, 5)
  result = selection.k_center(features * scale, 5)
  np.testing.assert_array_equal(result.indices, expected.indices)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('scale', [1e-146, 1e-155, 1e-200, 0.0])
def test_equal_rows_do_not_underflow(scale):
  features = np.full((7, 3), scale) * [1.1, 1.3, 1.7]
  for function in (
    selection.facility_location,
    selection.log_determinant,
    selection.k_center,
  ):
    assert function(features, 3).indices.tolist() == [0, 1, 2]


def test_cosine_and_gamma_take_tiny_features():
  features = np.random.default_rng(0).uniform(-1, 1, size=(20, 3))
  expected = selection.facility_location(features, 5, selection.Cosine())
  result = selection.facility_location(features * 1e-200, 5, selection.Cosine())
  np.testing.assert_array_equal(result.indices, expected.indices)
  # By the formula, all similarities are 1.
  gamma = selection.Rbf(gamma=1.0)
  result = selection.facility_location(features * 1e-200, 5, gamma)
  assert result.gains.tolist() == [20, 0, 0, 0, 0]


def test_takes_what_means_numbers():
  integers = np.arange(12).reshape(6, 2)
  expected = selection.facility_location(integers.astype(np.float64), 3)
  for features in (
    integers,
    integers.astype(np.float16),
    jax.numpy.asarray(integers, jax.numpy.bfloat16),
    integers.tolist(),
  ):
    result = selection.facility_location(features, 3)
    np.testing.assert_array_equal(result.indices, expected.indices)
