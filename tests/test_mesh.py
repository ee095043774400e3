"""Meshes over the eight fake devices, and where arrays lie on them."""

import dataclasses

import jax
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import pytest

from edsft_jax import errors
from edsft_jax import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a mesh asks of a chip in a TPU slice."""

  coords: tuple[int, int, int]
  id: int
  process_index: int = 0
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v6 lite'


@pytest.mark.parametrize('sizes', [(8, 2, 1), (2, 8, 1), (1, 2, 8), (16, 1, 1)])
def test_any_sizes_fit_a_tpu_slice(sizes):
  chips = [Chip((i % 4, i // 4, 0), i) for i in range(16)]
  mesh = mesh_lib.make_mesh(*sizes, devices=chips)
  assert mesh.devices.shape == sizes
  assert set(mesh.devices.flat) == {*chips}


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ((), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((2, -1, 1), (2, 4, 1)),
    ((1, 1, -1), (1, 1, 8)),
    ((4, 1, 2), (4, 1, 2)),
  ],
)
def test_make_mesh_fits_all_devices(sizes, shape):
  mesh = mesh_lib.make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == shape
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert mesh_lib.batch_multiple(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((3, 1, 1), '8 devices'),
    ((-1, 3, 1), '8 devices'),
    ((16, 1, 1), '8 devices'),
    ((-1, 16, 1), '8 devices'),
    ((-1, -1, 1), 'mesh.data and mesh.fsdp are -1'),
    ((1, 0, 8), 'mesh.fsdp is 0'),
    ((-2, 1, 1), 'mesh.data is -2'),
  ],
)
def test_make_mesh_refuses_what_does_not_fit(sizes, message):
  with pytest.raises(errors.InputError, match=message):
    mesh_lib.make_mesh(*sizes)


def test_a_mesh_of_some_devices():
  mesh = mesh_lib.make_mesh(1, 2, 1, devices=jax.devices()[3:5])
  assert list(mesh.devices.flat) == jax.devices()[3:5]


def test_sharding_follows_the_rules_where_sizes_divide():
  mesh = mesh_lib.make_mesh(2, 2, 2)

  def spec(axes, shape):
    return mesh_lib.sharding(mesh, axes, shape).spec

  assert spec(('vocab', 'embed'), (10, 6)) == PartitionSpec('tensor', 'fsdp')
  assert spec(('embed', 'mlp'), (6, 10)) == PartitionSpec('fsdp', 'tensor')
  assert spec(('embed', 'mlp'), (6, 11)) == PartitionSpec('fsdp', None)
  assert spec(('embed', 'mlp'), (7, 11)) == PartitionSpec(None, None)
  assert spec(('batch', 'length'), (8, 2)) == PartitionSpec(
    ('data', 'fsdp'), None
  )
  assert spec(('batch', 'length'), (6, 2)) == PartitionSpec(None, None)
  with pytest.raises(KeyError):
    spec(('bach',), (8,))
  with pytest.raises(ValueError, match='zip'):
    spec(('embed',), (8, 2))


def test_shard_batch_splits_the_leading_axis():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  tree = {'tokens': np.arange(24).reshape(8, 3), 'weights': np.arange(8.0)}
  result = mesh_lib.shard_batch(mesh, tree)
  for name, array in tree.items():
    np.testing.assert_array_equal(result[name], array)
    shards = result[name].addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {2}
    np.testing.assert_array_equal(shards[2].data, array[2:4])
  with pytest.raises(ValueError, match=r'partition|divi'):
    mesh_lib.shard_batch(mesh, {'tokens': np.zeros((6, 3))})


@pytest.mark.parametrize(
  ('sizes', 'num_local', 'own'),
  [
    ((8, 1, 1), 4, (4, 1, 1)),
    ((4, 2, 1), 4, (2, 2, 1)),
    ((2, 2, 2), 4, (1, 2, 2)),
    ((8, 1, 1), 1, (1, 1, 1)),
    ((1, 8, 1), 4, None),
    ((1, 2, 4), 4, None),
    ((2, 1, 3), 4, None),
  ],
)
def test_a_process_works_alone_where_the_model_fits_it(sizes, num_local, own):
  assert mesh_lib.local_sizes(sizes, num_local) == own


def test_the_model_mesh_of_one_process_is_the_whole():
  assert mesh_lib.model_mesh(-1, 2, 2) == mesh_lib.make_mesh(-1, 2, 2)
