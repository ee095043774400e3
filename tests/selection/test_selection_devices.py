"""The same picks on any number of devices, and true float32 on all."""

import json
import re

from inner_selection import posed, select
import jax
import numpy as np
import pytest
import two_processes

from edsft_jax import selection
from edsft_jax.selection import (
  distances,
  nearest,
  pair_pass,
  programs,
  sharding,
)
from edsft_jax.selection.log_determinant import extend, start
from edsft_jax.selection.options import Options
from edsft_jax.selection.progress import Progress
from edsft_jax.selection.search import Search

# In every process: the same calls, which print picks and gains.
SELECTIONS = """
import json, sys
import jax
import numpy as np
from edsft_jax import selection

def selections(mesh=None):
  features = np.random.default_rng(0).normal(size=(1500, 4)).round(1)
  features[::9] = features[1]
  short = dict(initial=[3], memory_limit=10**5, mesh=mesh)
  results = [
    selection.facility_location(features, 40, mesh=mesh),
    selection.facility_location(features, 30, method='greedy', **short),
    selection.facility_location(features, 4, method='threshold', **short),
    selection.facility_location(features, 9, method='partitioned', mesh=mesh),
    selection.k_center(features, 600, initial=[3], mesh=mesh),
    selection.log_determinant(features, 9, initial=[3], mesh=mesh),
  ]
  curves = selection.gains_curves(features, 9, [0.1, 1.0], mesh=mesh).curves
  return [
    *([r.indices.tolist(), r.gains.tolist(), r.objective] for r in results),
    curves.tolist(),
  ]
"""
TWO_PROCESSES = """
process, address = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(address, 2, process)
mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
print(json.dumps(selections(mesh)))
"""


def pool(n=5000):
  """More tiles than devices, equal rows among them."""
  features = np.random.default_rng(0).normal(size=(n, 4)).round(1)
  features[::9] = features[1]
  return features


def mesh_of(devices):
  return jax.sharding.Mesh(
    np.array(jax.devices()[:devices]).reshape(devices, 1), ('data', 'tensor')
  )


@pytest.mark.parametrize('residuals', [True, False])
@pytest.mark.parametrize('method', ['greedy', 'threshold'])
def test_facility_location_on_eight_devices(method, residuals):
  features, budget = pool(), 200 if residuals else 12
  options = Options(use_residuals=residuals)
  arguments = dict(initial=[3], method=method)
  expected = select(options, features, budget, **arguments)
  # Of four devices, see test_block_sizes_and_devices_change_no_pick.
  result = select(options, features, budget, mesh=mesh_of(8), **arguments)
  np.testing.assert_array_equal(result.indices, expected.indices)
  np.testing.assert_array_equal(result.gains, expected.gains)
  assert result.objective == expected.objective


def test_k_center_on_any_number_of_devices():
  expected = selection.k_center(pool(), 300)
  for devices in (4, 8):
    result = selection.k_center(pool(), 300, mesh=mesh_of(devices))
    np.testing.assert_array_equal(result.indices, expected.indices)
    np.testing.assert_array_equal(result.gains, expected.gains)


def test_log_determinant_on_any_number_of_devices():
  features = np.random.default_rng(0).normal(size=(1500, 33))
  # Copies tie, and those of this row, far from all, on several devices.
  features[::9] = 9.0
  expected = selection.log_determinant(features, 60, initial=[1400, 3])
  assert expected.indices[0] == 0
  for devices in (4, 8):
    result = selection.log_determinant(
      features, 60, initial=[1400, 3], mesh=mesh_of(devices)
    )
    np.testing.assert_array_equal(result.indices, expected.indices)
    np.testing.assert_array_equal(result.gains, expected.gains)
    assert result.objective == expected.objective


