"""Many steps in flight on a mesh of CPU devices, which used to deadlock."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from edsft_jax.mesh import InFlight


# The mistake that this is about stopped one run in a few.
@pytest.mark.parametrize('runs', [2, pytest.param(10, marks=pytest.mark.slow)])
def test_weights_split_both_ways_train(runs):
  script = pathlib.Path(__file__).with_name('train_far_ahead.py')
  result = subprocess.run(
    [sys.executable, script, str(runs)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  ended = [f'ended {number}' for number in range(runs)]
  assert result.stdout.splitlines() == ended


def test_no_more_than_a_few_steps_are_in_flight():
  in_flight = InFlight()
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: y @ y, x))
  result, results = jnp.eye(200), []
  for step in range(3 * InFlight.MAX_STEPS):
    result = slow(result)
    results.append(result)
    in_flight.add(result)
    if step >= InFlight.MAX_STEPS:
      assert results[step - InFlight.MAX_STEPS].is_ready()
