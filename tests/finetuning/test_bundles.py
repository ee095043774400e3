"""Small arrays are written together, and come back where they were."""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from edsft_jax import errors
from edsft_jax.finetuning.bundles import Bundles
from edsft_jax.finetuning.checkpoints import Checkpoints
from edsft_jax.finetuning.trainer import State
from edsft_jax.mesh import make_mesh

SPECS = {
  'a': PartitionSpec('fsdp', None),
  'b': PartitionSpec(None, 'tensor'),
  'c': PartitionSpec(),
}


def _tree(mesh, names=('a', 'b', 'c')):
  """Per name an array of [4, 6], one alone of its shape, and a large one."""
  rng = np.random.default_rng(0)

  def put(x, spec):
    return jax.device_put(x, NamedSharding(mesh, spec))

  small = {
    name: put(rng.normal(size=(4, 6)).astype(np.float32), SPECS[name.lower()])
    for name in names
  }
  return {
    'small': small,
    'half': put(np.ones((4, 6), np.float16), PartitionSpec()),
    'other': put(np.arange(5, dtype=np.float32), PartitionSpec()),
    'steps': [put(np.int32(3), PartitionSpec()) for _ in range(2)],
    'large': [
      put(rng.normal(size=(512, 513)).astype(np.float32), SPECS['c'])
      for _ in range(2)
    ],
  }


@pytest.mark.parametrize('shape', [{}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_arrays_come_back_where_they_were(shape):
  mesh = make_mesh(**shape, devices=jax.devices()[: 8 if shape else 1])
  tree = _tree(mesh)
  bundles = Bundles(tree)
  packed = bundles.pack(tree)
  # Both steps, four in float32, one in half precision and two large ones.
  assert sorted(x.shape for x in packed.values()) == [
    (2,),
    (4, 6),
    (3 * 4 * 6 + 5,),
    (512, 513),
    (512, 513),
  ]
  assert {
    name: (x.shape, x.dtype, x.sharding) for name, x in packed.items()
  } == {
    name: (x.shape, x.dtype, x.sharding) for name, x in bundles.shapes.items()
  }
  back = bundles.unpack(packed)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for found, expected in zip(
    jax.tree.leaves(back), jax.tree.leaves(tree), strict=True
  ):
    assert np.array_equal(found, expected)
    assert found.dtype == expected.dtype
    assert found.sharding.is_equivalent_to(expected.sharding, found.ndim)


def test_bundles_are_not_too_large():
  one = make_mesh(devices=jax.devices()[:1])
  sharding = NamedSharding(one, PartitionSpec())
  # 200 arrays of 0.5 MiB: 100 MiB.
  shape = jax.ShapeDtypeStruct((2**17,), np.float32, sharding=sharding)
  sizes = [x.size * 4 for x in Bundles([shape] * 200).shapes.values()]
  assert sorted(sizes) == [36 * 2**20, 64 * 2**20]


def test_names_depend_on_the_tree_alone():
  one = make_mesh(devices=jax.devices()[:1])
  many = make_mesh(fsdp=4, tensor=2)
  assert [*Bundles(_tree(one)).shapes] == [*Bundles(_tree(many)).shapes]
  others = Bundles(_tree(one, ('a', 'B', 'c'))).shapes
  # One bundle has another array.
  assert len(others.keys() - Bundles(_tree(one)).shapes.keys()) == 1


def test_a_checkpoint_with_other_arrays_is_refused(tmp_path):
  """As one of an older version has them."""
  one = make_mesh(devices=jax.devices()[:1])
  tree = _tree(one)
  state = State(tree['large'], tree['small'])
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(3, state, {})
  others = State(tree['large'], _tree(one, ('a', 'B', 'c'))['small'])
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    found = checkpoints.restore(state)
    assert np.array_equal(found.state.opt_state['a'], tree['small']['a'])
    with pytest.raises(errors.InputError, match='another version') as caught:
      checkpoints.restore(others)
  message = str(caught.value)
  assert str(tmp_path / 'checkpoints' / '3') in message
  assert len(message) < 400
  assert '\n' not in message