def test_each_device_holds_its_share_of_the_factor():
  points = np.ones((4096, 3), np.float32)
  mesh = mesh_of(8)
  with jax.enable_x64(True):
    n, jitter = np.int32(4096), np.float64(1)
    rows = [sharding.tiles(array, mesh) for array in (points, *points.T[:2])]
    state = start(rows[2], n, jitter, rank=7, mesh=mesh)
    program = extend.lower(
      *(state, *rows, np.full(7, -1, np.int32), n, jitter),
      *(np.int32(0), np.int32(7)),
      formula='rbf',
      mesh=mesh,
    ).compile()
  assert {s.data.shape for s in state.factor_MxU.addressable_shards} == {
    (7, 512)
  }
  text = program.as_text()
  assert 'f64[7,512]' in text
  assert '4096' not in re.sub('metadata={.*?}', '', text)


def test_each_device_holds_its_share():
  points = pool(4096).astype(np.float32)
  problem, plan = posed(
    Options(), points, 1, mesh=mesh_of(8), memory_limit=10**8
  )
  cache = Search.of(problem, plan).cache
  center = distances.Distances(
    *(points, np.arange(4096), 1, mesh_of(8)),
    Progress(None),
    distances.Sizes(),
  )
  for array in (
    cache.rows.point_TxRxD,
    cache.compute(np.arange(3), 64),
    center.point_TxRxD,
  ):
    sizes = {shard.data.size for shard in array.addressable_shards}
    assert sizes == {array.size // 8}


@pytest.mark.slow
def test_two_processes_pick_what_one_device_picks():
  finished = two_processes.run(
    lambda process, address: [
      '-c',
      SELECTIONS + TWO_PROCESSES,
      str(process),
      address,
    ]
  )
  names: dict = {}
  exec(SELECTIONS, names)
  expected = names['selections']()
  for process in finished:
    assert process.returncode == 0, process.stderr
    # Above it stands what the connection has to say.
    assert json.loads(process.stdout.splitlines()[-1]) == expected


def _arrays():
  """Points and their norms, flat and in one tile, and their indices."""
  points, norms = np.ones((64, 3), np.float32), np.ones(64, np.float32)
  row = np.arange(64, dtype=np.int32)
  return points, norms, points.reshape(1, 64, 3), norms.reshape(1, 64), row


def _programs_of_pairs() -> list[jax.stages.Lowered]:
  """Programs that compute similarities."""
  points, norms, tiles, rows, row = _arrays()
  return [
    programs.similarities.lower(
      tiles, rows, points, norms, norms, row, formula='rbf', mesh=mesh_of(1)
    ),
    programs.all_similarities.lower(tiles, rows, rows, formula='rbf'),
    pair_pass.add_pairs.lower(
      tiles,
      rows,
      rows,
      (rows,),
      rows,
      rows[None].astype(np.float64),
      np.zeros((1, 2), np.int32),
      np.int32(1),
      formula='rbf',
      keep=True,
    ),
    extend.lower(
      start(rows, np.int32(64), np.float64(1), rank=64, mesh=mesh_of(1)),
      tiles,
      rows,
      rows,
      row,
      np.int32(64),
      np.float64(1),
      np.int32(0),
      np.int32(64),
      formula='rbf',
      mesh=mesh_of(1),
    ),
  ]


def _programs_of_distances() -> list[jax.stages.Lowered]:
  """Programs that compute distances."""
  points, norms, tiles, rows, _ = _arrays()
  return [
    nearest.lowered_bounds.lower(
      tiles,
      rows,
      rows,
      np.zeros(len(tiles), np.int32),
      points,
      norms,
      np.int32(len(points)),
      mesh=mesh_of(1),
      batch=16,
    ),
    nearest.squares_to_chosen.lower(
      points,
      norms,
      np.ones((200, 3), np.float32),
      np.ones(200, np.float32),
      np.int32(0),
      np.int32(64),
      np.float32(1),
      batch=128,
    ),
    nearest.squares_among.lower(points, norms, np.float32(1)),
  ]


def test_products_are_true_float32():
  with jax.enable_x64(True):
    lowered = [*_programs_of_pairs(), *_programs_of_distances()]
  for program in lowered:
    text = program.as_text()
    products = [line for line in text.splitlines() if 'dot_general' in line]
    assert products
    assert all('HIGHEST' in line for line in products), products
